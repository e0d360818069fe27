"""Where a splat lies on the Earth: a small JSON file beside the PLY, whose vertices stay in local metres."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geo_assets.errors import SourceError
from geo_assets.geodesy import LocalFrame


def splat_reference(frame: LocalFrame) -> dict[str, Any]:
    """The content of ``splat.geo.json``: matrices are row-major lists of sixteen numbers."""
    return {
        "crs": "EPSG:4979",
        "origin": [frame.lon, frame.lat, frame.alt_m],
        "axes": "east, north, up",
        "up": [0.0, 0.0, 1.0],
        "metres_per_unit": 1.0,
        "enu_from_local": np.eye(4).ravel().tolist(),
        "ecef_from_local": frame.ecef_from_enu.ravel().tolist(),
    }


def read_frame(path: Path) -> LocalFrame:
    """The frame of a ``geo.json`` of a sparse model or of a splat.

    Raises:
        SourceError: the file is not there or says nothing about an origin.
    """
    try:
        origin = json.loads(path.read_text())["origin"]
        values = [origin[k] for k in ("lon", "lat", "alt_m")] if isinstance(origin, dict) else origin
        lon, lat, alt_m = (float(v) for v in values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{path.name} does not say where the model lies ({error}). Materialize sparse_models of the box again."
        ) from None
    return LocalFrame(lon, lat, alt_m)


def between(target: LocalFrame, source: LocalFrame) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Rotation [3, 3] and translation [3] from one east-north-up frame to another, exactly, through ECEF metres."""
    rotation = target.enu_from_ecef_rotation @ source.enu_from_ecef_rotation.T
    offset = source.ecef_from_enu[:3, 3] - target.ecef_from_enu[:3, 3]
    return rotation, target.enu_from_ecef_rotation @ offset
