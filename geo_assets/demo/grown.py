"""The demo world grown to any number of boxes: one street through all of them, each box as full as the others.

Drives, noise, photos and the provider's poses are those of the demo world. Images of a box do not depend on how many
boxes there are, so what is rendered for one size of the world serves the others.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from geo_assets.demo.place import CROSSING_LAT, CROSSING_LON
from geo_assets.demo.scene import Camera, world_from_street
from geo_assets.demo.street import BLOCK_M, street
from geo_assets.demo.world import (
    JPEG_QUALITY,
    SEED,
    DemoImage,
    World,
    _camera,
    _Drive,
    _photograph,
    _reported,
)
from geo_assets.files import replacing
from geo_assets.grid import METRES_PER_DEGREE
from geo_assets.lake import Lake
from geo_assets.settings import City

PER_DRIVE = 29
"""Photos of one drive in one box; there are three drives."""

STREET_Y_M = BLOCK_M / 2
"""How far north of the boxes' southern edge the street runs [m]."""

HARVESTED = dt.datetime(2024, 7, 1, 12, tzinfo=dt.UTC)
"""When the tables of :func:`fill_lake` say that they were made: the same world gives the same tables."""

_STEP_M = BLOCK_M / PER_DRIVE
_Described = list[tuple[DemoImage, Camera, _Drive]]


@dataclass(frozen=True)
class GrownWorld(World):
    """A world of boxes in a row from west to east; ``truth`` is in metres of ``place.demo_frame()``.

    Attributes:
        city: the city as settings know it: one row of boxes, one block of the street each.
    """

    city: City

    @property
    def homes(self) -> dict[str, str]:
        """The box of each image by the position that the harvest goes by; a stray of the noise stays in its city."""
        lon = [image.lon if image.computed_lon is None else image.computed_lon for image in self.images]
        lat = [image.lat if image.computed_lat is None else image.computed_lat for image in self.images]
        bounds = self.city.bounds
        inside = np.clip(lon, bounds.west, bounds.east), np.clip(lat, bounds.south, bounds.north)
        return dict(zip((image.id for image in self.images), map(str, self.city.grid.boxes_at(*inside)), strict=True))


