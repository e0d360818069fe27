"""Models of the boxes around whose place is settled, as far as they share cameras with a box.

A box that is mapped before its city was aligned is placed by its own positions alone: a neighbour placed the same
way is no better, and a chain of boxes, each held to the one before, would drift away from its positions. Once
``city_alignment`` has fitted all boxes together, a box that is built anew is held to its neighbours as aligned.
"""

from __future__ import annotations

from typing import Any

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import touching
from geo_assets.lake import Lake
from geo_assets.reconstruct.alignment import box_of, is_current, placed_parts, similarities_of
from geo_assets.reconstruct.frames import IDENTITY, Similarity, between_frames, quaternion_from_rotation

HELD_TO = "held_to"
"""Key in the note of ``sparse_models``: the neighbours that a box was held to when it was built."""


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
    for part in placed_parts(lake, city, [name for name in touching(box) if name != box]):
        shared = [k for k, image_id in enumerate(part.image_ids) if image_id in image_ids]
        move = _settled(lake, city, box_of(part), part.name, moves)
        if move is None or not shared:
            continue
        here = own.inverse().after(between_frames(frame, part.frame)).after(move)
        found.append(
            {
                "name": part.name,
                "origin": [frame.lon, frame.lat, frame.alt_m],
                "image_ids": [part.image_ids[k] for k in shared],
                "centres": here(part.centres[shared]).tolist(),
                "quaternions": [
                    quaternion_from_rotation(one).tolist() for one in part.rotations[shared] @ here.rotation.T
                ],
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
