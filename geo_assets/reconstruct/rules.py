"""What must hold of the city's model, beside what holds of every table and what the gates say of its boxes."""

from __future__ import annotations

from geo_assets.lake import Lake
from geo_assets.rules import Finding, Partition, Rule


def city_model_faults(lake: Lake, partition: Partition) -> Finding:
    """Whether the model that the row names is there, at its place and sharp; a city without models has no row."""
    from geo_assets.reconstruct.quality import MAX_REPROJECTION_PX

    rows = lake.read("city_model", None, **partition)
    blurred = ~(rows["reprojection_px"].to_numpy(float) <= MAX_REPROJECTION_PX)
    return Finding(
        {
            "models_missing": sum(not lake.exists(path) for path in rows["path"]),
            "above_1.5_px": int(blurred.sum()),
            "without_place": int(
                rows[["origin_lon", "origin_lat", "origin_alt_m"]].isna().to_numpy(bool).any(axis=1).sum()
            ),
        },
        {"n_models": len(rows)},
    )


CITY_MODEL_STANDS = Rule(
    "city_model_stands",
    "The city's model is there, has a place, and a mean reprojection error of at most 1.5 px.",
    city_model_faults,
    blocking=False,
)
