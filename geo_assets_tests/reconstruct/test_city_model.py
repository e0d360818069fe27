from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geo_assets.errors import ReconstructionError
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.reconstruct.alignment import align_city
from geo_assets.reconstruct.city_model import model_of_city
from geo_assets.reconstruct.frames import Similarity, between_frames
from geo_assets.reconstruct.joint import Part
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.made_cities import Town, homes_of, put_part

pycolmap = pytest.importorskip("pycolmap")

OPTIONS = Reconstruct(margin_m=20.0)
N_POINTS = 1500


class Modelled:
    """A town whose boxes have COLMAP models: points along the streets, seen by the cameras that face them."""

    def __init__(self, root: Path) -> None:
        self.town, self.lake = Town(rows=1, columns=2, bias_m=1.0, noise_m=0.0, noise_deg=0.0, every_m=6.0), Lake(root)
        self.parts = self.town.parts()
        rng = np.random.default_rng(0)
        east = rng.uniform(0, 2 * self.town.box_m + 40, N_POINTS)
        side = rng.choice([-8.0, 8.0], N_POINTS) + rng.normal(0, 1, N_POINTS)
        self.points = np.column_stack([east, 60 + side, rng.uniform(0, 8, N_POINTS)])
        self.camera = pycolmap.Camera.create_from_model_name(7, "SIMPLE_PINHOLE", 500, 800, 600)
        self.pixels = {name: self._seen(place, axes) for name, (place, axes) in self.town.truth.items()}
        homes = homes_of(self.town, self.parts)
        for part in self.parts:
            put_part(self.lake, "town", part, homes)
            self._publish(part, root.parent / part.name.replace("/", "_"))

    def _seen(self, place: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the points that a camera sees, and where [px]."""
        local = (self.points - place) @ axes
        ahead = np.flatnonzero((local[:, 2] > 2) & (local[:, 2] < 40))
        pixels = np.asarray(self.camera.img_from_cam(local[ahead]))
        inside = ((pixels > 0) & (pixels < [800, 600])).all(axis=1)
        return ahead[inside], pixels[inside]

    def _publish(self, part: Part, folder: Path) -> None:
        """The COLMAP model of a box, as its cameras lie in the part."""
        model = pycolmap.Reconstruction()
        model.add_camera_with_trivial_rig(pycolmap.Camera(self.camera.todict()))
        tracks: dict[int, list[tuple[int, int]]] = {}
        for image_id, centre, rotation in zip(part.image_ids, part.centres, part.rotations, strict=True):
            numbers, pixels = self.pixels[image_id]
            number = 1 + sorted(self.town.truth).index(image_id)
            image = pycolmap.Image(name=f"{image_id}.jpg", keypoints=pixels, camera_id=7, image_id=number)
            pose = pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ centre)
            model.add_image_with_trivial_frame(image, pose)
            for index, point in enumerate(numbers):
                tracks.setdefault(int(point), []).append((number, index))
        place = self._of_points(part)
        for point, seen in sorted(tracks.items()):
            if len(seen) >= 2:
                track = pycolmap.Track()
                for at in seen:
                    track.add_element(*at)
                model.add_point3D(place(self.points[point]), track, np.array([point % 256, 0, 0], np.uint8))
        target = folder / "0"
        target.mkdir(parents=True)
        model.write_binary(str(target))
        self.lake.publish(folder, self.lake.key("models", city="town", box=part.name.split("/")[0]))

    def _of_points(self, part: Part) -> Similarity:
        """From the town's metres to the part's: the part's shape is exact, its place is not."""
        from geo_assets.reconstruct.frames import best_similarity

        true = np.array([self.town.truth[i][0] for i in part.image_ids])
        return best_similarity(true, part.centres)

    def align(self) -> None:
        made = align_city(self.lake, "town", self.town.grid()[1])
        self.lake.write("city_alignment", made.rows, city="town")

    def merged(self) -> Any:
        return model_of_city(self.lake, "town", *self.town.grid(), OPTIONS)


@pytest.fixture(scope="module")
def modelled(tmp_path_factory: pytest.TempPathFactory) -> Modelled:
    return Modelled(tmp_path_factory.mktemp("city") / "lake")


def test_two_boxes_become_one_model(modelled: Modelled):
    modelled.align()
    made = modelled.merged()
    lake = modelled.lake
    lake.write("city_model", made.rows, city="town")
    row = lake.read("city_model", city="town").iloc[0]
    assert (row.n_boxes, row.n_images) == (2, len(modelled.town.truth))
    assert row.n_tracks_joined > 20 and made.figures["n_cameras_kept_apart"] == 0
    assert row.reprojection_px < 1.0 and row.gps_median_m < 6
    # At the seam two boxes saw the same keypoints: no point is there twice.
    visible = np.unique(np.concatenate([numbers for numbers, _ in modelled.pixels.values()]), return_counts=True)
    assert 0.9 * (visible[1] >= 2).sum() < row.n_points <= (visible[1] >= 2).sum()
    with lake.local(row.path) as folder:
        assert (folder / "points3D.bin").exists()
        origin = json.loads((folder / "geo.json").read_text())["origin"]
        model = pycolmap.Reconstruction(str(folder))
    frame = LocalFrame(origin["lon"], origin["lat"], origin["alt_m"])
    assert (frame.lon, frame.lat) == pytest.approx(modelled.town.grid()[0].centre)
    to_town = between_frames(modelled.town.frame(), frame)
    for image in (model.image(i) for i in model.reg_image_ids()):
        true = modelled.town.truth[image.name.removesuffix(".jpg")][0]
        assert np.hypot(*(to_town(image.projection_center()) - true)[:2]) < 4
    assert made.figures["seam_n_variable"] < row.n_images and made.figures["p95_from_boxes_m"] < 0.3


def test_an_alignment_of_older_models_is_refused(modelled: Modelled, tmp_path: Path):
    import shutil

    shutil.copytree(modelled.lake.root, tmp_path / "lake")
    lake = Lake(tmp_path / "lake")
    shutil.rmtree(tmp_path / "lake" / "tables" / "city_alignment", ignore_errors=True)
    with pytest.raises(ReconstructionError, match="Materialize city_alignment of town first"):
        model_of_city(lake, "town", *modelled.town.grid(), OPTIONS)


def test_a_city_without_models(tmp_path: Path):
    made = model_of_city(Lake(tmp_path), "town", *Town().grid(), OPTIONS)
    assert made.rows.empty and made.figures["n_boxes"] == 0
    assert Lake(tmp_path).write("city_model", made.rows, city="town").rows == 0
