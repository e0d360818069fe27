"""Where a photo set lies: the folder of the settings, the demo's own small files, or nowhere; and its partitions."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from geo_assets.errors import ConfigError, SourceError
from geo_assets.lake import Lake
from geo_assets.settings import MAX_KEYS, Geotag, Settings

SOURCES = ("placing_2016", "google_landmark", "flickr_geotag")
DEMO_SHARDS = tuple(f"shard_{k}" for k in range(5))
"""Shards of the demo's Placing photos."""

SHARD_FOLDER = "shards"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def uses_demo(settings: Settings) -> bool:
    """Whether the demo's inputs stand in: only where no photo set is configured, so that they never mix with real ones."""
    return settings.demo.enabled and not any(getattr(settings.geotag, source) for source in SOURCES)


def settle_inputs(lake: Lake, settings: Settings) -> None:
    """Remove from a lake what was made of the demo's inputs, once a photo set is configured, and of shards that are gone."""
    marker = lake.key("geotag", "demo")
    if uses_demo(settings):
        if not lake.exists(marker):
            lake.put_bytes(marker, b"The photo sets' tables hold the demo's inputs.\n")
    elif lake.exists(marker):
        for table in (*SOURCES, "landmark_coordinates", "geotag_rejects"):
            lake.remove_table(table)
        lake.remove(marker)
    if there := shards(settings):
        for partition in lake.partitions("placing_2016"):
            if partition["shard"] not in there:
                lake.remove_partition("placing_2016", **partition)
                lake.remove_partition("geotag_rejects", source="placing_2016", part=partition["shard"])


def shards(settings: Settings) -> dict[str, Path]:
    """The shards of the Placing photos by partition key, as paths relative to the folder of the set.

    They are looked for in the configured folder and in its folder ``shards``, not deeper: millions of extracted photos
    may lie there.

    Raises:
        ConfigError: two files would have the same key, or there are more than Dagster bears.
    """
    folder = settings.geotag.placing_2016
    if folder is None:
        return {name: Path(f"{name}.msg") for name in DEMO_SHARDS} if uses_demo(settings) else {}
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("*.msg"), *folder.glob(f"{SHARD_FOLDER}/*.msg")], key=_natural):
        key = _UNSAFE.sub("_", path.stem)
        if key in found:
            raise ConfigError(
                f"{path} and {folder / found[key]} would both be partition {key} of placing_2016. Rename one of them."
            )
        found[key] = path.relative_to(folder)
    if len(found) > MAX_KEYS:
        raise ConfigError(
            f"{folder} holds {len(found):,} shards, more than {MAX_KEYS:,} partitions. Join some: cat a.msg b.msg > ab.msg"
        )
    return found


def landmark_parts(geotag: Geotag) -> list[str]:
    """Partition keys of the landmarks: the set and the first landmark id of each part, ``train-002500``."""
    counts = {"train": geotag.landmarks} | ({"index": geotag.index_landmarks} if geotag.landmark_index else {})
    return [f"{name}-{first:06d}" for name, n in counts.items() for first in range(0, n, geotag.landmarks_per_part)]


def tile_keys(geotag: Geotag) -> list[str]:
    """Partition keys of the tiles of the spanning tree, in order along the curve: ``t000``."""
    return [f"t{number:03d}" for number in range(geotag.tiles)]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts ``shard_2`` before ``shard_10``."""
    return [(int(part or 0), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.as_posix())]


@dataclass(frozen=True)
class Input:
    """The folder of one source, or None, and the words for it."""

    folder: Path | None
    status: str


@contextlib.contextmanager
def source_input(name: str, settings: Settings, stand_in: Callable[[Path], None]) -> Iterator[Input]:
    """The input of one source.

    Args:
        name: one of :data:`SOURCES`.
        settings: names the folders.
        stand_in: writes the demo's inputs into a folder.

    Raises:
        SourceError: the configured folder does not exist.
    """
    folder = getattr(settings.geotag, name)
    if folder is not None:
        if not folder.is_dir():
            raise SourceError(f"geotag.{name} is {folder}, which is no folder. Correct it in geo_assets.toml.")
        yield Input(folder, f"folder {folder}")
    elif uses_demo(settings):
        with tempfile.TemporaryDirectory(prefix="geo_assets_geotag_") as scratch:
            stand_in(Path(scratch))
            yield Input(Path(scratch) / name, "demo inputs")
    else:
        yield Input(None, f"not configured (set geotag.{name} in geo_assets.toml to the folder of the photo set)")
