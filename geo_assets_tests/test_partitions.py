"""Boxes that touch, as Dagster maps them, with few boxes and with as many as are allowed."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from benchmarks.definitions import LIMIT_S, settings
from geo_assets.grid import Grid, touching
from geo_assets.partitions import box_key, city_boxes, partition_key
from geo_assets.settings import MAX_KEYS


def mapping(grid: Grid) -> tuple[dg.MultiPartitionsDefinition, dg.MultiPartitionMapping]:
    boxes, cities = dg.StaticPartitionsDefinition(list(grid)), dg.StaticPartitionsDefinition(["here", "there"])
    near = dg.DimensionPartitionMapping("box", dg.StaticPartitionMapping(grid.touching()))
    same = dg.DimensionPartitionMapping("city", dg.IdentityPartitionMapping())
    return (
        dg.MultiPartitionsDefinition({"city": cities, "box": boxes}),
        dg.MultiPartitionMapping({"city": same, "box": near}),
    )


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (3, 2), (4, 5)])
def test_the_boxes_that_touch_are_those_of_the_endless_grid_that_are_there(rows: int, columns: int) -> None:
    grid = Grid(0, 0, 1, rows, columns)
    assert grid.touching() == {box: [n for n in touching(box) if n in grid] for box in grid}


def test_a_box_reads_the_nine_around_it_among_the_most_boxes() -> None:
    grid = Grid(0, 0, 1, 125, 100)
    both, near = mapping(grid)
    assert len(both.get_partition_keys()) == MAX_KEYS
    asked = both.empty_subset().with_partition_keys(
        [partition_key("here", "r60c50"), partition_key("there", "r124c99")]
    )
    up = near.get_upstream_mapped_partitions_result_for_partitions(asked, both, both)
    down = near.get_downstream_partitions_for_partitions(asked, both, both)
    wanted = {partition_key("here", f"r{r}c{c}") for r in (59, 60, 61) for c in (49, 50, 51)}
    wanted |= {partition_key("there", f"r{r}c{c}") for r in (123, 124) for c in (98, 99)}
    assert set(up.partitions_subset.get_partition_keys()) == wanted == set(down.get_partition_keys())
    assert not list(up.required_but_nonexistent_subset.get_partition_keys())


def test_a_check_that_has_no_partitions_knows_its_box(tmp_path: Path) -> None:
    """Above ``SHOWN_BY_BOX`` boxes the checks have none."""

    @dg.asset(partitions_def=city_boxes)
    def anything() -> None:
        pass

    @dg.asset_check(asset=anything)
    def at_home(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True, metadata={"box": box_key(context).box})

    result = dg.materialize([anything, at_home], partition_key=partition_key("demo", "r01c00"))
    (said,) = result.get_asset_check_evaluations()
    assert said.passed and said.metadata["box"].value == "r01c00"


MANY = """
import time
from geo_assets.definitions import defs
from geo_assets.partitions import city_boxes
graph = defs.resolve_asset_graph()
by_box = [key for key in graph.asset_check_keys if graph.get(key).partitions_def == city_boxes]
print(len(city_boxes.get_partition_keys()), len(by_box), time.process_time())
"""


def test_the_code_location_loads_with_the_most_keys(tmp_path: Path) -> None:
    """Processor time, so that a busy machine does not decide; ``benchmarks/definitions.py`` has the rest."""
    file = settings(tmp_path / "geo_assets.toml", *[(50, 100)] * 5)
    environment = os.environ | {"GEO_ASSETS_SETTINGS": str(file)}
    done = subprocess.run([sys.executable, "-c", MANY], env=environment, capture_output=True, text=True, check=True)
    n_keys, n_by_box, seconds = done.stdout.split()[-3:]
    assert int(n_keys) == MAX_KEYS and int(n_by_box) == 0
    assert float(seconds) < LIMIT_S
