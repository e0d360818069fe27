"""Cells as areas for a GIS: the convex hull of each cell's places, as GeoParquet (EPSG:4326).

A hull is taken on the plane that touches the globe at the cell's mean and keeps distances from there, so that it is
right at the poles and across the antimeridian. There it is cut in two, as RFC 7946 (3.1.9) asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from geo_assets.files import written_beside
from geo_assets.geodesy import MEAN_RADIUS_M
from geo_assets.geotag.clustering import Floats, Ints, unit_sphere
from geo_assets.lake import Lake

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

MARGIN_M = 10.0
"""Added around a hull, so that a cell of one place or of places in a row has an area."""

_STEP_M = 10_000.0  # a straight line on the plane is none in degrees, by a few metres on so short a way
_WIDEST_M = np.pi / 2 * MEAN_RADIUS_M
_CROWDED = 10_000
_WORLD = shapely.box(-180, -90, 180, 90)


def write_hulls(lake: Lake, folder: Path) -> list[Path]:
    """Write ``cells_level_<n>.parquet`` for each level of ``hierarchy_centroids`` below the root.

    Args:
        lake: holds ``hierarchy_centroids``, ``hdbscan_model`` and ``photo_cells``.
        folder: where to; files that are there are replaced.

    Returns:
        The files, finest level first.

    Raises:
        GeoAssetsError: a table was never made.
    """
    centroids = lake.read("hierarchy_centroids")
    points = lake.read("hdbscan_model", ["point_id", "lon", "lat"]).sort_values("point_id")
    lon, lat = (points[name].to_numpy(np.float64) for name in ("lon", "lat"))
    levels = (_cells_of(lake, level, len(points)) for level in range(int(centroids["level"].to_numpy().max(initial=0))))
    return write_levels(centroids, lon, lat, levels, folder)


def write_levels(centroids: pd.DataFrame, lon: Floats, lat: Floats, levels: Iterable[Ints], folder: Path) -> list[Path]:
    """Write ``cells_level_<n>.parquet`` for each of some levels.

    Args:
        centroids: rows of ``hierarchy_centroids``.
        lon: longitudes [N] of places, degrees.
        lat: latitudes [N].
        levels: the cell [N] of each place at level 0, at level 1, ...; -1 for none.
        folder: where to; files that are there are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for level, cell in enumerate(levels):
        cells = centroids.loc[centroids["level"] == level, :].sort_values("cell_id")
        has = cell >= 0
        files.append(folder / f"cells_level_{level}.parquet")
        with written_beside(files[-1]) as file:
            hulls(cells, lon[has], lat[has], cell[has]).to_parquet(file, compression="zstd")
    return files


def _cells_of(lake: Lake, level: int, n_points: int) -> Ints:
    """The cell [N] of each point at a level, -1 for points without a photo."""
    with lake.connect("photo_cells") as con:
        found = con.execute(f"""
            select distinct point_id, split_part(cells[{level + 1}], ':', 2)::bigint as cell from photo_cells""").fetchnumpy()
    cell = np.full(n_points, -1, np.int64)
    cell[found["point_id"]] = found["cell"]
    return cell


def hulls(cells: pd.DataFrame, lon: Floats, lat: Floats, cell: Ints) -> GeoDataFrame:
    """The cells of a level with their hulls.

    Args:
        cells: rows of ``hierarchy_centroids`` of one level: ``cell_id`` 0..K-1 in order, ``lon, lat`` [deg].
        lon: longitudes [N] of places, degrees.
        lat: latitudes [N].
        cell: cell [N] of each.

    Returns:
        The rows with a polygon or multipolygon within -180 to 180 degrees [EPSG:4326]. A cell that reaches farther than
        a quarter of the way around the globe from its mean is the whole world.
    """
    import geopandas

    shapes = np.full(len(cells), shapely.Polygon(), object)
    if not len(cell):
        return geopandas.GeoDataFrame(cells.reset_index(drop=True), geometry=shapes, crs="EPSG:4326")
    order = np.argsort(cell, kind="stable")
    lon, lat, cell = lon[order], lat[order], cell[order]
    centre_lon, centre_lat = (cells[name].to_numpy(np.float64) for name in ("lon", "lat"))
    east, north, up = _axes(centre_lon, centre_lat)
    east_north, far_m = _flat(unit_sphere(lon, lat), east[cell], north[cell], up[cell])
    used, number = np.unique(cell, return_inverse=True)
    kept = _corners(east_north, number)
    plane = shapely.convex_hull(shapely.multipoints(east_north[kept], indices=number[kept]))
    plane = np.asarray(shapely.segmentize(shapely.buffer(plane, MARGIN_M, quad_segs=2), _STEP_M))
    widest = np.zeros(len(used))
    np.maximum.at(widest, number, far_m)
    shapes[used] = _on_globe(plane, east[used], north[used], up[used], centre_lon[used])
    shapes[used[widest > _WIDEST_M]] = _WORLD
    return geopandas.GeoDataFrame(cells.reset_index(drop=True), geometry=shapes, crs="EPSG:4326")


