"""The sparse models of a box: what can be mapped, mapped and published with its place on the Earth."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.errors import ReconstructionError
from geo_assets.files import fresh_folder
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import BoxPartition, Lake
from geo_assets.reconstruct.block_runs import BlockMapper, BlockRun, block_rows
from geo_assets.reconstruct.cameras import image_name
from geo_assets.reconstruct.features import DATABASE, local_images
from geo_assets.reconstruct.frames import MIN_EXTENT_M, extent_m
from geo_assets.reconstruct.graph import components
from geo_assets.reconstruct.neighbours import HELD_TO, settled_neighbours
from geo_assets.reconstruct.quality import MAX_FOCAL_CHANGE, component_pairs, focal_change, largest_gap_m
from geo_assets.reconstruct.stage import StepAnswer, StepEnded, run_step
from geo_assets.settings import Reconstruct
from geo_assets.tables import TABLES

GEO_REFERENCE = "geo.json"

STATIC_BASELINE_M = 1.0
"""Verified pairs (median) closer than this show no parallax to speak of."""

_PANORAMIC = ("PANORAMIC", "PLANAR_OR_PANORAMIC")
_MIN_PRIORS = 3

Log = Callable[[str], None]


@dataclass(frozen=True)
class Models:
    """Rows of the three tables, the facts to keep with them, figures for people, and the points of a picture."""

    models: pd.DataFrame
    cameras: pd.DataFrame
    note: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 6)))  # [n, 6] east, north, up [m], red, green, blue
    blocks: pd.DataFrame = field(default_factory=lambda: TABLES["model_blocks"].empty())


@dataclass(frozen=True)
class Box:
    """What is known of a box before it is mapped.

    Attributes:
        where: the box.
        images: rows of ``gps_db``.
        pairs: rows of ``match_pairs``.
        note: facts kept with ``gps_db``.
    """

    where: BoxPartition
    images: pd.DataFrame
    pairs: pd.DataFrame
    note: dict[str, Any]

    @property
    def frame(self) -> LocalFrame:
        """The frame of the box."""
        return LocalFrame(*self.note["origin"])

    @property
    def verified(self) -> pd.DataFrame:
        """The pairs that mapping may believe."""
        return pd.DataFrame(self.pairs[self.pairs.verified.astype(bool) & self.pairs.quarantine.isna()])

    @property
    def counts(self) -> dict[str, int]:
        """Photos that could take part, and those of them that lie in the box."""
        photos = self.photos(self.images.image_id)
        return {"n_images": len(photos), "n_home_images": len(photos & self.home_photos)}

    @property
    def home_photos(self) -> set[str]:
        """Photos that lie in the box."""
        return self.photos(self.images.image_id[self.images.home_box == self.where["box"]])

    def photos(self, image_ids: Sequence[str] | pd.Series) -> set[str]:
        """The photos that images are or were cut from."""
        rows = self.images[self.images.image_id.isin(list(image_ids))]
        return set(rows.photo_id.fillna(rows.image_id))


def map_box(lake: Lake, city: str, box: str, options: Reconstruct, log: Log | None = None) -> Models:
    """Map the components of a box's verified graph and publish the models under ``files/models``.

    The folder holds ``0/``, ``1/``, ... (COLMAP binary, east-north-up metres) and ``geo.json`` with the frame.
    A box that was mapped before is brought up to date if little changed; see :mod:`.update`.
    A box that cannot be mapped gets one row that says why: ``too_few`` images, ``no_overlap`` between them,
    ``no_gps``, a ``static_scene``, or ``not_mapped``. Blocks that are finished when a run ends early are kept, and
    the next run goes on with them.

    Raises:
        GeoAssetsError: ``gps_db`` or ``match_pairs`` of the box is not there.
        ReconstructionError: COLMAP failed, or there is no room for its models.
    """
    where = BoxPartition(city=city, box=box)
    images, pairs = lake.read("gps_db", None, **where), lake.read("match_pairs", None, **where)
    here = Box(where, images, pairs, lake.note("gps_db", **where))
    status = cannot_be_mapped(here, options)
    if status is not None:
        return _nothing(here, *status)
    if images.empty:
        return Models(TABLES["sparse_models"].empty(), TABLES["model_cameras"].empty(), here.note, here.counts)
    from geo_assets.reconstruct.update import brought_up_to_date  # it builds on this module

    tell = _one_at_a_time(log)
    try:
        made, why = brought_up_to_date(lake, here, options, tell)
        if made is not None:
            return made
        tell(f"building anew: {why}")
        made = rebuilt(lake, here, options, tell)
        return replace(made, figures=made.figures | {"route": f"rebuilt: {why}"})
    except OSError as error:
        raise ReconstructionError(
            f"The models of box {box} could not be written: {error.strerror or error}. "
            "Make room and run sparse_models again; its finished blocks are kept."
        ) from error


def cannot_be_mapped(here: Box, options: Reconstruct) -> tuple[str, str] | None:
    """The status of a box that need not be tried, and the reason; None for all others."""
    images = here.images
    nowhere = int(here.note.get("left_out", {}).get("no_position", 0))
    if images.empty:
        return ("no_gps", f"none of {nowhere:,} photos has a position") if nowhere else None
    n = here.counts["n_images"]
    if n < options.min_images:
        return "too_few", f"{n} images; {options.min_images} are needed"
    n_known = len(images.dropna(subset=["east_m", "north_m", "up_m"]))
    if n_known < _MIN_PRIORS:
        return "no_gps", f"{n_known} of {n:,} images have a position; {_MIN_PRIORS} are needed"
    if not mappable(images, here.verified, options.min_images):
        return "no_overlap", "no verified pairs tie enough images together"
    return None


def rebuilt(lake: Lake, here: Box, options: Reconstruct, log: Log) -> Models:
    """The models of a box made from its verified pairs alone."""
    from geo_assets.reconstruct.update import describe, manifest_of  # it builds on this module

    groups = mappable(here.images, here.verified, options.min_images)
    key = lake.key("models", **here.where)
    with contextlib.ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="geo_assets_models_")))
        matches = opened.enter_context(lake.local(lake.key("matches", **here.where)))
        mapper = BlockMapper(lake, here.where, here.images, here.verified, matches / DATABASE, scratch, options, log)
        runs = mapper.map(groups)
        folders = {run.key: opened.enter_context(lake.local(mapper.folder_of(run.key))) for run in runs if run.models}
        published = scratch / "published"
        published.mkdir()
        said = _joined(lake, here, runs, folders, scratch, published, options, log)
        if said["models"]:
            (published / GEO_REFERENCE).write_text(json.dumps(geo_reference(here.frame), indent=1))
            describe(published, manifest_of(here.images, here.verified, here.note["origin"], options), said["points"])
            lake.publish(published, key)
    mapper.forget()
    return _as_models(here, groups, runs, said, key)


def _joined(
    lake: Lake,
    here: Box,
    runs: Sequence[BlockRun],
    folders: dict[str, Path],
    scratch: Path,
    published: Path,
    options: Reconstruct,
    log: Log,
) -> StepAnswer:
    """Models of blocks joined to components and placed, in a process of its own.

    Where joining is too much for it, the models of blocks stand side by side, each in its place.
    """
    parts: dict[int, list[dict[str, Any]]] = {}
    for run in runs:
        if run.models:
            models = [{"folder": str(folders[run.key] / m["folder"]), "mapper": m["mapper"]} for m in run.models]
            own = [image_name(i) for i in run.block.own]
            parts.setdefault(run.component, []).append({"key": run.key, "own": own, "models": models})
    if not parts:
        return StepAnswer(models=[], cameras=[], points=[])
    keys = here.images[["image_id", "path"]]
    local_images(lake, zip(keys.image_id, keys.path, strict=True), scratch / "images")
    n_joined = sum(len(blocks) > 1 for blocks in parts.values())
    log(f"placing {len(parts):,} components, {n_joined:,} of them joined from blocks")
    arguments = {
        "components": [{"number": number, "blocks": blocks} for number, blocks in sorted(parts.items())],
        "images": prior_records(here.images),
        "origin": here.note["origin"],
        "neighbours": settled_neighbours(lake, **here.where, image_ids=set(here.images.image_id), frame=here.frame),
        "images_folder": str(scratch / "images"),
        "out": str(published),
        "seed": options.seed,
    }
    try:
        return run_step("join_blocks", arguments, scratch, log=log)
    except StepEnded as error:
        if error.by == "signal" or not n_joined:
            raise
        log("joining the blocks was too much for one process; each block becomes a model of its own")
        for folder in (published, scratch / "joined"):
            fresh_folder(folder)
        return run_step("join_blocks", arguments | {"merge": False}, scratch, log=log)


def mappable(images: pd.DataFrame, verified: pd.DataFrame, min_images: int) -> list[list[str]]:
    """Image ids of each component of the verified graph that has enough images, the largest first.

    Views of one frame belong together, whether a pair ties them or not.
    """
    ids = images.image_id.to_list()
    views = images[images.frame_id.notna() & images.frame_id.duplicated(keep=False)]
    first = views.groupby("frame_id").image_id.transform("first")
    a, b = [*verified.image_id_a, *first], [*verified.image_id_b, *views.image_id]
    groups = pd.Series(ids).groupby(components(ids, a, b)).agg(list)
    photos = images.photo_id.fillna(images.image_id).set_axis(ids)
    wanted = (sorted(g) for g in groups if photos.loc[g].nunique() >= max(min_images, 3))
    return sorted(wanted, key=lambda g: (-len(g), g))


def geo_reference(frame: LocalFrame) -> dict[str, Any]:
    """What a reader needs to place the models on the Earth: the origin and the transform to ECEF metres, row-major."""
    return {
        "crs": "EPSG:4979",
        "origin": {"lon": frame.lon, "lat": frame.lat, "alt_m": frame.alt_m},
        "axes": "east, north, up [m]",
        "ecef_from_enu": frame.ecef_from_enu.tolist(),
    }


def camera_rows(rows: list[dict[str, Any]], images: pd.DataFrame, frame: LocalFrame) -> pd.DataFrame:
    """Rows of ``model_cameras``: an image that two models hold stands with the larger one."""
    columns = TABLES["model_cameras"].column_names
    if not rows:
        return TABLES["model_cameras"].empty()
    cameras = pd.DataFrame(rows).sort_values("component", kind="stable").drop_duplicates("image_id")
    lon, lat, alt = frame.geodetic(cameras[["east_m", "north_m", "up_m"]].to_numpy())
    cameras = cameras.assign(lon=lon, lat=lat, alt_m=alt)
    return pd.DataFrame(cameras.merge(images[["image_id", "home_box"]], on="image_id")[columns])


def model_rows(here: Box, rows: list[dict[str, Any]], key: str) -> pd.DataFrame:
    """Rows of ``sparse_models``: the components' figures with the frame and the folder of each."""
    home = here.home_photos
    found = []
    for row in rows:
        photos = here.photos(row["image_ids"])
        pairs = component_pairs(here.pairs, row["image_ids"])
        changed = focal_change({int(k): v for k, v in row["focals"].items()}, here.images)
        reasons = [row["reason"]] if row["reason"] else []
        if changed > MAX_FOCAL_CHANGE:
            reasons.append(f"a focal length changed by {changed:.0%} against what was known of it")
        found.append(
            row
            | {
                "reason": "; ".join(reasons) or None,
                "route": "rebuilt",
                "n_registered": len(photos),
                "n_home_registered": len(photos & home),
                "n_pairs": pairs.n_pairs,
                "n_verified": pairs.n_verified,
                "focal_change": changed,
                "largest_gap_m": largest_gap_m(here.images, row["image_ids"]),
                "path": f"{key}/{row['component']}",
            }
        )
    return _rows(here, found)


