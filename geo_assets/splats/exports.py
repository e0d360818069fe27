"""The files beside a box's ``splat.ply``: smaller forms of it, and what a globe needs; and a splat for elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import numpy as np

from geo_assets.errors import GeoAssetsError, SourceError
from geo_assets.files import replacing
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.splats.cameras import Camera
from geo_assets.splats.compressed import compressed_ply_bytes
from geo_assets.splats.gaussians import Gaussians, joined
from geo_assets.splats.georeference import read_frame
from geo_assets.splats.globe import globe_page
from geo_assets.splats.ply import cleaned, ply_bytes, read_ply
from geo_assets.splats.preview import overview_camera
from geo_assets.splats.spz import spz_bytes
from geo_assets.splats.tiles3d import glb_bytes, leaf, write_tileset

Format = Literal["ply", "spz", "compressed.ply", "tiles"]
FORMATS: tuple[Format, ...] = ("ply", "spz", "compressed.ply", "tiles")

GLOBE_DEGREE = 1
"""CesiumJS unpacks harmonics on the page's own thread; those above degree 1 would stop it for seconds."""


def write_exports(
    folder: Path, gaussians: Gaussians, frame: LocalFrame, *, title: str, camera: Camera | None = None
) -> dict[str, int]:
    """Write ``splat.spz`` and ``splat.compressed.ply``, and the tiles of :func:`write_tiles`.

    Args:
        folder: to write to.
        gaussians: the place without its sky, in the frame's metres.
        frame: where it lies on the Earth.
        title: of the page.
        camera: where the globe begins; by default it looks at all of the splat.

    Returns:
        Bytes of each file.

    Raises:
        SourceError: no Gaussian is finite and visible, or one lies too far from the origin.
    """
    files = {"splat.spz": spz_bytes(gaussians), "splat.compressed.ply": compressed_ply_bytes(gaussians)}
    return _written(folder, files) | write_tiles(folder, gaussians, frame, title=title, camera=camera)


def published(lake: Lake, city: str, box: str | None) -> str:
    """Key of the folder of a published splat.

    Raises:
        GeoAssetsError: there is none.
    """
    key = lake.key("splats", city=city, box=box) if box else lake.key("splats_city", city=city)
    if not lake.exists(key):
        what = f"splat_ply --city {city} --box {box}" if box else f"splat_city --city {city}"
        raise GeoAssetsError(
            f"There is no splat of {' '.join(filter(None, (city, box)))} yet. Make it: geo-assets materialize --select {what}"
        )
    return key


def export_splat(
    lake: Lake, city: str, box: str | None, form: Format, out: Path, *, version: int = 3, sky: bool = False
) -> dict[Path, int]:
    """Write a published splat of a box, or of the city, in one format.

    Args:
        lake: the lake.
        city: name of the city.
        box: name of the box; None for all of the city.
        form: of the result.
        out: the file, or a folder to put it into; with tiles the folder.
        version: of SPZ.
        sky: whether the sky is part of it, which the tiles never have.

    Returns:
        Bytes of each file written.

    Raises:
        GeoAssetsError: there is no such splat, or it is too large for one file.
        SourceError: it cannot be written in this format.
    """
    with lake.local(published(lake, city, box)) as folder:
        if form == "tiles":
            return _tiles_of(folder, out, title=" ".join(filter(None, (city, box))))
        whole = read_ply(_ply_of(folder, city, box))
        if sky:
            whole = joined([whole, read_ply(_sky_of(folder, city, box))], whole.degree)
        data = {
            "ply": ply_bytes,
            "spz": lambda gaussians: spz_bytes(gaussians, version),
            "compressed.ply": compressed_ply_bytes,
        }[form](whole)
    path = out / f"{'_'.join(filter(None, (city, box)))}.{form}" if out.is_dir() else out
    with replacing(path) as sink:
        sink.write(data)
    return {path: len(data)}


def _ply_of(folder: Path, city: str, box: str | None) -> Path:
    path = folder / ("splat.ply" if box else "city.ply")
    if not path.is_file():
        raise GeoAssetsError(
            f"{city} is too large for one file and has no {path.name}. Export its boxes one by one, or --format tiles."
        )
    return path


def _sky_of(folder: Path, city: str, box: str | None) -> Path:
    path = folder / "sky.ply"
    if not path.is_file():
        raise GeoAssetsError(f"The splat of {' '.join(filter(None, (city, box)))} has no sky of its own; drop --sky.")
    return path


def _tiles_of(folder: Path, out: Path, *, title: str) -> dict[Path, int]:
    """The published tiles where there are some, else new ones of the PLY."""
    if out.is_file():
        raise SourceError(f"{out.name} is a file; tiles need a folder of their own.")
    if not (folder / "tileset.json").is_file():
        frame = read_frame(folder / ("splat.geo.json" if (folder / "splat.ply").is_file() else "city.geo.json"))
        ply = next(path for path in (folder / "splat.ply", folder / "city.ply") if path.is_file())
        return {out / name: size for name, size in write_tiles(out, read_ply(ply), frame, title=title).items()}
    found = [folder / "tileset.json", folder / "globe.html", *folder.glob("*.glb"), *folder.glob("tiles/*.glb")]
    written = {}
    for path in found:
        target = out / path.relative_to(folder)
        with path.open("rb") as source, replacing(target, sync_folder=False) as sink:
            shutil.copyfileobj(source, sink)
        written[target] = target.stat().st_size
    return written


def write_tiles(
    folder: Path, gaussians: Gaussians, frame: LocalFrame, *, title: str, camera: Camera | None = None
) -> dict[str, int]:
    """Write ``splat.glb``, the ``tileset.json`` that puts it on the Earth and ``globe.html``, which shows it.

    Arguments, result and errors are those of :func:`write_exports`.
    """
    shown = cleaned(gaussians).gaussians
    shown = shown.to_degree(min(shown.degree, GLOBE_DEGREE))
    sizes = _written(folder, {"splat.glb": glb_bytes(shown)})
    write_tileset(folder / "tileset.json", leaf(shown, "splat.glb"), frame)
    ground = float(np.quantile(shown.means[:, 2], 0.02))
    page = globe_page(
        "tileset.json", camera or overview_camera(shown, rest=0.1, least_m=3.0), frame, title=title, ground_m=ground
    )
    sizes |= _written(folder, {"globe.html": page.encode()})
    return sizes | {"tileset.json": (folder / "tileset.json").stat().st_size}


def _written(folder: Path, files: dict[str, bytes]) -> dict[str, int]:
    for name, data in files.items():
        with replacing(folder / name) as sink:
            sink.write(data)
    return {name: len(data) for name, data in files.items()}
