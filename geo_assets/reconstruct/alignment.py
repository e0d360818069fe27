"""All boxes of a city brought to one place together: how each box's models move, and what is left at the borders.

A box is placed when it is mapped, by its own positions, so neighbours may stand metres apart. Once all are there, one
fit over all of them closes the borders and uses the positions of the whole city.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.reconstruct.frames import (
    Similarity,
    between_frames,
    quaternion_from_rotation,
    roll_deg,
    rotation_from_quaternion,
)
from geo_assets.reconstruct.joint import FEW_SHARED, Part, disagreements, solve
from geo_assets.tables import TABLES


@dataclass(frozen=True)
class CityAlignment:
    """Rows of ``city_alignment`` and ``border_disagreement``, figures, and what a picture needs."""

    rows: pd.DataFrame
    borders: pd.DataFrame
    figures: dict[str, Any]
    parts: list[Part] = field(default_factory=list)
    similarities: dict[str, Similarity] = field(default_factory=dict)


def align_city(lake: Lake, city: str, boxes: Iterable[str], log: Callable[[str], None] | None = None) -> CityAlignment:
    """Solve for all placed models of a city together; nothing that is published moves.

    Args:
        lake: holds ``sparse_models``, ``model_cameras`` and ``gps_db`` of the boxes; boxes without are left out.
        city: name of the city.
        boxes: names of its boxes.
        log: gets a line of progress.
    """
    names = list(boxes)
    parts = placed_parts(lake, city, names)
    if not parts:
        empty = TABLES["city_alignment"].empty(), TABLES["border_disagreement"].empty()
        return CityAlignment(*empty, {"n_boxes": 0, "n_components": 0, "n_borders": 0})
    if log is not None:
        log(f"fitting {len(parts):,} models with {sum(len(p.image_ids) for p in parts):,} cameras to each other")
    similarities = solve(parts)
    found = disagreements(parts, similarities)
    shared = pd.concat([pd.DataFrame({"image": p.image_ids, "part": p.name}) for p in parts])
    n_shared = shared[shared.image.duplicated(keep=False)].part.value_counts().to_dict()
    rows = [_row(part, similarities[part.name], int(n_shared.get(part.name, 0))) for part in parts]
    figures = {
        "n_boxes": len({box_of(part) for part in parts}),
        "n_components": len(parts),
        "n_cameras": int(shared.image.nunique()),
    }
    figures |= border_figures(found) | _lost_figures(lake, city, names, set(shared.image))
    return CityAlignment(TABLES["city_alignment"].frame(rows), border_rows(found), figures, parts, similarities)


def placed_parts(lake: Lake, city: str, boxes: Iterable[str]) -> list[Part]:
    """The placed models of boxes with the positions of their cameras; each part is named ``<box>/<component>``."""
    parts = []
    for box in boxes:
        where = {"city": city, "box": box}
        models = lake.read_if_any("sparse_models", None, **where)
        models = models.query("status == 'placed'").sort_values("component")
        if models.empty:
            continue
        cameras = lake.read("model_cameras", None, **where)
        priors = _priors(lake, city, box, LocalFrame(*models[_ORIGIN].to_numpy(float)[0]))
        for component, origin in zip(models.component, models[_ORIGIN].to_numpy(float), strict=True):
            group = cameras.query(f"component == {int(component)}").sort_values("image_id")
            ids = group.image_id.astype(str).to_list()
            known = priors.reindex(ids)
            if ids:
                parts.append(
                    Part(
                        f"{box}/{component}",
                        ids,
                        group[_PLACE].to_numpy(float),
                        rotation_from_quaternion(group[_QUATERNION].to_numpy(float)),
                        known[_PLACE].to_numpy(float),
                        known[["sigma_xy_m", "sigma_xy_m", "sigma_z_m"]].to_numpy(float),
                        LocalFrame(*origin),
                    )
                )
    return parts


def similarities_of(rows: pd.DataFrame) -> dict[str, Similarity]:
    """The similarities of rows of ``city_alignment``, by the names of the parts."""
    turns = rotation_from_quaternion(rows[_QUATERNION].to_numpy(float).reshape(-1, 4))
    shifts = rows[_PLACE].to_numpy(float)
    names = [f"{box}/{component}" for box, component in zip(rows.box, rows.component, strict=True)]
    scales = rows.scale.astype(float).to_list() if len(rows) else []
    return {
        name: Similarity(scale, turn, shift)
        for name, scale, turn, shift in zip(names, scales, turns, shifts, strict=True)
    }


def is_current(lake: Lake, city: str, box: str) -> bool:
    """Whether the city's alignment is of the models that the box has now."""
    if not (lake.has("city_alignment", city=city) and lake.has("sparse_models", city=city, box=box)):
        return False
    return lake.written_at("city_alignment", city=city) >= lake.written_at("sparse_models", city=city, box=box)


