"""Which images of a box are wanted as files: time, camera, author, strata, spacing along a sequence, a limit.

Metadata are kept of all images, so that filters can change without asking again. An image that lacks the datum a
filter asks about (a time, a maker, a position) is dropped by that filter: nobody can say that it is wanted.
"""

from __future__ import annotations

import collections
import datetime as dt
import hashlib
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.errors import ConfigError
from geo_assets.geodesy import LocalFrame
from geo_assets.harvest.aoi import read_strata, stratum_of
from geo_assets.harvest.lines import capture_order, column, creators, existing, legs_m
from geo_assets.harvest.metadata import position
from geo_assets.settings import Select

FILTERS = (
    "tombstone", "since", "until", "panorama", "make", "model", "organization", "creator", "spacing", "limit"
)  # fmt: skip
"""Names in ``dropped_by``, in the order in which they are applied: the first that drops an image is named."""

LIMIT_CELL_M = 25.0
"""The limit spreads images over cells of this size; wide boxes get larger ones, at most 64 a side."""
_CELLS_A_SIDE = 64
_ROUNDING_M = 1e-3  # images exactly one spacing apart are both wanted

Mask = npt.NDArray[np.bool_]


def select(metadata: pd.DataFrame, rules: Select) -> pd.DataFrame:
    """The stratum of each image, and the filter that keeps it out of ``image_files``.

    *Spacing* keeps the first wanted image of each sequence in the order of capture, then each that lies at least
    the spacing of its stratum further along the track than the last one kept. Distance is travelled, in geodesic
    metres through every image of the sequence in ``metadata``, whether wanted or not, so that other filters do not
    shorten the way; the last image of a sequence is not forced. A sequence begins anew in each box.

    *Limit* takes images in rounds: in each round one image of every cell of 25 m, of the sequence that the cell has
    given least of, else by the SHA-256 of the id; the last, incomplete round takes the cells that lie furthest from one
    another. The result does not depend on the order of the rows.

    Args:
        metadata: rows of table ``image_metadata`` of a box.
        rules: the filters.

    Returns:
        Columns ``stratum`` (null outside all) and ``dropped_by`` (one of :data:`FILTERS`, null where the image is
        selected) with the index of ``metadata``.

    Raises:
        ConfigError: the rules name a stratum that the polygons lack.
        SourceError: the strata cannot be read.
    """
    _check(rules)
    lon, lat = position(metadata)
    nowhere = np.full(len(metadata), None, dtype=object)
    stratum = stratum_of(rules.strata, lon, lat) if rules.strata is not None else nowhere
    dropped_by = nowhere.copy()
    for name, keep in _filters(metadata, rules).items():
        dropped_by[pd.isna(dropped_by) & ~keep] = name
    spacing_m = np.array([rules.stratum_spacing_m.get(name, rules.spacing_m) for name in stratum], float)
    wanted = np.asarray(pd.isna(dropped_by), bool)
    if (spacing_m > 0).any():
        kept = spaced(metadata, spacing_m, wanted)
        dropped_by[wanted & ~kept] = "spacing"
        wanted = kept
    if rules.limit and wanted.sum() > rules.limit:
        dropped_by[wanted & ~_spread(metadata, wanted, rules.limit)] = "limit"
    return pd.DataFrame(
        {"stratum": pd.Series(stratum, dtype=object), "dropped_by": pd.Series(dropped_by, dtype=object)}
    ).set_axis(metadata.index)


def figures(selection: pd.DataFrame) -> dict[str, int]:
    """How many images are selected and how many each filter dropped, for the metadata of an asset."""
    dropped = collections.Counter(selection["dropped_by"].dropna())
    counts = {f"n_dropped_by_{name}": dropped[name] for name in FILTERS if name in dropped}
    return {"n_selected": len(selection) - dropped.total(), **counts}