def grown_world(n_boxes: int, cache: Path | None = None, log: Callable[[str], None] | None = None) -> GrownWorld:
    """The world of so many boxes, 87 images each; each photo is rendered once into a cache (a third of a second each).

    Args:
        n_boxes: boxes in a row.
        cache: folder of the cache; ``$GEO_ASSETS_DEMO_CACHE``, or ``.demo`` in the working directory.
        log: told when rendering begins.
    """
    base = Path(cache or os.environ.get("GEO_ASSETS_DEMO_CACHE") or ".demo").absolute()
    described = describe(n_boxes)
    folder = base / f"grown-{_key(described[: 3 * PER_DRIVE])}"
    folder.mkdir(parents=True, exist_ok=True)
    with (base / "grown.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may start at once: one renders, the others wait
        _render_missing(described, folder, log or (lambda _: None))
    truth = {image.id: camera for image, camera, _ in described}
    return GrownWorld(tuple(image for image, _, _ in described), truth, folder, grown_city(n_boxes))


def grown_city(n_boxes: int) -> City:
    """The city as settings know it; its south-western corner is the same for any number of boxes."""
    south = CROSSING_LAT - STREET_Y_M / METRES_PER_DEGREE
    dlon, dlat = BLOCK_M / (METRES_PER_DEGREE * math.cos(math.radians(south))), BLOCK_M / METRES_PER_DEGREE
    return City(
        bbox=(CROSSING_LON, south, CROSSING_LON + n_boxes * dlon, south + dlat),
        origin=(CROSSING_LON, south),
        box_m=BLOCK_M,
    )


def describe(n_boxes: int) -> _Described:
    """Each image with its true camera and its drive, box by box from the west; nothing is rendered."""
    may = dt.datetime(2024, 6, 3, 9, 12, tzinfo=dt.UTC)
    phone, action = ("Fairphone", "FP5"), ("GoPro", "HERO11 Black")
    anna, ben = ("102345678901234", "anna_maps"), ("109876543210987", "ben-cycles")
    later = dt.timedelta(days=3)
    drives = [
        _Drive(_way(n_boxes, 0.25, -1.5), 0, 2.1, 0.85, *phone, anna, None, may, 1.0, (1, 1, 1)),
        _Drive(_way(n_boxes, 0.75, 0.9), 0, 2.1, 0.85, *phone, anna, None, may + later, 1.08, (1.02, 1, 0.98)),
        _Drive(_way(n_boxes, 0.5, -0.8), 40, 2.4, 0.8, *action, ben, "2100345678901", may + 2 * later,
               0.9, (0.98, 1, 1.02)),
    ]  # fmt: skip
    found: _Described = []
    for box in range(n_boxes):
        for number, drive in enumerate(drives):
            for k in range(box * PER_DRIVE, (box + 1) * PER_DRIVE):
                rng = np.random.default_rng([SEED, number, k])  # of its own: the world may grow without a change
                camera = _eastward(_camera(rng, drive, drive.poses[k], k))
                captured_at = drive.began + dt.timedelta(seconds=k * _STEP_M / drive.speed_m_s)
                sequence_id = f"grown-drive_{number}"
                reported = _reported(rng, drive, camera, sequence_id, int(captured_at.timestamp() * 1000))
                found.append((reported, camera, drive))
    return found


def _way(n_boxes: int, begins: float, lane_m: float) -> np.ndarray:
    """Poses [n, 3] along the street from the city's western edge: x, y [m] and direction [rad]."""
    along = (np.arange(n_boxes * PER_DRIVE) + begins) * _STEP_M
    return np.column_stack([along, np.full(len(along), lane_m), np.zeros(len(along))])


def _eastward(camera: Camera) -> Camera:
    """A camera of the demo world's street turned with the street, so that the street runs from west to east."""
    turn = world_from_street()
    place = turn.T @ camera.centre
    return replace(camera, centre=place, cam_from_world=camera.cam_from_world @ turn)


def _key(described: _Described) -> str:
    """Hash of all that decides the pictures: the poses of the first box, and the code that draws."""
    digest = hashlib.sha256(f"{SEED} {JPEG_QUALITY} {BLOCK_M}".encode())
    for module in ("textures.py", "scene.py", "raycast.py", "street.py"):
        digest.update((Path(__file__).parent / module).read_bytes())
    for image, camera, drive in described:
        pose = np.round(np.concatenate([camera.centre, camera.cam_from_world.ravel()]), 9).tolist()
        digest.update(repr((image.id, pose, camera.focal_px, drive.exposure, drive.white_balance)).encode())
    return digest.hexdigest()[:16]


def _render_missing(described: _Described, folder: Path, log: Callable[[str], None]) -> None:
    """Render the photos that the folder lacks, block by block; a killed run goes on where it was."""
    have = {path.name for path in folder.iterdir()}
    missing = [job for job in described if f"{job[0].id}.jpg" not in have]
    if missing:
        log(f"Rendering {len(missing)} photos of the grown demo world into {folder}.")
    by_block: dict[int, _Described] = {}
    for job in missing:
        by_block.setdefault(int(job[1].centre[0] // BLOCK_M), []).append(job)
    for block, jobs in sorted(by_block.items()):
        scene = street(SEED, block)
        middle = np.array([(block + 0.5) * BLOCK_M, 0.0, 0.0])

        def one(job: tuple[DemoImage, Camera, _Drive], scene=scene, middle=middle) -> None:
            image, camera, drive = job
            seen_from = replace(camera, centre=camera.centre - middle)
            with replacing(folder / f"{image.id}.jpg", sync_folder=False) as sink:
                sink.write(_photograph(scene.render(seen_from), drive, int(image.id)))

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # the ray caster releases the GIL
            list(pool.map(one, jobs))


def fill_lake(world: World, lake: Lake, city: str, homes: Mapping[str, str]) -> None:
    """Write ``image_metadata``, ``image_files`` and the photos of a world, as a harvest of its server leaves them.

    Args:
        world: the images.
        lake: gets one partition for each box.
        city: name of the city.
        homes: the box of each image that is wanted.
    """
    from geo_assets.demo.server import _VALUES, _record
    from geo_assets.harvest.exif import with_exif
    from geo_assets.harvest.images import file_row
    from geo_assets.harvest.metadata import FIELDS, rows
    from geo_assets.tables import TABLES

    fetched_at, getters = HARVESTED, [(name, _VALUES[name]) for name in FIELDS]
    for box in sorted(set(homes.values())):
        here = [image for image in world.images if homes.get(image.id) == box]
        answers = json.loads(json.dumps([_record(image, getters) for image in here]))
        metadata = rows(answers, fetched_at).assign(
            source_mask=1, in_aoi_original=True, first_seen=fetched_at, last_seen=fetched_at
        )
        metadata["in_aoi_computed"] = metadata["computed_lon"].notna().astype("boolean").replace(False, None)
        described = {str(row["image_id"]): row for row in metadata.to_dict("records")}
        files = []
        for image in here:
            jpeg = with_exif(world.jpeg(image.id), described[image.id], "2048", "2048")
            key = lake.key("images", f"{image.id}.jpg", city=city, box=box)
            lake.put_bytes(key, jpeg, sync_folder=False)
            files.append(file_row(image.id, "2048", key, jpeg, 1, exif_written=True))
        lake.write("image_metadata", metadata, city=city, box=box)
        lake.write("image_files", TABLES["image_files"].frame(files), city=city, box=box)
