"""``geo-assets harvest``: a city's harvest from the command line, and what it says."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path

from geo_assets.errors import GeoAssetsError
from geo_assets.harvest.city import CityHarvest, Estimate, Outcome, harvest_photos
from geo_assets.harvest.images import MAX_DEAD_SHARE
from geo_assets.imagery import imagery_of
from geo_assets.lake import Lake
from geo_assets.progress import Progress
from geo_assets.settings import City, load

Say = Callable[[str], None]


def run_harvest(
    name: str, say: Say, *, files: bool = False, dry_run: bool = False, renew: bool = False, as_json: bool = False
) -> int:
    """Harvest a city of the settings, or say what it would take.

    Args:
        name: name of the city.
        say: receives the lines.
        files: fetch the image files as well.
        dry_run: ask for tiles only, and say what a harvest will take.
        renew: ask again about boxes whose tiles have not changed.
        as_json: end with one line of JSON.

    Returns:
        The exit code: 0 only when every box is complete, and at most one file in fifty is dead.

    Raises:
        ConfigError: no such city, or the settings are wrong.
        ApiError: the token is refused, or the API is down.
    """
    try:
        return _run(name, say, files, dry_run, renew, as_json)
    except GeoAssetsError as error:
        if as_json:
            nothing = dict.fromkeys(("n_images", "n_sequences", "requests", "unresolved", "unverifiable", "seconds"))
            say(json.dumps({"city": name, "complete": False, "error": str(error)} | nothing))
        raise


def _run(name: str, say: Say, files: bool, dry_run: bool, renew: bool, as_json: bool) -> int:
    # Millions of small objects live for a moment each; looking for cycles among them costs a tenth of the time.
    gc.set_threshold(200_000, 20, 50)
    settings = load()
    city, lake = settings.city(name), Lake(settings.lake)

    def report(what: str, total: int) -> Progress:
        return Progress(say, f"{what} of {name}", total)

    if city.photos is not None and dry_run:
        return _tell_folder(name, city.photos, say, as_json)
    if city.photos is not None:
        outcome = _photos(name, city, lake, files)
    else:
        with imagery_of(city, lake) as client:
            harvest = CityHarvest(client, lake, name, city, report, renew)
            if dry_run:
                return _tell_estimate(name, harvest.estimate(files=True), say, as_json)
            outcome = harvest.run(files)
    if lake.is_local:
        lake.rebuild_catalog()
    _tell(outcome, lake, say, files)
    if as_json:
        say(json.dumps(outcome.as_dict()))
    too_many_dead = outcome.n_dead > MAX_DEAD_SHARE * (outcome.n_dead + outcome.n_files)
    return 0 if outcome.complete and not too_many_dead else 1


def _photos(name: str, city: City, lake: Lake, files: bool) -> Outcome:
    from geo_assets.harvest.source import Box, PhotoFolder

    folder = city.photos
    assert folder is not None
    return harvest_photos(lambda box: PhotoFolder(Box(name, box, city, lake), folder), lake, name, city, files)


def _tell(outcome: Outcome, lake: Lake, say: Say, files: bool) -> None:
    row = outcome.certificate.iloc[0]
    say(
        f"{outcome.city}: {row['n_images']:,} images in {row['n_sequences']:,} sequences, "
        f"{row['n_complete']} of {row['n_boxes']} boxes complete, {len(outcome.changed)} asked now, "
        f"{outcome.requests:,} requests in {outcome.seconds:.1f} s."
    )
    say(
        f"  tiles named {row['n_tile_images']:,}, sequence lists added {row['n_closure_added']:,}, searches "
        f"{row['n_audit_added']:,}; {row['n_tombstones']:,} deleted, {row['n_unresolved']:,} without an answer, "
        f"{row['n_unverifiable']:,} search cells unverifiable, {row['n_failed_tiles']:,} tiles missing."
    )
    estimate = row["n_estimated_missing"]
    said = "cannot be estimated" if estimate is None or estimate != estimate else f"about {estimate:.1f} images"
    say(f"  missed by all sources, by capture and recapture: {said}.")
    if files:
        say(f"  {outcome.n_files:,} files there, {outcome.n_dead:,} dead.")
    if not outcome.complete:
        shown = _incomplete(lake, outcome.city)
        for box, verdict in shown[:10]:
            say(f"  {box}: {verdict}")
        if len(shown) > 10:
            say(f"  ... and {len(shown) - 10:,} more boxes.")
        say("Not complete. What was answered is kept: run it again to ask for the rest.")


def _incomplete(lake: Lake, city: str) -> list[tuple[str, str]]:
    from geo_assets.harvest.certificate import verdict

    found = []
    for partition in lake.partitions("certificates"):
        if partition.get("city") == city:
            row = lake.read("certificates", None, **partition).iloc[0].to_dict()
            if not row["complete"]:
                found.append((partition["box"], verdict(row)))
    return found


def _tell_estimate(name: str, found: Estimate, say: Say, as_json: bool) -> int:
    say(f"{name}: {found.n_images:,} images in {found.n_sequences:,} sequences by the tiles, {found.n_boxes:,} boxes.")
    if found.n_failed_tiles:
        say(f"  {found.n_failed_tiles:,} tiles could not be had; the figures are too low.")
    say(
        f"  {found.requests:,} requests: {found.tiles:,} tiles, {found.sequences:,} sequence lists, "
        f"{found.searches:,} searches, {found.pages:,} pages of metadata; about {found.graph_hours:.2f} hours."
    )
    say(f"  files: {found.n_images:,}, about {found.bytes / 1e9:.1f} GB, {found.file_hours:.2f} hours at 100 Mbit/s.")
    say(f"Nothing was harvested. Next: geo-assets harvest {name} --files")
    if as_json:
        own = {"city": name, "requests": found.requests, "dry_run": True}
        say(json.dumps(vars(found) | own))
    return 0


def _tell_folder(name: str, folder: Path, say: Say, as_json: bool) -> int:
    say(f"{name}: the photos in {folder} are read where they lie; nobody is asked, and nothing is fetched.")
    say(f"Nothing was harvested. Next: geo-assets harvest {name} --files")
    if as_json:
        say(json.dumps({"city": name, "requests": 0, "dry_run": True}))
    return 0
