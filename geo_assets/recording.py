"""What was harvested outside of Dagster, told to its instance, so that the UI shows it as materialized."""

from __future__ import annotations

from typing import Any

import dagster as dg

from geo_assets.lake import Lake
from geo_assets.partitions import partition_key
from geo_assets.settings import load

_TABLES = ("bbox_partitions", "sequence_ids", "image_metadata", "image_files")


def record_harvest(city: str) -> int:
    """Report each table of a city's boxes that is newer than what the instance knows; how many were reported."""
    lake, n = Lake(load().lake), 0
    with dg.DagsterInstance.get() as instance:
        for table in _TABLES:
            known = _recorded(instance, table)
            for partition in lake.partitions(table):
                if partition["city"] != city:
                    continue
                key = partition_key(city, partition["box"])
                if known.get(str(key), 0.0) >= lake.written_at(table, **partition):
                    continue
                metadata: dict[str, Any] = {
                    "dagster/row_count": lake.rows(table, **partition),
                    "by": "geo-assets harvest",
                }
                event = dg.AssetMaterialization(table, partition=key, metadata=metadata)
                instance.report_runless_asset_event(event)
                n += 1
    return n


def _recorded(instance: dg.DagsterInstance, table: str) -> dict[str, float]:
    """When each partition was materialized last [s since the epoch]."""
    asset = dg.AssetKey(table)
    ids = instance.get_latest_storage_id_by_partition(asset, dg.DagsterEventType.ASSET_MATERIALIZATION)
    times: dict[str, float] = {}
    for partition in ids:
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[partition]), limit=1
        ).records
        if records:
            times[partition] = records[0].timestamp
    return times
