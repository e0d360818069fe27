"""Pools, retries, needs, freshness and tags: every asset has what its kind of work asks for."""

from __future__ import annotations

import contextlib
import importlib.resources
import json

import dagster as dg
import pytest
import yaml

from geo_assets.definitions import build, defs
from geo_assets.errors import ApiError
from geo_assets.partitions import landmark_ranges, partition_key
from geo_assets.policies import FRESHNESS, POOLS, STAGES
from geo_assets.resources import ImageryResource, LakeResource

GRAPH = defs.resolve_asset_graph()
NODES = {key.to_user_string(): GRAPH.get(key) for key in GRAPH.materializable_asset_keys}
HEAVY = {"gps_db", "match_pairs", "sparse_models", "splat_ply", "splat_city", "hdbscan_model", "geotag_combined"}


def test_every_step_that_is_heavy_or_asks_others_has_a_pool() -> None:
    pools = {name: set(node.pools or ()) for name, node in NODES.items()}
    assert set().union(*pools.values()) == set(POOLS)
    assert all(pools[name] for name in HEAVY)
    cost = {name: node.tags["cost"] for name, node in NODES.items()}
    assert all(cost[name] == (POOLS[next(iter(own))].cost if own else "cheap") for name, own in pools.items())
    assert not any(pools[name] for name, node in NODES.items() if node.group_name in ("staging", "marts"))


def test_only_what_asks_others_is_repeated_and_heavy_steps_say_what_they_need() -> None:
    repository = defs.get_repository_def()
    for name in NODES:
        asset = repository.assets_defs_by_key[dg.AssetKey(name)]
        pool = asset.op.pool
        assert (asset.op.retry_policy is not None) == (pool in ("mapillary", "wikimedia")), name
        tags = asset.op.tags
        if pool is None:
            assert "dagster-k8s/config" not in tags
            continue
        assert tags["dagster-celery/queue"] == pool
        config = json.loads(tags["dagster-k8s/config"])
        resources = config["container_config"]["resources"]
        assert resources["requests"]["memory"] == f"{POOLS[pool].memory_gib}Gi"
        # The embedded engine needs no GPU, and a pod that asks for one would wait for ever where there is none.
        assert ("nvidia.com/gpu" in resources["limits"]) == bool(POOLS[pool].gpus)


def test_a_gpu_is_asked_for_where_an_engine_needs_it() -> None:
    from dataclasses import replace

    tags = replace(POOLS["gpu"], gpus=1).tags("gpu")
    assert tags["dagster-k8s/config"]["container_config"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert tags["dagster-ray/config"]["num_gpus"] == 1


def test_a_laptop_runs_one_step_of_a_pool_at_a_time() -> None:
    text = importlib.resources.files("geo_assets.deploy").joinpath("dagster.yaml").read_text()
    instance = yaml.safe_load(text)
    assert instance["concurrency"] == {
        "pools": {"granularity": "op", "default_limit": 1},
        "runs": {"max_concurrent_runs": 4},
    }
    assert instance["run_monitoring"]["enabled"]


def test_groups_have_a_stage_and_a_freshness() -> None:
    groups = {node.group_name for node in NODES.values()}
    assert groups == set(STAGES) and groups <= set(FRESHNESS)
    assert set(FRESHNESS) - groups <= set(NODES), "a policy of an asset that is not there"
    has = {name: node.freshness_policy is not None for name, node in NODES.items()}
    assert all(has[name] for name, node in NODES.items() if node.group_name in ("harvest", "staging", "marts"))
    assert not any(has[name] for name, node in NODES.items() if node.group_name in ("reconstruct", "splats"))
    assert has["hierarchy_centroids"] and has["landmark_coordinates"] and not has["flickr_geotag"]


# -- retries ------------------------------------------------------------------------------------------------


def error(kind: str) -> Exception:
    """An answer that will not change, one that may, and a mistake of ours."""
    if kind == "bug":
        return KeyError("lon")
    failed = ApiError("limit reached" if kind == "transient" else "no such token", status=500)
    failed.may_pass = kind == "transient"
    return failed


class Wires:
    """Fails at the first attempt, and counts attempts."""

    def __init__(self, kind: str) -> None:
        self.kind, self.attempts = kind, 0

    @contextlib.contextmanager
    def __call__(self, *_: object, **__: object):
        self.attempts += 1
        raise error(self.kind if self.attempts == 1 else "permanent")
        yield


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts take no time."""
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda self, attempt: 0)


@pytest.mark.parametrize(("kind", "attempts"), [("permanent", 1), ("bug", 1), ("transient", 2)])
@pytest.mark.parametrize("asset", ["bbox_partitions", "landmark_coordinates"])
def test_what_is_transient_is_repeated_and_nothing_else(
    tmp_path, monkeypatch: pytest.MonkeyPatch, asset: str, kind: str, attempts: int
) -> None:
    wires = Wires(kind)
    monkeypatch.setattr(ImageryResource, "of", lambda *_: wires())
    monkeypatch.setattr("geo_assets.geotag.assets._wikimedia", wires)
    keys = {"bbox_partitions": partition_key("demo", "r00c00")}
    (definition,) = [d for d in build().assets or () if isinstance(d, dg.AssetsDefinition) and d.key.path == [asset]]
    result = dg.materialize(
        [definition],
        partition_key=keys.get(asset, landmark_ranges.get_partition_keys()[0]),
        resources={"lake": LakeResource(root=str(tmp_path)), "imagery": ImageryResource()},
        raise_on_error=False,
    )
    assert not result.success and wires.attempts == attempts
    failure = result.failure_data_for_node(asset)
    assert failure is not None and failure.user_failure_data is not None
    assert ("KeyError: 'lon'" if kind == "bug" else "no such token") in str(failure.user_failure_data.description)