def statistics(metadata: pd.DataFrame) -> dict[str, Any]:
    """What a box or city holds, for the metadata of an asset; images that do not exist any more are counted apart.

    Args:
        metadata: rows of table ``image_metadata``.

    Returns:
        Counts of images, panoramas, flat images, sequences, authors and images with a corrected position; cameras,
        strata and filters by their counts; the first and last capture time in ISO 8601, where there is one.
    """
    images = existing(metadata)
    panorama = collections.Counter(images["is_pano"].dropna())
    times = pd.to_datetime(images["captured_at"], utc=True).dropna()
    corrected = images[["computed_lon", "computed_lat"]].notna().to_numpy(bool).all(axis=1)
    found: dict[str, Any] = {
        "n_images": len(images),
        "n_tombstones": len(metadata) - len(images),
        "n_panoramas": panorama[True],
        "n_flat": panorama[False],
        "n_sequences": len(set(images["sequence_id"].dropna())),
        "n_creators": len(set(creators(images).dropna())),
        "n_computed_positions": int(corrected.sum()),
        "n_without_time": len(images) - len(times),
        "makes": _most_frequent(column(images, "make")),
        "models": _most_frequent(column(images, "model")),
        "strata": _most_frequent(column(images, "stratum")),
        **figures(images),
    }
    if len(times):
        found |= {"first_at": times.min().isoformat(), "last_at": times.max().isoformat()}
    return found


def spaced(metadata: pd.DataFrame, spacing_m: npt.NDArray[np.float64], wanted: Mask) -> Mask:
    """Which wanted images keep their distance along their sequence [n].

    An image without a sequence stands for itself and is kept; one without a position is not, unless its spacing is 0.

    Args:
        metadata: rows of table ``image_metadata``.
        spacing_m: least way since the last image kept [n], metres; 0 keeps the image.
        wanted: which images may be kept [n]; the others are passed on the way.
    """
    lon, lat = position(metadata)
    placed = np.isfinite(lon) & np.isfinite(lat)
    in_sequence = metadata["sequence_id"].notna().to_numpy(bool)
    kept = wanted & np.where(in_sequence, spacing_m <= 0, placed | (spacing_m <= 0))
    rows = metadata.assign(_row=np.arange(len(metadata)))
    track = capture_order(rows.loc[placed & in_sequence])
    order = track["_row"].to_numpy(int)
    if not len(order):
        return kept
    first = np.r_[True, (track["sequence_id"].to_numpy()[1:] != track["sequence_id"].to_numpy()[:-1])]
    way = np.r_[0.0, np.cumsum(legs_m(lon[order], lat[order]))]
    last = -np.inf
    for row, begins, here in zip(order, first, way, strict=True):
        last = -np.inf if begins else last
        if wanted[row] and here - last >= spacing_m[row] - _ROUNDING_M:
            kept[row] = True
            last = here
    return kept


def _check(rules: Select) -> None:
    if not rules.stratum_spacing_m:
        return
    if rules.strata is None:
        raise ConfigError(
            f"select.stratum_spacing_m names {', '.join(rules.stratum_spacing_m)}, but select.strata names no GeoJSON file of polygons."
        )
    known = dict.fromkeys(name for name, _ in read_strata(rules.strata))
    if unknown := [name for name in rules.stratum_spacing_m if name not in known]:
        raise ConfigError(
            f"select.stratum_spacing_m names {', '.join(unknown)}, which {rules.strata} lacks; it has {', '.join(known)}."
        )


