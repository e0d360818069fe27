"""What must hold of the tables of a harvest, beside what holds of every table."""

from __future__ import annotations

from geo_assets.lake import Lake
from geo_assets.rules import Finding, Partition, Rule
from geo_assets.settings import load

_HAIR_DEG = 1e-9
"""Degrees are written as text in settings and rounded there."""


def box_faults(lake: Lake, partition: Partition) -> Finding:
    """Whether the box lies where the settings have it, and its counts can be."""
    (row,) = lake.read("bbox_partitions", None, **partition).to_dict("records")
    bounds = load().city(partition["city"]).grid.bounds(partition["box"]).as_list()
    found = [row[side] for side in ("west", "south", "east", "north")]
    return Finding(
        {
            "edges_elsewhere": sum(abs(a - b) > _HAIR_DEG for a, b in zip(found, bounds, strict=True)),
            "without_hash": int(not row["coverage_hash"]),
            "sequences_too_many": max(row["n_sequences"] - row["n_images"], 0),
        },
        {"n_images": row["n_images"]},
    )


def sequence_faults(lake: Lake, partition: Partition) -> Finding:
    """Images of sequences that the box does not list."""
    images = lake.read("sequence_images", ["image_id", "sequence_id"], **partition)
    listed = lake.read("sequence_ids", ["sequence_id"], **partition)["sequence_id"]
    named = images["sequence_id"].notna() & (images["sequence_id"] != "")
    return Finding(
        {"images_of_unlisted_sequences": int((named & ~images["sequence_id"].isin(listed)).to_numpy(bool).sum())},
        {"n_images": len(images), "n_sequences": len(listed)},
    )


def line_faults(lake: Lake, partition: Partition) -> Finding:
    """Lines that leave their box, or have no length."""
    import shapely

    lines = lake.read("sequence_paths", None, **partition)
    bounds = load().city(partition["city"]).grid.bounds(partition["box"])
    west, south, east, north = shapely.bounds(shapely.from_wkb(lines["geometry"].to_numpy())).reshape(-1, 4).T
    away = ~((west >= bounds.west) & (south >= bounds.south) & (east <= bounds.east) & (north <= bounds.north))
    return Finding(
        {"lines_outside": int(away.sum()), "lengths_below_0": int((~(lines["length_m"].to_numpy(float) >= 0)).sum())},
        {"n_lines": len(lines)},
    )


def city_faults(lake: Lake, partition: Partition) -> Finding:
    """Boxes of the city whose harvest is not complete."""
    (row,) = lake.read("city_certificates", None, **partition).to_dict("records")
    return Finding(
        {"boxes_incomplete": int(row["n_boxes"] - row["n_complete"])},
        {name: row[name] for name in ("n_boxes", "n_images", "n_unresolved")},
    )


BOX_IN_PLACE = Rule("box_is_in_place", "The box lies where the settings have it, and its counts can be.", box_faults)
SEQUENCES_LISTED = Rule(
    "sequences_are_listed", "Every image's sequence is one of the box's sequences.", sequence_faults
)
LINES_IN_BOX = Rule("lines_lie_in_box", "Every line lies in its box and has a length.", line_faults, blocking=False)
CITY_COMPLETE = Rule(
    "city_is_complete",
    "Every box of the city has a complete certificate; those that are not harvested yet have none.",
    city_faults,
    blocking=False,
)
