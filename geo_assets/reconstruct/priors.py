"""What is known of each image before matching: where it is, how it looks, what the provider's own model says."""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd

from geo_assets.geodesy import Array, LocalFrame, haversine_m
from geo_assets.grid import Grid
from geo_assets.lake import Lake
from geo_assets.settings import Reconstruct

UNKNOWN_ALTITUDE_SIGMA_M = 30.0
ORIGIN_SLACK_M = 100.0
"""A box keeps the height of its origin while its images stay this near to it: what was made in its frame stays true."""

_CONTRADICTION = 5.0  # standard deviations between two positions of one image
_TRAVEL_STEPS = 3
_MIN_TRAVEL_M = 5.0
_UPRIGHT_FROM_SENSOR = {
    3: np.diag([-1.0, -1.0, 1.0]),
    6: np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
    8: np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
}
"""Camera axes of the upright photo from those of the sensor, by EXIF orientation."""


def box_frame(lake: Lake, city: str, box: str, grid: Grid, altitudes_m: pd.Series) -> LocalFrame:
    """East-north-up frame of a box: its middle, at the height of its images, or where it was when last written."""
    lon, lat = (float(v) for v in grid.bounds(box).centre)
    median = altitudes_m.median()
    height = None if pd.isna(median) else round(float(median), 3)
    before = _last_origin(lake, city, box)
    if (
        before is not None
        and np.allclose(before[:2], (lon, lat), rtol=0, atol=1e-9)
        and (height is None or abs(before[2] - height) <= ORIGIN_SLACK_M)
    ):
        return LocalFrame(lon, lat, before[2])
    return LocalFrame(lon, lat, height or 0.0)


def _last_origin(lake: Lake, city: str, box: str) -> list[float] | None:
    with contextlib.suppress(OSError, ValueError):  # an unreadable table is about to be replaced
        if lake.has("gps_db", city=city, box=box):
            origin = lake.note("gps_db", city=city, box=box).get("origin")
            return [float(v) for v in origin] if isinstance(origin, list) and len(origin) == 3 else None
    return None


def with_best_position(images: pd.DataFrame, gps_sigma_m: float) -> pd.DataFrame:
    """One position of the recorded and the corrected one, as ``best_lon``, ``best_lat``, ``best_altitude_m``.

    Where both are there and do not contradict each other, their mean: the provider corrects with the recorded
    positions of the whole sequence, so both err together to an unknown degree, and the mean with the standard
    deviation of one (covariance intersection, Julier and Uhlmann 1997) is right whatever that degree. Where they
    are further apart than five standard deviations, the corrected one: it has seen the neighbours.
    """
    corrected = images.computed_lon.notna() & images.computed_lat.notna()
    apart = haversine_m(images.lon, images.lat, images.computed_lon, images.computed_lat)
    both = corrected & (apart <= _CONTRADICTION * gps_sigma_m)
    merged = {
        best: images[computed]
        .where(corrected, images[recorded])
        .where(~both, (images[recorded] + images[computed]) / 2)
        for best, recorded, computed in (("best_lon", "lon", "computed_lon"), ("best_lat", "lat", "computed_lat"))
    }
    altitudes = images[["altitude_m", "computed_altitude_m"]]
    height = altitudes.mean(axis=1).where(both, images.computed_altitude_m.fillna(images.altitude_m))
    return images.assign(**merged, best_altitude_m=height.astype(float))


def with_priors(images: pd.DataFrame, frame: LocalFrame, options: Reconstruct) -> pd.DataFrame:
    """Positions in metres with standard deviations, headings, and whether the camera is known to be upright.

    An unknown altitude becomes the origin's with a wide standard deviation: COLMAP ignores a prior that is not a
    number without a word.
    """
    known_altitude = images.best_altitude_m.notna()
    altitude = images.best_altitude_m.fillna(frame.alt_m)
    enu = frame.enu(images.best_lon.to_numpy(float), images.best_lat.to_numpy(float), altitude.to_numpy(float))
    out = images.assign(
        east_m=enu[..., 0],
        north_m=enu[..., 1],
        up_m=enu[..., 2],
        sigma_xy_m=options.gps_sigma_m,
        sigma_z_m=np.where(known_altitude, options.altitude_sigma_m, UNKNOWN_ALTITUDE_SIGMA_M),
        # The provider turns its photos upright; a photo of the user's folder is upright if its EXIF says 1.
        known_upright=images.exif_orientation.notna() & (images.source_path.isna() | (images.exif_orientation == 1)),
    )
    return out.assign(heading_deg=headings_deg(out))


