"""Models of the boxes around whose place is settled, as far as they share cameras with a box.

A box that is mapped before its city was aligned is placed by its own positions alone: a neighbour placed the same
way is no better, and a chain of boxes, each held to the one before, would drift away from its positions. Once
``city_alignment`` has fitted all boxes together, a box that is built anew is held to its neighbours as aligned.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import touching
from geo_assets.lake import Lake
from geo_assets.reconstruct.alignment import is_current, similarities_of
from geo_assets.reconstruct.frames import (
    IDENTITY,
    Similarity,
    between_frames,
    quaternion_from_rotation,
    rotation_from_quaternion,
)

HELD_TO = "held_to"
"""Key in the note of ``sparse_models``: the neighbours that a box was held to when it was built."""

_PLACE, _QUATERNION = ["east_m", "north_m", "up_m"], ["qw", "qx", "qy", "qz"]


def settled_neighbours(
    lake: Lake, city: str, box: str, image_ids: set[str], frame: LocalFrame, *, as_published: bool = False
) -> list[dict[str, Any]]:
    """Placed models of the boxes around, with the cameras that a box could share with them, in the box's frame.

    Args:
        lake: the lake.
        city: name of the city.
        box: name of the box, which is not among the neighbours.
        image_ids: images of the box and its margin.
        frame: the box's frame.
        as_published: the box keeps its published poses, so the neighbours are moved to where they stand relative to
            these; none, if the city was not aligned since.

    Returns:
        For each model ``name`` (box/component), ``origin`` of the frame, ``image_ids``, ``centres`` [m] and
        ``quaternions`` (wxyz, camera from frame).
    """
    moves = similarities_of(lake.read_if_any("city_alignment", city=city))
    own = _settled(lake, city, box, f"{box}/0", moves) if as_published else IDENTITY
    if own is None:
        return []
    found = []
    for name in touching(box):
        if name == box or not lake.has("model_cameras", city=city, box=name):
            continue
        models = lake.read_if_any("sparse_models", city=city, box=name)
        cameras = lake.read("model_cameras", city=city, box=name)
        cameras = pd.DataFrame(cameras[cameras.image_id.isin(list(image_ids))])
        for model in pd.DataFrame(models[models.status == "placed"]).to_dict("records"):
            part = f"{name}/{model['component']}"
            rows = pd.DataFrame(cameras[cameras.component == model["component"]])
            move = _settled(lake, city, name, part, moves)
            if move is None or rows.empty:
                continue
            origin = LocalFrame(*(float(model[k]) for k in ("origin_lon", "origin_lat", "origin_alt_m")))
            here = own.inverse().after(between_frames(frame, origin)).after(move)
            turned = rotation_from_quaternion(rows[_QUATERNION].to_numpy(float)) @ here.rotation.T
            found.append(
                {
                    "name": part,
                    "origin": [frame.lon, frame.lat, frame.alt_m],
                    "image_ids": rows.image_id.to_list(),
                    "centres": here(rows[_PLACE].to_numpy(float)).tolist(),
                    "quaternions": [quaternion_from_rotation(one).tolist() for one in turned],
                }
            )
    return found


def _settled(lake: Lake, city: str, box: str, part: str, moves: dict[str, Similarity]) -> Similarity | None:
    """How a published model moves to its settled place; None where it has none yet."""
    if part in moves and is_current(lake, city, box):
        return moves[part]
    if lake.has("sparse_models", city=city, box=box) and lake.note("sparse_models", city=city, box=box).get(HELD_TO):
        return IDENTITY
    return None
