"""Pinhole cameras and the photos they took, in the frame of a sparse model (x right, y down, z forward in the camera)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geo_assets.errors import SourceError


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera without distortion.

    Args:
        rotation: camera_from_world rotation [3, 3].
        translation: camera_from_world translation [3], in the world's unit.
        fx: focal length [px], fy likewise; cx and cy are the principal point [px], pixel centres at +0.5.
        width: [px], height likewise.
    """

    rotation: npt.NDArray[np.float64]
    translation: npt.NDArray[np.float64]
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @property
    def centre(self) -> npt.NDArray[np.float64]:
        """Position in the world [3]."""
        return -self.rotation.T @ self.translation

    @property
    def forward(self) -> npt.NDArray[np.float64]:
        """Viewing direction in the world, unit [3]."""
        return self.rotation[2]

    def project(self, points: npt.NDArray[np.floating]) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
        """Columns, rows [px] and depths of world points [N, 3]."""
        local = points @ self.rotation.T + self.translation
        depth = np.where(np.abs(local[:, 2]) > 1e-9, local[:, 2], 1e-9)
        return self.fx * local[:, 0] / depth + self.cx, self.fy * local[:, 1] / depth + self.cy, local[:, 2]

    def resized(self, factor: float) -> Camera:
        """The camera of the image scaled by a factor, sides rounded to whole pixels."""
        width, height = max(1, round(self.width * factor)), max(1, round(self.height * factor))
        sx, sy = width / self.width, height / self.height
        return Camera(
            self.rotation, self.translation, self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy, width, height
        )

    @classmethod
    def looking(
        cls, eye: npt.ArrayLike, target: npt.ArrayLike, *, like: Camera, up: tuple[float, float, float] = (0, 0, 1)
    ) -> Camera:
        """A camera at ``eye`` that looks at ``target`` with the lens of another."""
        eye, target = np.asarray(eye, float), np.asarray(target, float)
        forward = target - eye
        length = np.linalg.norm(forward)
        if length < 1e-9:
            raise SourceError("A camera cannot look at the point where it stands. Move the target.")
        forward = forward / length
        right = np.cross(forward, up)
        if np.linalg.norm(right) < 1e-6:  # straight up or down: any horizontal axis serves
            right = np.array([1.0, 0.0, 0.0])
        right = right / np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        return cls(rotation, -rotation @ eye, like.fx, like.fy, like.cx, like.cy, like.width, like.height)


@dataclass(frozen=True, eq=False)
class View:
    """A photo and its camera.

    Args:
        name: file name of the photo; its stem is the image id.
        camera: where it was taken.
        photo: uint8 [height, width, 3]; of no size where only the camera was read.
        sequence: what shares an exposure with it; empty where unknown.
        point_rows: rows of the scene's points that the photo observes [M].
        point_px: where it observes them, column and row [M, 2].
        mask: bool [height, width], false where the photo does not count; None where all of it does.
    """

    name: str
    camera: Camera
    photo: npt.NDArray[np.uint8]
    sequence: str
    point_rows: npt.NDArray[np.int64]
    point_px: npt.NDArray[np.float64]
    mask: npt.NDArray[np.bool_] | None = None

    @property
    def image_id(self) -> str:
        """Id of the image."""
        return self.name.rsplit(".", 1)[0]


@dataclass(frozen=True, eq=False)
class Scene:
    """The views of a dataset, sorted by name, and its triangulated points [N, 3] with their colours, uint8 [N, 3].

    Where an earlier split of the photos has to be kept, ``judging`` names the photos that are held out.
    """

    views: list[View]
    points: npt.NDArray[np.float64]
    colours: npt.NDArray[np.uint8]
    judging: frozenset[str] | None = None

    def held_out(self, every: int) -> list[View]:
        """Each n-th view by name; one of three to seven views, so that small scenes are judged too."""
        return [view for i, view in enumerate(self.views) if self._judges(i, view, every)]

    def trained(self, every: int) -> list[View]:
        """The other views."""
        return [view for i, view in enumerate(self.views) if not self._judges(i, view, every)]

    def _judges(self, i: int, view: View, every: int) -> bool:
        return i % every == 0 if self.judging is None else view.name in self.judging

    @property
    def extent(self) -> float:
        """Radius of the camera path: 1.1 times the 95th percentile of the distance to the mean camera."""
        centres = np.array([view.camera.centre for view in self.views])
        return max(1.1 * float(np.quantile(np.linalg.norm(centres - centres.mean(0), axis=1), 0.95)), 1e-3)

    @property
    def reach(self) -> float:
        """How far the photos look, the measure of steps and sizes in training: a long street is not a large object.

        The median depth of what the photos observe, at most :attr:`extent`.
        """
        depths = [view.camera.project(self.points[view.point_rows])[2] for view in self.views]
        seen = np.concatenate(depths) if depths else np.zeros(0)
        seen = seen[seen > 0]
        return min(self.extent, max(float(np.median(seen)), 1e-3)) if len(seen) else self.extent
