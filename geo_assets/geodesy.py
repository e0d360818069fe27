"""WGS84 in the few forms the rooms need: degrees, ECEF metres and a local east-north-up frame.

Pairs are longitude before latitude. Heights are metres above the ellipsoid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SEMI_MAJOR_M = 6378137.0
FLATTENING = 1 / 298.257223563
ECCENTRICITY2 = FLATTENING * (2 - FLATTENING)
MEAN_RADIUS_M = 6371008.8


def ecef(lon: npt.ArrayLike, lat: npt.ArrayLike, alt_m: npt.ArrayLike = 0.0) -> Array:
    """Earth-centred coordinates [..., 3] in metres (EPSG:4978) of geodetic degrees (EPSG:4979)."""
    lam, phi, h = np.broadcast_arrays(np.radians(lon), np.radians(lat), np.asarray(alt_m, float))
    n = SEMI_MAJOR_M / np.sqrt(1 - ECCENTRICITY2 * np.sin(phi) ** 2)
    return np.stack(
        [
            (n + h) * np.cos(phi) * np.cos(lam),
            (n + h) * np.cos(phi) * np.sin(lam),
            (n * (1 - ECCENTRICITY2) + h) * np.sin(phi),
        ],
        axis=-1,
    )


def geodetic(xyz: npt.ArrayLike) -> tuple[Array, Array, Array]:
    """Degrees and metres (lon, lat, alt) of ECEF metres [..., 3], by Bowring's closed form, good to 1e-9 degrees."""
    x, y, z = np.moveaxis(np.asarray(xyz, float), -1, 0)
    b = SEMI_MAJOR_M * (1 - FLATTENING)
    second = ECCENTRICITY2 / (1 - ECCENTRICITY2)
    p = np.hypot(x, y)
    theta = np.arctan2(z * SEMI_MAJOR_M, p * b)
    phi = np.arctan2(z + second * b * np.sin(theta) ** 3, p - ECCENTRICITY2 * SEMI_MAJOR_M * np.cos(theta) ** 3)
    n = SEMI_MAJOR_M / np.sqrt(1 - ECCENTRICITY2 * np.sin(phi) ** 2)
    # Near the poles p / cos(phi) loses all digits; the z form does not.
    alt = np.where(
        np.abs(np.cos(phi)) > 1e-6,
        p / np.maximum(np.cos(phi), 1e-12) - n,
        np.abs(z) - b,
    )
    return np.degrees(np.arctan2(y, x)), np.degrees(phi), alt


def haversine_m(lon1: npt.ArrayLike, lat1: npt.ArrayLike, lon2: npt.ArrayLike, lat2: npt.ArrayLike) -> Array:
    """Great-circle distance in metres on the mean sphere (0.5 % against the ellipsoid)."""
    lam1, phi1, lam2, phi2 = (np.radians(np.asarray(v, float)) for v in (lon1, lat1, lon2, lat2))
    a = np.sin((phi2 - phi1) / 2) ** 2 + np.cos(phi1) * np.cos(phi2) * np.sin((lam2 - lam1) / 2) ** 2
    return 2 * MEAN_RADIUS_M * np.arcsin(np.sqrt(np.clip(a, 0, 1)))


@dataclass(frozen=True)
class LocalFrame:
    """East-north-up metres around an origin on the ellipsoid (EPSG:4979 degrees and metres)."""

    lon: float
    lat: float
    alt_m: float = 0.0

    @property
    def enu_from_ecef_rotation(self) -> Array:
        """Rotation [3, 3] whose rows are east, north and up in ECEF axes."""
        lam, phi = np.radians(self.lon), np.radians(self.lat)
        sl, cl, sp, cp = np.sin(lam), np.cos(lam), np.sin(phi), np.cos(phi)
        return np.array([[-sl, cl, 0.0], [-sp * cl, -sp * sl, cp], [cp * cl, cp * sl, sp]])

    @property
    def ecef_from_enu(self) -> Array:
        """Homogeneous transform [4, 4] from this frame's metres to ECEF metres, row-major."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.enu_from_ecef_rotation.T
        matrix[:3, 3] = ecef(self.lon, self.lat, self.alt_m)
        return matrix

    def enu(self, lon: npt.ArrayLike, lat: npt.ArrayLike, alt_m: npt.ArrayLike = 0.0) -> Array:
        """East, north, up [..., 3] in metres of geodetic degrees."""
        offset = ecef(lon, lat, alt_m) - ecef(self.lon, self.lat, self.alt_m)
        return offset @ self.enu_from_ecef_rotation.T

    def geodetic(self, enu: npt.ArrayLike) -> tuple[Array, Array, Array]:
        """Degrees and metres (lon, lat, alt) of east, north, up metres [..., 3]."""
        xyz = np.asarray(enu, float) @ self.enu_from_ecef_rotation + ecef(self.lon, self.lat, self.alt_m)
        return geodetic(xyz)
