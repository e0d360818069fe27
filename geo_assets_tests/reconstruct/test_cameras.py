from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from geo_assets.reconstruct import cameras
from geo_assets.reconstruct.cameras import kinds_of, stable_ids, usable_parameters, view_rotations, with_cameras


def pictures(*rows: dict) -> pd.DataFrame:
    common = {"sequence_id": "a", "width": 400, "height": 300, "kind": "perspective", "view": None}
    frame = pd.DataFrame([common | {"camera_parameters": None} | row for row in rows])
    return frame.assign(view=frame["view"].astype("Int64"))


def test_ids_are_stable_positive_and_distinct():
    names = [f"{k}" for k in range(3000)]
    ids = stable_ids(names)
    assert len(set(ids)) == 3000 and min(ids) > 0 and max(ids) < 2**31 - 1
    assert stable_ids(["77", "abc"]) == [ids[77], stable_ids(["abc"])[0]]
    assert stable_ids(["a", "b", "a"])[0] == stable_ids(["a"])[0]


def test_ids_that_collide_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cameras, "MAX_ID", 5)
    assert sorted(stable_ids(["a", "b", "c", "d", "e"])) == [1, 2, 3, 4, 5]


def test_one_camera_for_each_sequence_size_and_kind():
    frame = with_cameras(
        pictures(
            {"camera_parameters": [0.8, 0.1, 0.0]},
            {"camera_parameters": [0.82, 0.1, 0.0]},
            {"sequence_id": "b"},
            {"sequence_id": "b", "width": 300, "height": 400, "camera_parameters": []},
            {"kind": "fisheye", "camera_parameters": [0.5, 0.01, 0.02]},
            {"sequence_id": "c", "camera_parameters": [0.9, 0.0, 0.0]},
        )
    )
    assert frame.camera_id.nunique() == 5 and frame.camera_id[0] == frame.camera_id[1]
    assert (frame.rig_id == frame.camera_id).all()
    known, guessed, fisheye = frame.iloc[0], frame.iloc[2], frame.iloc[4]
    assert known.camera_model == "RADIAL" and known.known_focal
    assert known.parameters == pytest.approx([0.81 * 400, 200, 150, 0.1, 0])
    assert guessed.camera_model == "SIMPLE_RADIAL" and not guessed.known_focal
    assert guessed.parameters == pytest.approx([0.85 * 400, 200, 150, 0])
    assert fisheye.camera_model == "RADIAL_FISHEYE"
    assert fisheye.parameters == pytest.approx([0.5 * 400, 200, 150, 0.01, 0.02])
    focal_alone = frame.iloc[5]
    assert focal_alone.camera_model == "SIMPLE_RADIAL" and focal_alone.known_focal
    assert focal_alone.parameters == pytest.approx([0.9 * 400, 200, 150, 0])


def test_a_camera_has_the_same_id_whatever_else_is_in_the_box():
    alone = with_cameras(pictures({}))
    among = with_cameras(pictures({"sequence_id": "0"}, {}, {"sequence_id": "z"}))
    assert among.camera_id[1] == alone.camera_id[0]


def test_views_of_panoramas_share_a_rig_of_four_cameras():
    views = [{"kind": "view", "view": v, "width": 300, "height": 300} for v in range(4)]
    frame = with_cameras(pictures(*views, *views, {"width": 300, "height": 300}))
    assert frame.camera_id.nunique() == 5 and frame.rig_id[:8].nunique() == 1
    assert frame.rig_id[0] == frame.camera_id[0] and frame.rig_id[8] != frame.rig_id[0]
    assert frame.camera_model[3] == "SIMPLE_PINHOLE" and frame.parameters[3] == [150, 150, 150]


def test_a_sphere_has_no_focal_length():
    frame = with_cameras(pictures({"kind": "spherical", "width": 600}))
    assert frame.camera_model[0] == "EQUIRECTANGULAR" and frame.parameters[0] == [600, 300]


def test_the_right_view_looks_right():
    rotations = view_rotations()
    ahead = np.array([0, 0, 1.0])
    assert np.allclose(rotations.transpose(0, 2, 1) @ ahead, [[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0]])
    assert np.allclose(rotations @ [0, 1.0, 0], [0, 1, 0])  # all stand upright


@pytest.mark.parametrize(
    "given, usable",
    [([0.8, 0.1, 0.0], [0.8, 0.1, 0.0]), ([0.8, 0.1], None), (None, None), ([np.nan, 0, 0], None), ([0.0, 0, 0], None),
     ([850.0, 0, 0], None), (np.array([0.8, 0, 0]), [0.8, 0, 0]), (float("nan"), None)],
)  # fmt: skip
def test_parameters_that_cannot_be_right_are_not_used(given, usable):
    assert usable_parameters(given) == usable


def test_kinds():
    frame = pd.DataFrame(
        {
            "is_pano": pd.array([None, True, False, False, False], "boolean"),
            "camera_type": [None, "spherical", "fisheye", "equirectangular", "perspective"],
        }
    )
    assert kinds_of(frame).tolist() == ["perspective", "spherical", "fisheye", "spherical", "perspective"]
