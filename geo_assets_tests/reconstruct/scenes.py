"""A street of known cameras and points as a matched box, without a photo: mapping is tested on what it sees."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geo_assets.geodesy import LocalFrame
from geo_assets.lake import BoxPartition, Lake
from geo_assets.reconstruct.databases import CONFIGURATIONS
from geo_assets.reconstruct.features import DATABASE
from geo_assets.tables import TABLES

WIDTH, HEIGHT, FOCAL = 480, 360, 400.0
ORIGIN = (10.0, 50.0, 100.0)
LENGTH_M = 1800


@dataclass
class Scene:
    """Cameras along a street that bends, two facades full of points, and what matching would have found.

    Attributes:
        n: number of images, 3 m apart.
        reach_m: images closer than this are a pair.
        gps_sigma_m: noise of the positions.
        box: the box that they lie in.
        first: number of the first image along the street, for boxes that follow one another.
    """

    n: int = 40
    reach_m: float = 13.0
    gps_sigma_m: float = 1.0
    seed: int = 0
    where: BoxPartition = field(default_factory=lambda: BoxPartition(city="town", box="r00c00"))
    first: int = 0
    origin: tuple[float, float, float] = ORIGIN
    home: Any = None  # names of homes by number, the box itself by default

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.n)

    def image_id(self, number: int) -> str:
        return f"i{number:04d}"

    def centre(self, number: int) -> np.ndarray:
        """True camera centre [m] in the frame at ``ORIGIN``."""
        along = 3.0 * number
        return np.array([along, 12 * np.sin(along / 40), 1.5 + 0.3 * np.sin(along / 15)])

    def rotation(self, number: int) -> np.ndarray:
        """True ``camera_from_enu``: it looks along the street and a little to a side, level."""
        along = 3.0 * number
        yaw = np.arctan2(12 / 40 * np.cos(along / 40), 1) + (0.2 if number % 2 else -0.2)
        forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        down = np.array([0.0, 0.0, -1.0])
        return np.stack([np.cross(down, forward), down, forward])

    def truth(self) -> dict[str, np.ndarray]:
        return {self.image_id(k): self.centre(k) for k in self.numbers}

    def write(self, lake: Lake) -> None:
        """Write ``gps_db``, ``match_pairs``, the database of matches and a picture that stands for all photos."""
        import pycolmap

        points = self._points()
        seen = {k: self._seen(k, points) for k in self.numbers}
        frame, own = LocalFrame(*ORIGIN), LocalFrame(*self.origin)
        path = Path(lake.root) / lake.key("matches", DATABASE, **self.where)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        photo = lake.key("images", "photo.jpg", **self.where)
        buffer = io.BytesIO()
        Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 150)).save(buffer, "jpeg")
        lake.put_bytes(photo, buffer.getvalue())
        rows, pairs = [], []
        with pycolmap.Database.open(str(path)) as db, pycolmap.DatabaseTransaction(db):
            camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", FOCAL, WIDTH, HEIGHT)
            camera.has_prior_focal_length = True
            db.write_camera(camera, use_camera_id=True)
            rig = pycolmap.Rig(rig_id=1)
            rig.add_ref_sensor(camera.sensor_id)
            db.write_rig(rig, use_rig_id=True)
            for k in self.numbers:
                # The noise of an image is its own, whichever box it is written to.
                noise = np.random.default_rng([self.seed, k]).normal(0, self.gps_sigma_m, 3)
                place = own.enu(*frame.geodetic((self.centre(k) + noise)[None]))[0]
                rows.append(self._row(k, place, photo))
                image = pycolmap.Image(name=f"{self.image_id(k)}.jpg", camera_id=1, image_id=k + 1)
                db.write_image(image, use_image_id=True)
                one = pycolmap.Frame()
                one.frame_id, one.rig_id = k + 1, 1
                one.add_data_id(image.data_id)
                db.write_frame(one, use_frame_id=True)
                db.write_keypoints(k + 1, seen[k][1].astype(np.float32))
            for a in self.numbers:
                for b in self.numbers:
                    apart = float(np.linalg.norm(self.centre(a) - self.centre(b)))
                    if not a < b or apart > self.reach_m:
                        continue
                    matches = _common(seen[a][0], seen[b][0])
                    if len(matches) < 15:
                        continue
                    options = pycolmap.TwoViewGeometryOptions()
                    options.ransac.random_seed = 0
                    geometry = pycolmap.estimate_calibrated_two_view_geometry(
                        camera, seen[a][1], camera, seen[b][1], matches, options
                    )
                    db.write_matches(a + 1, b + 1, matches)
                    db.write_two_view_geometry(a + 1, b + 1, geometry)
                    pairs.append(
                        self._pair(a, b, apart, len(geometry.inlier_matches), CONFIGURATIONS[int(geometry.config)])
                    )
        lake.write("gps_db", TABLES["gps_db"].frame(rows), note={"origin": list(self.origin)}, **self.where)
        lake.write("match_pairs", TABLES["match_pairs"].frame(pairs), **self.where)

    def _points(self) -> np.ndarray:
        rng = np.random.default_rng(99)
        n = 12 * LENGTH_M
        along = rng.uniform(-30, LENGTH_M, n)
        side = rng.choice([-1.0, 1.0], n) * rng.uniform(7, 10, n)
        return np.stack([along, 12 * np.sin(along / 40) + side, rng.uniform(0, 9, n)], axis=1)

    def _seen(self, number: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which points an image sees, and where [px]."""
        camera = (points - self.centre(number)) @ self.rotation(number).T
        ahead = (camera[:, 2] > 2) & (np.linalg.norm(camera, axis=1) < 35)
        pixels = FOCAL * camera[:, :2] / np.where(ahead, camera[:, 2], 1)[:, None] + [WIDTH / 2, HEIGHT / 2]
        inside = ahead & (pixels > 1).all(axis=1) & (pixels < [WIDTH - 1, HEIGHT - 1]).all(axis=1)
        noise = np.random.default_rng([7, number]).normal(0, 0.3, pixels.shape)
        index = np.flatnonzero(inside)
        return index, (pixels + noise)[index]

    def _row(self, k: int, place: np.ndarray, photo: str) -> dict[str, Any]:
        forward = self.rotation(k)[2]
        return {c.name: None for c in TABLES["gps_db"].columns} | {
            "image_id": self.image_id(k),
            "photo_id": self.image_id(k),
            "colmap_image_id": k + 1,
            "camera_id": 1,
            "frame_id": k + 1,
            "sequence_id": "s",
            "east_m": float(place[0]),
            "north_m": float(place[1]),
            "up_m": float(place[2]),
            "sigma_xy_m": 3.0,
            "sigma_z_m": 10.0,
            "heading_deg": float(np.degrees(np.arctan2(forward[0], forward[1])) % 360),
            "captured_at": np.datetime64("2024-05-01T00:00:00") + np.timedelta64(k, "s"),
            "home_box": self.home(k) if self.home else self.where["box"],
            "width": WIDTH,
            "height": HEIGHT,
            "n_keypoints": 500,
            "path": photo,
            "feature_key": f"key{k}",
            "known_upright": False,
            "camera_model": "SIMPLE_RADIAL",
            "parameters": [FOCAL, WIDTH / 2, HEIGHT / 2, 0.0],
            "known_focal": True,
        }

    def _pair(self, a: int, b: int, apart: float, inliers: int, geometry: str) -> dict[str, Any]:
        return {c.name: None for c in TABLES["match_pairs"].columns} | {
            "image_id_a": self.image_id(a),
            "image_id_b": self.image_id(b),
            "reason": "ring",
            "distance_m": apart,
            "n_matches": inliers,
            "n_inliers": inliers,
            "geometry": geometry,
            "verified": inliers >= 15,
            "fringe": False,
            "round": 0,
            "owner": self.where["box"],
            "reused": False,
        }


def _common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rows of both sets of points that name the same one."""
    _, first, second = np.intersect1d(a, b, return_indices=True)
    return np.stack([first, second], axis=1).astype(np.uint32)
