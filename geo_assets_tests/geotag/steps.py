"""One step of the photo sets in a process of its own, which may kill itself just before it puts a file in its place.

python -m geo_assets_tests.geotag.steps STEP LAKE INPUTS KILL_AT prints how many files were put in their place.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from geo_assets.geotag import combine, coordinates, flickr, landmarks, placing2016
from geo_assets.geotag.wikimedia import Wikimedia
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.settings import Wikimedia as Api


def quiet(line: str) -> None:
    """Progress is nobody's concern here."""


def placing(lake: Lake, inputs: Path, settings: Geotag) -> None:
    folder = inputs / "placing_2016"
    shards = {path.stem: path.relative_to(folder) for path in sorted(folder.glob("*.msg"))}
    placing2016.take_shards(lake, folder, shards, settings, quiet)


def located(lake: Lake, inputs: Path, settings: Geotag) -> None:
    parts = [f"train-{first:06d}" for first in range(0, settings.landmarks, settings.landmarks_per_part)]
    with Wikimedia(settings.wikimedia, lake=lake) as client:
        coordinates.locate(lake, inputs / "google_landmark", parts, settings, client, quiet)


STEPS: dict[str, Callable[[Lake, Path, Geotag], object]] = {
    "placing_2016": placing,
    "landmark_coordinates": located,
    "google_landmark": lambda lake, inputs, s: landmarks.take_landmarks(lake, inputs / "google_landmark", s, quiet),
    "flickr_geotag": lambda lake, inputs, s: flickr.take_flickr(lake, inputs / "flickr_geotag", s, quiet),
    "geotag_combined": lambda lake, inputs, s: combine.combine(lake, s, quiet),
    "geotag_points": lambda lake, inputs, s: combine.write_points(lake, s, quiet),
}


def main(step: str, lake: str, inputs: str, kill_at: int, address: str) -> None:
    put, replace = 0, Path.replace

    def counted(self: Path, target: str | os.PathLike[str]) -> Path:
        nonlocal put
        put += 1
        if put == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = counted
    api = Api(commons_url=f"{address}/commons/w/api.php", wikidata_url=f"{address}/wikidata/w/api.php", per_minute=1e6)
    settings = Geotag(wikimedia=api, processes=1, landmarks_per_part=50_000)
    STEPS[step](Lake(lake), Path(inputs), settings)
    print(json.dumps({"put": put}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
