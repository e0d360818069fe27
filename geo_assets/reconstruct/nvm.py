"""A sparse model as NVM, the format of VisualSFM that meshing and texturing programs read.

NVM knows one focal length and one radial coefficient a camera, no principal point and no spheres. Observations are
written relative to the principal point. The coefficient ``k`` leads from a measurement to its undistorted place:
``undistorted = measured * (1 + k * |measured|^2)``, both by the focal length; it is the best fit to the camera's own
model over its picture, and its worst error there is told. A pinhole camera is exact, so the NVM of undistorted
photos is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geo_assets.errors import ReconstructionError

if TYPE_CHECKING:
    import pycolmap

Array = npt.NDArray[np.float64]

_SAMPLES = 33  # along each side of the picture
_WIDEST = 3.0  # tangent of the widest angle to the axis that the fit takes part in (72 degrees)


@dataclass(frozen=True)
class Lens:
    """What NVM can say of a camera.

    Attributes:
        focal_px: focal length [px].
        radial: coefficient ``k``; 0 for a pinhole camera.
        error_px: the largest difference to the camera's own model over its picture [px].
    """

    focal_px: float
    radial: float
    error_px: float


def write_nvm(model: pycolmap.Reconstruction, path: Path) -> dict[str, Any]:
    """Write the registered images and the points of a model as NVM_V3; the order of images is that of their names.

    Returns:
        ``n_images``, ``n_points``, ``n_left_out`` (spherical images), ``lens_error_px`` (the worst over the cameras).

    Raises:
        ReconstructionError: an image's name holds white space, which NVM cannot quote.
    """
    images = sorted((model.image(i) for i in model.reg_image_ids()), key=lambda image: image.name)
    flat = [image for image in images if not model.camera(image.camera_id).is_spherical()]
    for image in flat:
        if not image.name or any(letter.isspace() for letter in image.name):
            raise ReconstructionError(f"The image name '{image.name}' cannot stand in an NVM file; rename the photo.")
    lenses = {camera_id: lens_of(model.camera(camera_id)) for camera_id in {image.camera_id for image in flat}}
    number = {image.image_id: k for k, image in enumerate(flat)}
    lines = ["NVM_V3 ", "", str(len(flat))]
    for image in flat:
        pose, lens = image.cam_from_world(), lenses[image.camera_id]
        qx, qy, qz, qw = pose.rotation.quat
        numbers = [lens.focal_px, qw, qx, qy, qz, *image.projection_center(), lens.radial]
        lines.append(f"{image.name} {_text(numbers)} 0")
    points = [line for _, point in sorted(model.points3D.items()) if (line := _point(model, point, number))]
    # The closing zero says that no PLY files belong to the model.
    path.write_text("\n".join([*lines, "", str(len(points)), *points, "", "0", ""]))
    return {
        "n_images": len(flat),
        "n_points": len(points),
        "n_left_out": len(images) - len(flat),
        "lens_error_px": max((lens.error_px for lens in lenses.values()), default=0.0),
    }


def lens_of(camera: pycolmap.Camera) -> Lens:
    """The focal length and radial coefficient that come nearest to a camera's own model."""
    focal = float(camera.mean_focal_length())
    across, down = np.linspace(0, camera.width, _SAMPLES), np.linspace(0, camera.height, _SAMPLES)
    pixels = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
    truth = np.asarray(camera.cam_from_img(pixels), float)[:, :2]
    measured = (pixels - _centre(camera)) * _square(camera) / focal
    # Rays beyond the model's reach are not numbers; those far to the side would decide a fisheye's fit alone.
    good = np.isfinite(truth).all(axis=1) & (np.abs(truth).max(axis=1) < _WIDEST)
    truth, measured = truth[good], measured[good]
    cubic = measured * (measured**2).sum(1, keepdims=True)
    weight = float((cubic**2).sum())
    radial = float((cubic * (truth - measured)).sum()) / weight if weight > 0 else 0.0
    if camera.is_perspective_pinhole() and camera.is_undistorted():
        radial = 0.0
    error = np.linalg.norm(measured + radial * cubic - truth, axis=1).max(initial=0.0) * focal
    return Lens(focal, radial, float(error))


def _point(model: pycolmap.Reconstruction, point: pycolmap.Point3D, number: dict[int, int]) -> str | None:
    """One line of a point, or nothing where fewer than two of its images are written."""
    seen = []
    for element in point.track.elements:
        if element.image_id not in number:
            continue
        image = model.image(element.image_id)
        camera = model.camera(image.camera_id)
        x, y = (image.points2D[element.point2D_idx].xy - _centre(camera)) * _square(camera)
        seen.append(f"{number[element.image_id]} {element.point2D_idx} {x:.4f} {y:.4f}")
    if len(seen) < 2:
        return None
    red, green, blue = (int(c) for c in point.color)
    return f"{_text(point.xyz)} {red} {green} {blue} {len(seen)} {' '.join(seen)}"


def _centre(camera: pycolmap.Camera) -> Array:
    """The principal point [px]."""
    return np.array([camera.principal_point_x, camera.principal_point_y])


def _square(camera: pycolmap.Camera) -> Array:
    """Factors that give both axes the one focal length of NVM."""
    return camera.mean_focal_length() / np.array([camera.focal_length_x, camera.focal_length_y])


def _text(numbers: Any) -> str:
    return " ".join(repr(float(value) + 0.0) for value in numbers)  # the sum makes a plain zero of -0.0