def _filters(metadata: pd.DataFrame, rules: Select) -> dict[str, Mask]:
    """Which images each filter that was asked for keeps [n], but for spacing and limit."""
    keep: dict[str, Callable[[], Any]] = {"tombstone": lambda: metadata["tombstoned_at"].isna()}
    captured = pd.to_datetime(metadata["captured_at"], utc=True)
    since, until = rules.since, rules.until
    if since is not None:
        keep["since"] = lambda: captured >= pd.Timestamp(_utc(since))
    if until is not None:
        keep["until"] = lambda: captured <= pd.Timestamp(_utc(until))
    if not rules.panoramas:
        keep["panorama"] = lambda: ~metadata["is_pano"].astype("boolean").fillna(True)
    if rules.makes:
        keep["make"] = lambda: _named(column(metadata, "make"), rules.makes)
    if rules.models:
        keep["model"] = lambda: _named(column(metadata, "model"), rules.models)
    if rules.organizations:
        keep["organization"] = lambda: metadata["organization_id"].isin(rules.organizations)
    if rules.creators:
        ids, names = metadata["creator_id"], metadata["creator_username"]
        keep["creator"] = lambda: ids.isin(rules.creators) | names.isin(rules.creators)
    return {name: np.asarray(mask(), bool) for name, mask in keep.items()}


def _utc(time: dt.datetime) -> dt.datetime:
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time


def _named(values: pd.Series, wanted: Collection[str]) -> pd.Series:
    folded = {name.strip().casefold() for name in wanted}
    return values.map(lambda value: isinstance(value, str) and value.strip().casefold() in folded).astype(bool)


def _most_frequent(values: pd.Series, most: int = 12) -> dict[str, int]:
    counts = collections.Counter(str(value) for value in values.dropna())
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:most])


# -- the limit ----------------------------------------------------------------------------------------------


def _spread(metadata: pd.DataFrame, wanted: Mask, limit: int) -> Mask:
    """``limit`` of the wanted images [n], spread over the ground and over sequences."""
    lon, lat = position(metadata)
    rows = np.flatnonzero(wanted & np.isfinite(lon) & np.isfinite(lat))
    kept = np.zeros(len(metadata), bool)
    if not len(rows):
        return kept
    cells, centres = _cells(lon[rows], lat[rows])
    images = pd.DataFrame({"row": rows, "cell": cells})
    images["sequence"] = metadata["sequence_id"].iloc[rows].astype(object).fillna("").to_numpy()
    images["draw"] = [hashlib.sha256(str(i).encode()).hexdigest() for i in metadata["image_id"].iloc[rows]]
    images = images.sort_values("draw", kind="stable")
    # Within a cell the first of each sequence, then the second of each, so that none crowds out another.
    images["turn"] = images.groupby(["cell", "sequence"]).cumcount()
    images = images.sort_values(["turn", "draw"], kind="stable")
    images["round"] = images.groupby("cell").cumcount()
    taken = images["round"].value_counts().sort_index().cumsum()
    whole = int((taken <= limit).sum())  # rounds that fit
    kept[images.loc[images["round"] < whole, "row"]] = True
    rest = images.loc[images["round"] == whole].sort_values("cell")
    places = centres[rest["cell"].to_numpy(int)]
    n_left = limit - int(kept.sum())
    kept[rest["row"].to_numpy(int)[_far_apart(places, n_left)]] = True
    return kept


def _cells(
    lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Number of the cell of each place [n], and the middles of the cells in metres [m, 2]."""
    ground = LocalFrame(float(lon.min()), float(lat.min())).enu(lon, lat)[:, :2]
    side_m = max(LIMIT_CELL_M, float(np.ptp(ground, axis=0).max()) / _CELLS_A_SIDE)
    corners, cells = np.unique(np.floor(ground / side_m).astype(np.int64), axis=0, return_inverse=True)
    return cells.ravel().astype(np.int64), (corners + 0.5).astype(np.float64) * side_m


def _far_apart(places: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """``count`` of the places [n, 2], each next one the furthest from those before; the first is nearest the middle."""
    chosen = np.zeros(count, np.int64)
    gap = -np.sum((places - places.mean(axis=0)) ** 2, axis=1) if count else np.empty(0)
    for k in range(count):
        chosen[k] = np.argmax(gap)
        distance = np.sum((places - places[chosen[k]]) ** 2, axis=1)
        gap = distance if k == 0 else np.minimum(gap, distance)
        gap[chosen[: k + 1]] = -1.0
    return chosen
