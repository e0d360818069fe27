"""What a person looks at after the joint fit: the cameras of all boxes, and how far neighbours disagreed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from geo_assets.pictures import figure_png
from geo_assets.reconstruct.alignment import box_of
from geo_assets.reconstruct.frames import Array, Similarity, between_frames
from geo_assets.reconstruct.joint import Part

_COLOURS = ("#2f6fb3", "#c8372d", "#3f9b4f", "#d98a29")
_BEFORE, _AFTER = "#9a9a9a", "#000000"


def border_map(parts: Sequence[Part], similarities: Mapping[str, Similarity]) -> bytes:
    """The cameras of all boxes from above, and lines between the places that two boxes give a shared one, as PNG.

    Grey lines are the disagreement before the fit, black ones what is left; both are drawn longer, so that they
    can be seen, by the factor that the title says.
    """
    frame = parts[0].frame
    before = [between_frames(frame, part.frame)(part.centres)[:, :2] for part in parts]
    after = [between_frames(frame, part.frame)(similarities[part.name](part.centres))[:, :2] for part in parts]
    figure = Figure(figsize=(5.2, 4.8), dpi=80, layout="constrained")
    axes = figure.subplots()
    colours = {box: _COLOURS[k % len(_COLOURS)] for k, box in enumerate(dict.fromkeys(box_of(p) for p in parts))}
    for part, places in zip(parts, after, strict=True):
        axes.scatter(*places.T, s=4, color=colours[box_of(part)], lw=0)
    places = np.vstack(after)
    was, left = _gaps(parts, before), _gaps(parts, after)
    reach = float(np.ptp(places, axis=0).max())
    longest = float(np.linalg.norm(was[:, 1], axis=1).max()) if len(was) else 0.0
    factor = float(np.clip(np.floor(0.08 * reach / max(longest, 1e-3)), 1, 100))
    for gaps, colour, width in ((was, _BEFORE, 0.8), (left, _AFTER, 1.0)):
        ends = np.stack([gaps[:, 0], gaps[:, 0] + factor * gaps[:, 1]], axis=1) if len(gaps) else []
        axes.add_collection(LineCollection(list(ends), colors=colour, linewidths=width))
    axes.legend(
        handles=[Line2D([], [], color=_BEFORE, label="before"), Line2D([], [], color=_AFTER, label="after")], fontsize=7
    )
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(f"cameras by box; disagreement about shared ones, drawn {factor:.0f} times", fontsize=8)
    axes.set_xlabel("east [m]", fontsize=7)
    axes.set_ylabel("north [m]", fontsize=7)
    axes.tick_params(labelsize=7)
    return figure_png(figure)


def _gaps(parts: Sequence[Part], places: Sequence[Array]) -> Array:
    """Where the first part has each shared camera, and from there to where another has it [n, 2, 2]."""
    first: dict[str, Array] = {}
    gaps = []
    for part, here in zip(parts, places, strict=True):
        for image_id, place in zip(part.image_ids, here, strict=True):
            if image_id in first:
                gaps.append((first[image_id], place - first[image_id]))
            else:
                first[image_id] = place
    return np.array(gaps).reshape(-1, 2, 2)
