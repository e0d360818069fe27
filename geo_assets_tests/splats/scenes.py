"""Small scenes whose photos are renders of known Gaussians, for tests that train."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geo_assets.splats.cameras import Camera, Scene, View
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.render import as_bytes, render


def blobs(n: int = 150, degree: int = 0, seed: int = 0) -> Gaussians:
    """A ball of coloured Gaussians around the origin, two metres wide."""
    rng = np.random.default_rng(seed)
    return Gaussians.of(
        rng.normal(0, 0.5, (n, 3)),
        np.log(rng.uniform(0.05, 0.2, (n, 3))),
        rng.normal(size=(n, 4)),
        rng.uniform(0, 3, n),
        rng.normal(0, 0.8 if degree == 0 else 0.4, (n, (degree + 1) ** 2, 3)),
    )


def ring(n: int = 10, turn: float = 2 * np.pi, width: int = 64, height: int = 48) -> list[Camera]:
    """Cameras on an arc of ``turn`` radians around the origin that look at it."""
    lens = Camera(np.eye(3), np.zeros(3), 60, 60, width / 2, height / 2, width, height)
    angles = np.linspace(0, turn, n, endpoint=False)
    return [Camera.looking((3 * np.cos(a), 3 * np.sin(a), 0.8), (0, 0, 0), like=lens) for a in angles]


def scene_of(
    gaussians: Gaussians, cameras: list[Camera], n_points: int = 80, gains: list[float] | None = None
) -> Scene:
    """Photos of Gaussians, and some of their centres as triangulated points."""
    rng = np.random.default_rng(1)
    points = gaussians.means[:n_points].astype(float) + rng.normal(0, 0.02, (min(n_points, len(gaussians)), 3))
    colours = as_bytes(0.5 + 0.28209479 * gaussians.sh[:n_points, 0])
    views = []
    for i, camera in enumerate(cameras):
        photo = as_bytes(render(gaussians, camera) * (gains[i] if gains else 1.0))
        u, v, depth = camera.project(points)
        seen = np.flatnonzero((depth > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height))
        views.append(View(f"{i:03d}.jpg", camera, photo, f"s{i % 2}", seen, np.stack([u, v], axis=1)[seen]))
    return Scene(views, points, colours)


def write_colmap(
    scene: Scene, model: Path, photos: Path, camera_model: str = "PINHOLE", *, distortion: float = 0.0
) -> None:
    """A scene as a COLMAP model and its photos.

    Args:
        scene: views of one camera.
        model: result, the model's folder.
        photos: result, the photos' folder.
        camera_model: PINHOLE or SIMPLE_RADIAL.
        distortion: of a radial camera; the photos are not distorted for it.
    """
    import pycolmap
    from PIL import Image

    model.mkdir(parents=True, exist_ok=True)
    photos.mkdir(parents=True, exist_ok=True)
    reconstruction = pycolmap.Reconstruction()
    first = scene.views[0].camera
    lens = {
        "PINHOLE": [first.fx, first.fy, first.cx, first.cy],
        "SIMPLE_RADIAL": [first.fx, first.cx, first.cy, distortion],
    }[camera_model]
    camera = pycolmap.Camera(model=camera_model, width=first.width, height=first.height, params=lens, camera_id=1)
    reconstruction.add_camera_with_trivial_rig(camera)
    tracks: dict[int, list[pycolmap.TrackElement]] = {}
    for image_id, view in enumerate(scene.views, 1):
        image = pycolmap.Image(name=view.name, camera_id=1, image_id=image_id, keypoints=view.point_px)
        pose = np.column_stack([view.camera.rotation, view.camera.translation])
        reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
        for at, row in enumerate(view.point_rows):
            tracks.setdefault(int(row), []).append(pycolmap.TrackElement(image_id, at))
        Image.fromarray(view.photo).save(photos / view.name, quality=97)
    for row, elements in sorted(tracks.items()):
        reconstruction.add_point3D(scene.points[row], pycolmap.Track(elements), scene.colours[row])
    reconstruction.write(model)
