"""The whole demo as a user runs it, killed three times on the way; its figures are those that the README promises."""

import json

import numpy as np
import pytest

from geo_assets.lake import Lake

pytestmark = [pytest.mark.demo, pytest.mark.xdist_group("demo")]

BOXES = ["r00c00", "r00c01", "r01c00", "r01c01"]


@pytest.mark.parametrize("box", BOXES)
def test_each_box_is_harvested_reconstructed_and_splatted(finished_demo: Lake, box: str) -> None:
    with finished_demo.connect("box_quality") as con:
        rows = con.execute("select * from box_quality where city = 'demo' and box = ?", [box]).df()
    row = rows.to_dict("records")[0]
    assert row["n_images"] >= 20
    model = finished_demo.read("sparse_models", city="demo", box=box)
    placed = model.loc[model["status"] == "placed", ["n_home_registered", "reprojection_px"]].to_numpy(float)
    images = finished_demo.read("image_metadata", city="demo", box=box)
    perspective = images["camera_type"].tolist().count("perspective")
    assert placed[:, 0].sum() >= 0.95 * perspective
    assert placed[:, 1].max() < 1.5
    assert row["psnr_db"] >= 23
    assert row["sequence_psnr_db"] >= 26.5
    assert row["gain_db"] >= 10


def test_every_image_of_the_world_is_in_exactly_one_box(finished_demo: Lake) -> None:
    from geo_assets.demo.world import demo_world

    found = [i for box in BOXES for i in finished_demo.read("image_metadata", city="demo", box=box)["image_id"]]
    assert sorted(found) == sorted(image.id for image in demo_world().images)


def test_every_certificate_is_complete(finished_demo: Lake) -> None:
    with finished_demo.connect("certificates") as con:
        rows = con.execute("select box, complete, n_unresolved from certificates where city = 'demo'").fetchall()
    assert len(rows) == 4
    assert all(complete and unresolved == 0 for _, complete, unresolved in rows)


def test_every_image_file_is_there(finished_demo: Lake) -> None:
    for box in BOXES:
        files = finished_demo.read("image_files", city="demo", box=box)
        assert set(files["status"]) == {"done"}
        assert all(finished_demo.exists(path) for path in files["path"])


def test_splats_lie_at_their_true_place(finished_demo: Lake) -> None:
    """The matrices of the geo-reference take the splat to the demo's crossing, in ECEF metres."""
    from geo_assets.demo.place import demo_frame

    for box in BOXES:
        geo = json.loads(finished_demo.get_bytes(finished_demo.key("splats", "splat.geo.json", city="demo", box=box)))
        ecef_from_local = np.array(geo["ecef_from_local"], float).reshape(4, 4)
        cameras = finished_demo.read("model_cameras", city="demo", box=box)
        local = cameras[["east_m", "north_m", "up_m"]].to_numpy()
        world = np.c_[local, np.ones(len(local))] @ ecef_from_local.T
        crossing = demo_frame().ecef_from_enu[:3, 3]
        assert np.linalg.norm(world[:, :3] - crossing, axis=1).max() < 90


def test_the_files_of_a_splat_are_there(finished_demo: Lake) -> None:
    for box in BOXES:
        names = finished_demo.names(finished_demo.key("splats", city="demo", box=box))
        wanted = {"splat.ply", "sky.ply", "splat.spz", "splat.compressed.ply", "tileset.json", "splat.glb"}
        assert wanted | {"viewer.html", "globe.html", "compare.jpg", "preview.jpg"} <= set(names)
    city = finished_demo.names(finished_demo.key("splats_city", city="demo"))
    assert {"index.html", "viewer.html", "globe.html", "tileset.json", "tiles", "lod", "city.ply"} <= set(city)


def test_facades_of_neighbouring_splats_line_up(finished_demo: Lake) -> None:
    """Each box's splat, rendered from the cameras at its borders, beside that of its neighbour."""
    boxes = finished_demo.read("splat_city", city="demo")
    assert boxes["box"].tolist() == BOXES
    assert all(boxes["aligned"].tolist())
    assert max(boxes["seam_m"].tolist()) < 0.3


def test_the_geotag_branch_ends_in_cells(finished_demo: Lake) -> None:
    cells = finished_demo.read("hierarchy_centroids")
    counts = cells.groupby("level").size()
    assert counts.is_monotonic_decreasing
    assert counts.iloc[-1] == 1, "one root"
    assert len(finished_demo.read("geotag_combined")) > 1000


def test_the_catalogue_answers_sql(finished_demo: Lake) -> None:
    import duckdb

    with duckdb.connect(f"{finished_demo.root}/catalog.duckdb", read_only=True) as con:
        rows = con.execute("select count(*) from coverage where city = 'demo'").fetchone()
        credits = con.execute("select count(*) from attribution where licence is not null").fetchone()
    assert rows == (4,)
    assert credits
    assert credits[0] > 0


def test_what_was_killed_left_no_litter(finished_demo: Lake) -> None:
    from pathlib import Path

    assert not [p for p in Path(finished_demo.root).rglob("*.old")]


def test_the_command_said_where_the_results_are(finished_demo: Lake, demo_output: str) -> None:
    assert "geo-assets show demo" in demo_output
    assert "GB of memory" in demo_output
    for box in BOXES:
        assert box in demo_output