def box_of(part: Part) -> str:
    """The box of a part."""
    return part.name.split("/")[0]


def border_rows(found: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``border_disagreement`` of a result of :func:`geo_assets.reconstruct.joint.disagreements`."""
    rows = []
    for row in found.to_dict("records"):
        (box_a, component_a), (box_b, component_b) = (str(row[key]).split("/") for key in ("name_a", "name_b"))
        ends = {"box_a": box_a, "component_a": int(component_a), "box_b": box_b, "component_b": int(component_b)}
        rows.append(ends | {key: row[key] for key in ("n_shared", "before_m", "median_m", "max_m")})
    return TABLES["border_disagreement"].frame(rows)


def border_figures(found: pd.DataFrame) -> dict[str, Any]:
    """The borders in numbers: how many hold, and the worst before and after."""
    held = found[found.n_shared >= FEW_SHARED]
    figures: dict[str, Any] = {"n_borders": len(found), "n_borders_held": len(held)}
    if held.empty:
        return figures
    worst = held.loc[held.median_m.astype(float).idxmax()]
    return figures | {
        "worst_border_before_m": round(float(held.before_m.max()), 4),
        "worst_border_m": round(float(held.median_m.max()), 4),
        "median_border_m": round(float(held.median_m.median()), 4),
        "worst_border": f"{worst.name_a} and {worst.name_b}",
    }


def worst_border_m(borders: pd.DataFrame) -> float:
    """Largest median disagreement [m] over the rows of ``border_disagreement`` that share enough cameras to judge."""
    return float(borders.median_m[borders.n_shared >= FEW_SHARED].to_numpy(float).max(initial=0.0))


_PLACE = ["east_m", "north_m", "up_m"]
_QUATERNION = ["qw", "qx", "qy", "qz"]
_ORIGIN = ["origin_lon", "origin_lat", "origin_alt_m"]


def _priors(lake: Lake, city: str, box: str, frame: LocalFrame) -> pd.DataFrame:
    """Positions of a box's images in a frame, with their standard deviations, by image id."""
    images = lake.read_if_any("gps_db", ["image_id", *_PLACE, "sigma_xy_m", "sigma_z_m"], city=city, box=box)
    if images.empty:
        return images.set_index("image_id")
    origin = LocalFrame(*lake.note("gps_db", city=city, box=box)["origin"])
    # Images that came later may have moved the height of the box's origin.
    images[_PLACE] = between_frames(frame, origin)(images[_PLACE].to_numpy(float))
    return images.drop_duplicates("image_id").set_index("image_id")


def _row(part: Part, similarity: Similarity, n_shared: int) -> dict[str, Any]:
    moved = similarity(part.centres)
    box, component = part.name.split("/")
    return {
        "box": box,
        "component": int(component),
        "scale": similarity.scale,
        **dict(zip(_QUATERNION, quaternion_from_rotation(similarity.rotation).tolist(), strict=True)),
        **dict(zip(_PLACE, similarity.translation.tolist(), strict=True)),
        "moved_m": float(np.median(np.linalg.norm(moved - part.centres, axis=1))),
        "n_shared": n_shared,
        "gps_median_m": part.gps_median_m(similarity),
        "roll_deg": roll_deg(part.rotations @ similarity.rotation.T),
    }


def _lost_figures(lake: Lake, city: str, boxes: Iterable[str], placed: set[str]) -> dict[str, int]:
    """Components without a place, and how many images of their boxes stand in a neighbour's model all the same."""
    n_unplaced, elsewhere = 0, 0
    for box in boxes:
        models = lake.read_if_any("sparse_models", ["status"], city=city, box=box)
        n_here = int((models.status == "unplaced").sum())
        if n_here:
            n_unplaced += n_here
            own = set(lake.read("model_cameras", ["image_id"], city=city, box=box).image_id)
            images = set(lake.read_if_any("gps_db", ["image_id"], city=city, box=box).image_id)
            elsewhere += len((images - own) & placed)
    return {"n_unplaced": n_unplaced, "n_unplaced_images_seen_by_neighbours": elsewhere}
