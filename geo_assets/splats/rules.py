"""What must hold of a city's scene, beside what holds of every table."""

from __future__ import annotations

from geo_assets.lake import Lake
from geo_assets.rules import Finding, Partition, Rule


def scene_faults(lake: Lake, partition: Partition) -> Finding:
    """Boxes of the scene without a splat or a piece, and whether its pages are there; an empty city has no boxes."""
    boxes = lake.read("splat_city", None, **partition)
    folder = lake.key("splats_city", **partition)
    pages = ("tileset.json", "index.html", "globe.html") if len(boxes) else ()
    return Finding(
        {
            "pages_missing": [page for page in pages if not lake.exists(f"{folder}/{page}")],
            "splats_missing": [
                box for box, path in zip(boxes["box"], boxes["path"], strict=True) if not lake.exists(path)
            ],
            "boxes_without_pieces": int(((boxes["n_splats"] > 0) & (boxes["n_pieces"] == 0)).to_numpy(bool).sum()),
        },
        {"n_boxes": len(boxes)},
    )


SCENE_IS_WHOLE = Rule(
    "scene_is_whole",
    "The pages of the city's scene are there, and every box's splat and pieces.",
    scene_faults,
    blocking=False,
)
