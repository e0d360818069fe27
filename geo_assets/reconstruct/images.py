"""Which images take part in a box: its own and those of its margin, without those that cannot help."""

from __future__ import annotations

import hashlib

import pandas as pd

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import Grid
from geo_assets.lake import Lake
from geo_assets.reconstruct.cameras import FISHEYE, SPHERICAL, kinds_of, usable_parameters
from geo_assets.reconstruct.panoramas import fits
from geo_assets.reconstruct.priors import with_best_position
from geo_assets.reconstruct.thinning import superfluous
from geo_assets.settings import Reconstruct
from geo_assets.tables import TABLES

REASONS = ("no_position", "panorama", "panorama_shape", "fisheye", "standing", "duplicate", "broken")
"""Why an image is left out: no position; a panorama where the settings want none, or one that is not a sphere; a
fisheye lens of unknown parameters; a vehicle that stands; the same picture twice; a file that does not decode."""

_OF_NO_MATTER = {
    *("fetched_at", "first_seen", "last_seen", "tombstoned_at", "source_mask", "stratum", "dropped_by"),
    *("licence", "attribution", "creator_id", "creator_username", "organization_id", "quality_score"),
}
"""What may be said anew of an image without a difference to its features and its place."""

_OF_FILES = ["image_id", "path", "sha256", "width", "height"]


def effective_margin_m(options: Reconstruct, box_m: float) -> float:
    """How far outside a box images take part: never more than a quarter of the box."""
    return min(options.margin_m, box_m / 4)


def images_around(
    lake: Lake, city: str, box: str, grid: Grid, options: Reconstruct
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The images of a box and of its margin, and how many were left out for each of :data:`REASONS`.

    Neighbours are looked at whole, so that what is superfluous in a stretch of photos that crosses a border is so
    on both sides of it.

    Returns:
        Columns of ``image_metadata`` and ``path``, ``sha256``, ``width``, ``height`` of the file, the best
        position ``best_lon``, ``best_lat`` [deg], ``best_altitude_m`` [m], ``kind`` and ``home_box``.

    Raises:
        GeoAssetsError: the box was not harvested.
    """
    found = []
    for name in [box, *grid.neighbours(box)]:
        where = {"city": city, "box": name}
        if name != box and not (lake.has("image_files", **where) and lake.has("image_metadata", **where)):
            continue
        metadata, files = (lake.read(table, None, **where) for table in ("image_metadata", "image_files"))
        metadata = metadata[metadata.tombstoned_at.isna()]  # the provider deleted the others
        files = pd.DataFrame(files[files.status == "done"][_OF_FILES])
        images = metadata.drop(columns=["width", "height"]).merge(files, on="image_id", how="inner")
        if len(images):
            found.append(images.assign(home_box=name))
    every = pd.concat(found, ignore_index=True) if found else _no_images().assign(home_box=pd.Series(dtype=str))
    every = with_best_position(every.drop_duplicates("image_id").reset_index(drop=True), options.gps_sigma_m)
    # A photo without a sequence has a camera of its own.
    every = every.assign(kind=kinds_of(every), sequence_id=every.sequence_id.fillna(every.image_id))
    bounds = grid.bounds(box).padded(effective_margin_m(options, grid.box_m))
    inside = (every.home_box == box) | bounds.contains(every.best_lon, every.best_lat)
    every = pd.DataFrame(every[every.sequence_id.isin(every.sequence_id[inside])])
    why = _why_not(every, grid.bounds(box).centre, options)
    around = pd.DataFrame(every[inside.loc[every.index]])
    why = pd.Series(why.loc[around.index])
    why.loc[_same_file(pd.DataFrame(around[why.isna()]), box)] = "duplicate"
    counts = {reason: int((why == reason).sum()) for reason in REASONS}
    return pd.DataFrame(around[why.isna()]).sort_values("image_id", kind="stable").reset_index(drop=True), counts


def inputs_digest(images: pd.DataFrame) -> str:
    """What a box's database is made of, as a digest: equal where making it anew would give the same.

    Args:
        images: the first answer of :func:`images_around`.
    """
    kept = images.loc[:, sorted(set(images.columns) - _OF_NO_MATTER)]
    return hashlib.sha256(
        str(kept.to_json(orient="split", index=False, double_precision=12, date_format="iso")).encode()
    ).hexdigest()[:16]


def _why_not(images: pd.DataFrame, centre: tuple[float, float], options: Reconstruct) -> pd.Series:
    """Why each image is left out, null where it is not."""
    why = pd.Series(None, index=images.index, dtype=object)

    def leave_out(which: pd.Series, reason: str) -> None:
        why.loc[which.index[which & why.loc[which.index].isna()]] = reason

    leave_out(images.best_lon.isna() | images.best_lat.isna(), "no_position")
    panorama = images.kind == SPHERICAL
    if options.panoramas == "off":
        leave_out(panorama, "panorama")
    whole = options.panoramas == "spherical"
    shapes = [fits(w, h, whole=whole) for w, h in zip(images.width, images.height, strict=True)]
    leave_out(panorama & ~pd.Series(shapes, index=images.index, dtype=bool), "panorama_shape")
    known = images.camera_parameters.map(lambda p: usable_parameters(p) is not None).astype(bool)
    known = known.groupby([images.sequence_id, images.width, images.height]).transform("any")
    leave_out((images.kind == FISHEYE) & ~known, "fisheye")
    left = pd.DataFrame(images[why.isna()])
    enu = LocalFrame(*centre).enu(left.best_lon.to_numpy(float), left.best_lat.to_numpy(float))
    # Travel says nothing of who stands, so the heading is the device's.
    heading = left.computed_compass_deg.astype(float).fillna(left.compass_deg.astype(float))
    left = left.assign(east_m=enu[..., 0], north_m=enu[..., 1], heading_deg=heading)
    for reason, which in superfluous(left, options.keep_every_m).items():
        leave_out(which, str(reason))
    left = pd.DataFrame(left[why.loc[left.index].isna()])
    left = left.sort_values("image_id", kind="stable")
    leave_out(left.duplicated(["home_box", "sha256"]) & left.sha256.notna(), "duplicate")
    return why


def _same_file(images: pd.DataFrame, box: str) -> pd.Index:
    """Rows whose file stays under another id; one of the box itself stays rather than one of its margin."""
    away = images.home_box != box
    ordered = images.assign(away=away).sort_values(["away", "image_id"], kind="stable")
    return ordered.index[ordered.duplicated(["sha256"]) & ordered.sha256.notna()]


def _no_images() -> pd.DataFrame:
    files = TABLES["image_files"].empty()[_OF_FILES]
    metadata = TABLES["image_metadata"].empty().drop(columns=["width", "height"])
    return metadata.merge(files, on="image_id", how="inner")