def figures_of(here: Box, models: pd.DataFrame) -> dict[str, Any]:
    """What a person wants to know of a box's models."""
    placed = models[models.status == "placed"]
    best = placed.iloc[0] if len(placed) else None
    counts = here.counts
    figures: dict[str, Any] = counts | {
        "n_components": len(models),
        "n_placed": len(placed),
        "n_home_registered": int(placed.n_home_registered.sum()),
        "registered_share": round(float(placed.n_home_registered.sum()) / max(counts["n_home_images"], 1), 4),
        "statuses": ", ".join(models.status.astype(str)),
    }
    if best is not None:
        figures |= {
            name: round(float(best[name]), 3)
            for name in ("reprojection_px", "track_length", "gps_median_m", "gps_vertical_m", "roll_deg")
        } | {"n_points": int(best.n_points), "mapper": best.mapper}
    if models.border_m.notna().any():
        figures["border_m"] = round(float(models.border_m.max()), 3)
    return figures


def _as_models(
    here: Box, groups: Sequence[Sequence[str]], runs: Sequence[BlockRun], said: StepAnswer, key: str
) -> Models:
    """Rows, figures and the picture's points of what was mapped, and of what was not."""
    of_component = pd.DataFrame([run.row for run in runs]).groupby("component")
    mapping = of_component.cpu_seconds.sum()
    peak = of_component.peak_mb.max()
    n_joined = sum(len(row["image_ids"]) for row in said["models"])
    for row in said["models"]:
        # Joining and placing is paid by image.
        share = len(row["image_ids"]) / max(n_joined, 1)
        same = [len(other["image_ids"]) for other in said["models"] if other["part_of"] == row["part_of"]]
        mapped = mapping[row["part_of"]] * len(row["image_ids"]) / sum(same)
        row |= {"cpu_seconds": round(mapped + share * said.cpu_seconds, 3)}
        row |= {"peak_mb": round(max(float(peak[row["part_of"]]), said.peak_mb), 1)}
    models = model_rows(here, said["models"], key)
    lost = sorted(set(range(len(groups))) - {row["part_of"] for row in said["models"]})
    rows = [_lost(here, groups[n], runs, n, len(models) + k) for k, n in enumerate(lost)]
    for row, n in zip(rows, lost, strict=True):
        row |= {"cpu_seconds": float(mapping[n]), "peak_mb": float(peak[n])}
    models = pd.concat([models, _rows(here, rows)], ignore_index=True) if rows else models
    blocks = block_rows(runs)
    figures = figures_of(here, models) | {
        "n_blocks": int((blocks.status != "split").sum()),
        "n_blocks_split": int((blocks.status == "split").sum()),
        "n_blocks_resumed": int(blocks.resumed.sum()),
        "cpu_seconds": round(float(blocks.cpu_seconds.sum()) + said.cpu_seconds, 1),
        "n_outside_components": len(here.photos(here.images.image_id) - here.photos([i for g in groups for i in g])),
    }
    held_to = sorted({n for row in said["models"] if "refused_fit_m" not in row for n in row["neighbours"]})
    if held_to:
        figures["fitted_to"] = ", ".join(held_to)
    figures |= given_figures([asked for run in runs for asked in run.given[:1]])
    refused = [row["refused_fit_m"] for row in said["models"] if "refused_fit_m" in row]
    if refused:
        figures["fit_to_neighbours"] = (
            f"refused: it would have put half of the cameras {max(refused):.1f} m or more from their positions"
        )
    cameras = camera_rows(said["cameras"], here.images, here.frame)
    points = np.array(said["points"], float).reshape(-1, 6)
    return Models(models, cameras, here.note | {HELD_TO: held_to}, figures, points, blocks)


