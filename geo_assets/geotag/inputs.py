"""Where a photo set lies: the folder of the settings, the demo's own small files, or nowhere."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from geo_assets.errors import SourceError
from geo_assets.settings import Settings

SOURCES = ("placing_2016", "google_landmark", "flickr_geotag")


@dataclass(frozen=True)
class Input:
    """The folder of one source, or None, and the words for it."""

    folder: Path | None
    status: str


@contextlib.contextmanager
def source_input(name: str, settings: Settings, stand_in: Callable[[Path], None]) -> Iterator[Input]:
    """The input of one source.

    The demo's inputs stand in only where no photo set is configured at all, so that they never mix with real ones.

    Args:
        name: one of :data:`SOURCES`.
        settings: names the folders.
        stand_in: writes the demo's inputs into a folder.

    Raises:
        SourceError: the configured folder does not exist.
    """
    folders = {source: getattr(settings.geotag, source) for source in SOURCES}
    folder = folders[name]
    if folder is not None:
        if not folder.is_dir():
            raise SourceError(f"geotag.{name} is {folder}, which is no folder. Correct it in geo_assets.toml.")
        yield Input(folder, f"folder {folder}")
    elif settings.demo.enabled and not any(folders.values()):
        with tempfile.TemporaryDirectory(prefix="geo_assets_geotag_") as scratch:
            stand_in(Path(scratch))
            yield Input(Path(scratch) / name, "demo inputs")
    else:
        yield Input(None, f"not configured (set geotag.{name} in geo_assets.toml to the folder of the photo set)")
