"""The rules of the house: who may import what, and what the graph looks like."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from geo_assets.tables import TABLES

PACKAGE = Path(__file__).parent.parent / "geo_assets"
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))
ROOMS = ("harvest", "reconstruct", "splats", "geotag")
MAY_IMPORT_DAGSTER = {
    "assets.py", "checks.py", "automation.py", "marts.py", "partitions.py", "definitions.py",
    "reporting.py", "resources.py", "materialize.py", "recording.py", "run_records.py", "runs.py", "policies.py",
    "table_asset.py",
}  # fmt: skip
HEAVY = ("pycolmap", "hdbscan", "sklearn", "geopandas", "numba", "matplotlib", "scipy", "pandas", "aiohttp", "sqlglot")
SNAPSHOT = Path(__file__).parent / "graph.json"


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_corridor_imports_dagster(path: Path) -> None:
    if path.name not in MAY_IMPORT_DAGSTER:
        assert not {name for name in imported(path, top_level_only=True) if name.split(".")[0] == "dagster"}, (
            "a library module is usable without Dagster"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_meet_in_the_lake(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    others = [r for r in ROOMS if r != room] if room in ROOMS else []
    for name in imported(path):
        assert not any(name.startswith(f"geo_assets.{other}") for other in others), f"{room} imports {name}"


def test_the_code_location_loads_without_the_heavy_libraries() -> None:
    code = f"import sys, geo_assets.definitions; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_no_file_names_a_machine_or_a_registry() -> None:
    root = PACKAGE.parent
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    forbidden = ("/wo" + "rk/", "pypi." + "org", "pythonhosted." + "org", "registry.npmjs" + ".org")
    for name in filter(None, listed.stdout.split("\0")):
        path = root / name
        if path.suffix in (".html", ".png", ".jpg") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        assert not [word for word in forbidden if word in text], name


def _partition(asset: str, partitions: dg.PartitionsDefinition | None) -> list[str]:
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        return sorted(partitions.partition_dimension_names)
    return [] if partitions is None else sorted(TABLES[asset].partition) if asset in TABLES else ["city"]


def test_the_graph_is_the_one_that_was_agreed() -> None:
    """Keys, groups, dependencies, pools and partitions; renew with GEO_ASSETS_RENEW_GRAPH=1 and read the diff."""
    from geo_assets.definitions import defs

    graph = defs.resolve_asset_graph()
    found = {}
    for key in sorted(graph.materializable_asset_keys):
        node = graph.get(key)
        found[key.to_user_string()] = {
            "group": node.group_name,
            "deps": sorted(k.to_user_string() for k in node.parent_keys),
            "pools": sorted(node.pools or ()),
            "partitions": _partition(key.to_user_string(), node.partitions_def),
            "checks": sorted(c.name for c in node.check_keys),
            "kinds": sorted(node.kinds),
        }
    if os.environ.get("GEO_ASSETS_RENEW_GRAPH"):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(SNAPSHOT.read_text())


def test_the_assets_that_users_know_keep_their_names() -> None:
    from geo_assets.definitions import defs

    names = {key.to_user_string() for key in defs.resolve_asset_graph().materializable_asset_keys}
    assert names >= {
        "bbox_partitions", "sequence_ids", "image_metadata", "image_files", "gps_db", "match_pairs", "sparse_models",
        "splat_ply", "geotag_combined", "hdbscan_model", "hierarchy_centroids",
    }  # fmt: skip


def test_every_asset_says_what_it_is_and_who_owns_it() -> None:
    from geo_assets.definitions import defs

    graph = defs.resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        assert node.description and node.owners and node.kinds and node.check_keys, key
        assert node.group_name != "default", key
        assert {"stage", "cost"} <= set(node.tags), key


def test_every_job_can_be_built() -> None:
    """A job of assets with different partitions loads, and fails when somebody opens it."""
    from geo_assets.definitions import defs

    assert {job.name for job in defs.get_repository_def().get_all_jobs()} >= {"harvest", "splat"}