def given_figures(asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the provider's own poses were worth, over the blocks that have them."""
    if not asked:
        return {}
    found: dict[str, Any] = {
        "given_blocks": len(asked),
        "given_blocks_used": sum(one["used"] for one in asked),
        "given_images": sum(one["n_given"] for one in asked),
        "given_reason": "; ".join(dict.fromkeys(one["reason"] for one in asked)),
    }
    for name in ("given_epipolar_px", "given_rotation_deg", "given_direction_deg"):
        known = [one[name] for one in asked if one[name] is not None]
        if known:
            found[name] = round(float(np.median(known)), 3)
    return found


def _lost(here: Box, group: Sequence[str], runs: Sequence[BlockRun], number: int, component: int) -> dict[str, Any]:
    """The row of a component of which no mapper made a model."""
    inside = component_pairs(here.pairs, group)
    reasons = list(dict.fromkeys(run.reason for run in runs if run.component == number and run.reason))
    why_static = _static_because(here, group)
    row: dict[str, Any] = {"component": component, "route": "rebuilt", "n_registered": 0, "n_home_registered": 0}
    row |= {"n_points": 0, "n_pairs": inside.n_pairs, "n_verified": inside.n_verified}
    row |= {"n_blocks": sum(run.component == number and run.status != "split" for run in runs)}
    if why_static is not None:
        return row | {"status": "static_scene", "reason": why_static}
    return row | {"status": "not_mapped", "reason": f"{len(here.photos(group))} images: " + "; ".join(reasons)}


def _static_because(here: Box, group: Sequence[str]) -> str | None:
    """Why images that verified pairs tie together show nothing in depth; None where they should."""
    ids = set(group)
    places = pd.DataFrame(here.images[here.images.image_id.isin(ids)])[["east_m", "north_m"]].to_numpy(float)
    places = places[np.isfinite(places).all(axis=1)]
    extent = extent_m(places)
    if extent < MIN_EXTENT_M:
        return f"all cameras stand within {extent:.1f} m; a model needs {MIN_EXTENT_M:.0f} m"
    inside = here.verified[here.verified.image_id_a.isin(ids) & here.verified.image_id_b.isin(ids)]
    apart = float(inside.distance_m.median())
    if apart < STATIC_BASELINE_M:
        return f"verified pairs are {apart:.1f} m apart (median): the camera stands, or what it sees moves with it"
    turned = float(inside.geometry.isin(_PANORAMIC).mean())
    if turned >= 0.5:
        return f"{turned:.0%} of the verified pairs differ by a turn of the camera alone"
    return None


def _nothing(here: Box, status: str, reason: str) -> Models:
    row = {"component": 0, "status": status, "reason": reason, "route": "rebuilt"}
    models = _rows(here, [row | {"n_registered": 0, "n_home_registered": 0, "n_points": 0, "n_blocks": 0}])
    figures = here.counts | {"status": status, "reason": reason, "registered_share": 0.0}
    return Models(models, TABLES["model_cameras"].empty(), here.note, figures)


def _rows(here: Box, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows of ``sparse_models`` with what holds for all of a box."""
    frame = here.frame
    origin = {"origin_lon": frame.lon, "origin_lat": frame.lat, "origin_alt_m": frame.alt_m}
    columns = TABLES["sparse_models"].column_names
    return TABLES["sparse_models"].frame([{k: (row | here.counts | origin).get(k) for k in columns} for row in rows])


def prior_records(images: pd.DataFrame) -> list[dict[str, Any]]:
    """For each image its ``name``, its numbers in COLMAP, prior position and standard deviations [m]."""
    columns = ["image_id", "colmap_image_id", "camera_id", "east_m", "north_m", "up_m", "sigma_xy_m", "sigma_z_m"]
    rows = json.loads(str(pd.DataFrame(images[columns]).to_json(orient="records", double_precision=15)))
    return [row | {"name": image_name(row["image_id"])} for row in rows]


def _one_at_a_time(log: Log | None) -> Log:
    """A log that several threads may write to."""
    lock = threading.Lock()

    def tell(line: str) -> None:
        if log is not None:
            with lock:
                log(line)

    return tell