def _axes(lon: Floats, lat: Floats) -> tuple[Floats, Floats, Floats]:
    """Unit vectors [K, 3] to the east, to the north and up at places [deg]."""
    lam, up = np.radians(lon), unit_sphere(lon, lat)
    east = np.stack([-np.sin(lam), np.cos(lam), np.zeros(len(lam))], axis=-1)
    return east, np.cross(up, east), up


def _flat(xyz: Floats, east: Floats, north: Floats, up: Floats) -> tuple[Floats, Floats]:
    """Metres [N, 2] to the east and north on the plane (azimuthal equidistant), and the distance [N] from its centre."""
    x, y, z = (np.einsum("ij,ij->i", xyz, axis) for axis in (east, north, up))
    side = np.hypot(x, y)
    far_m = MEAN_RADIUS_M * np.arctan2(side, z)
    scale = far_m / np.maximum(side, 1e-300)
    return np.stack([x * scale, y * scale], axis=-1), far_m


def _corners(places: Floats, number: Ints) -> Ints:
    """Places [indices] that the hulls need: of crowded cells the corners alone, since each place is an object to shapely."""
    from scipy.spatial import ConvexHull, QhullError

    begin = np.flatnonzero(np.diff(number, prepend=-1))
    end = np.r_[begin[1:], len(number)]
    crowded = np.flatnonzero(end - begin > _CROWDED)
    kept = np.repeat(end - begin <= _CROWDED, end - begin)
    for first, last in zip(begin[crowded], end[crowded], strict=True):
        try:
            kept[first + ConvexHull(places[first:last]).vertices] = True
        except QhullError:  # all in a row
            kept[first:last] = True
    return np.flatnonzero(kept)


def _on_globe(
    plane: npt.NDArray[np.object_], east: Floats, north: Floats, up: Floats, centre: Floats
) -> npt.NDArray[np.object_]:
    """Polygons [K] of degrees of polygons on the planes at ``up``."""
    metres, number = shapely.get_coordinates(plane, return_index=True)
    far = np.hypot(*metres.T)
    angle = far / MEAN_RADIUS_M
    side = (np.sin(angle) / np.maximum(far, 1e-300))[:, None] * metres
    xyz = side[:, :1] * east[number] + side[:, 1:] * north[number] + np.cos(angle)[:, None] * up[number]
    lat = np.degrees(np.arcsin(np.clip(xyz[:, 2], -1, 1)))
    # Longitudes run on beyond 180 degrees from where the ring begins.
    turn = np.diff(np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0])), prepend=0.0)
    first = np.r_[True, number[1:] != number[:-1]][: len(number)]
    turn = np.where(first, 0, (turn + 180) % 360 - 180)
    begin = np.flatnonzero(first)
    start = np.degrees(np.arctan2(xyz[begin, 1], xyz[begin, 0]))
    start = centre + (start - centre + 180) % 360 - 180
    run = np.cumsum(turn)
    lon = run + np.repeat(start - run[begin], np.diff(np.r_[begin, len(number)]))
    ends = np.r_[begin[1:], len(number)] - 1
    around = np.abs(lon[ends] - lon[begin]) > 180  # a pole lies within
    # A ring that closes all but for rounding would cross itself.
    lon[ends[~around]], lat[ends] = lon[begin[~around]], lat[begin]
    shapes = np.asarray(shapely.polygons(shapely.linearrings(np.stack([lon, lat], axis=-1), indices=number)))
    for k in np.flatnonzero(around):  # up to the pole, and along it to the beginning
        ring = slice(begin[k], ends[k] + 1)
        pole = 90.0 if up[k, 2] > 0 else -90.0
        shapes[k] = shapely.Polygon(
            [*zip(lon[ring], lat[ring], strict=True), (lon[ends[k]], pole), (lon[begin[k]], pole)]
        )
    bounds = shapely.bounds(shapes)
    for k in np.flatnonzero((bounds[:, 0] < -180) | (bounds[:, 2] > 180)):
        shapes[k] = shapely.union_all([_shifted(shapes[k], low) for low in (-540, -180, 180)])
    return shapes


def _shifted(shape: shapely.Geometry, low: float) -> shapely.Geometry:
    """What lies on the turn of 360 degrees that begins at a longitude, moved to -180 to 180."""
    part = shapely.intersection(shape, shapely.box(low, -90, low + 360, 90))
    areas = [piece for piece in shapely.get_parts(part) if piece.geom_type == "Polygon"]
    return shapely.transform(shapely.MultiPolygon(areas), lambda lon_lat: lon_lat - [low + 180, 0])