def headings_deg(images: pd.DataFrame) -> pd.Series:
    """Heading of each image, clockwise from north [deg]: corrected, else the way it travels, else the compass.

    A phone's compass in a car is the worst of the three. Travel is measured over three steps of the sequence to
    each side, and only where they span five metres.
    """
    travel = pd.Series(np.nan, index=images.index)
    # Photos of a folder that say no time were at least numbered in order.
    order = [column for column in ("captured_at", "source_path", "image_id") if column in images]
    for _, run in images.sort_values(order, kind="stable").groupby("sequence_id", sort=True):
        xy = run[["east_m", "north_m"]].to_numpy(float)
        at = np.arange(len(run))
        step = xy[np.minimum(at + _TRAVEL_STEPS, len(run) - 1)] - xy[np.maximum(at - _TRAVEL_STEPS, 0)]
        moved = np.hypot(*step.T) >= _MIN_TRAVEL_M
        travel.loc[run.index] = np.where(moved, np.degrees(np.arctan2(step[:, 0], step[:, 1])) % 360, np.nan)
    return (images.computed_compass_deg.astype(float).fillna(travel).fillna(images.compass_deg.astype(float))) % 360


def upright_features(images: pd.DataFrame) -> bool:
    """Whether features may ignore their orientation: most images are known to be upright and none to be turned.

    It is one answer for a box, because features with and without orientation do not match each other.
    """
    turned = images.exif_orientation.notna() & ~images.known_upright
    return bool(images.known_upright.mean() >= 0.5 and not turned.any())


def with_given_poses(images: pd.DataFrame, frame: LocalFrame) -> pd.DataFrame:
    """The provider's own poses as ``given_centre``, ``given_rotation`` and ``given_cluster``; null where it has none.

    The provider's axes are east, north and up at the image, which half a kilometre from the origin differ from
    those of the box by less than a hundredth of a degree. Its rotation is that of the sensor, the photo stands
    upright: EXIF's orientation lies between them.

    Args:
        images: rows of ``image_metadata``.
        frame: the box's frame.
    """
    from scipy.spatial.transform import Rotation

    place = images[["computed_lon", "computed_lat", "computed_altitude_m"]].astype(float).to_numpy()
    vectors = [_vector(v) for v in images.computed_rotation]
    given = np.isfinite(place).all(axis=1) & np.array([v is not None for v in vectors], bool)
    centres, rotations = ([None] * len(images) for _ in range(2))
    enu = frame.enu(*place.T)
    orientations = images.exif_orientation.fillna(1).astype(int)
    turns = [np.eye(3) if own else _UPRIGHT_FROM_SENSOR.get(o, np.eye(3))
             for o, own in zip(orientations, images.source_path.notna(), strict=True)]  # fmt: skip
    for i in np.flatnonzero(given):
        centres[i] = enu[i].tolist()
        matrix = turns[i] @ Rotation.from_rotvec(np.asarray(vectors[i], float)).as_matrix()
        rotations[i] = Rotation.from_matrix(matrix).as_rotvec().tolist()
    cluster = images.sfm_cluster_id.where(images.sfm_cluster_id.notna(), images.sequence_id)
    return images.assign(
        given_centre=pd.Series(centres, index=images.index, dtype=object),
        given_rotation=pd.Series(rotations, index=images.index, dtype=object),
        given_cluster=cluster.where(pd.Series(given, index=images.index), None),
    )


def turned(rotation: list[float] | None, by: Array) -> list[float] | None:
    """The axis-angle of a camera [rad] turned by a rotation [3, 3] of its own axes; None stays None."""
    from scipy.spatial.transform import Rotation

    if rotation is None:
        return None
    return Rotation.from_matrix(by @ Rotation.from_rotvec(rotation).as_matrix()).as_rotvec().tolist()


def _vector(value: object) -> list[float] | None:
    """Three finite numbers, or None."""
    numbers = [float(v) for v in value] if isinstance(value, list | tuple | np.ndarray) else []
    return numbers if len(numbers) == 3 and bool(np.isfinite(numbers).all()) else None
