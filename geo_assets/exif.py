"""Positions and texts in the EXIF of photos, as Pillow and piexif hand them over; no file is opened here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

GPS, CAMERA = 0x8825, 0x8769
"""Tags of the two directories inside the first one."""

ARTIST, COPYRIGHT, MAKE, MODEL, ORIENTATION = 0x013B, 0x8298, 0x010F, 0x0110, 0x0112
_LAT_REF, _LAT, _LON_REF, _LON = 1, 2, 3, 4

Rational = tuple[int, int]


def position(gps: Mapping[int, Any]) -> tuple[float, float] | None:
    """Longitude and latitude [deg] of a GPS directory; None where it does not hold both with their hemispheres.

    Whether the numbers lie on the globe is for the caller to say.
    """
    lon = _angle(gps.get(_LON), gps.get(_LON_REF), {"E": 1, "W": -1})
    lat = _angle(gps.get(_LAT), gps.get(_LAT_REF), {"N": 1, "S": -1})
    return None if lon is None or lat is None else (lon, lat)


def rationals(degrees: float) -> tuple[Rational, Rational, Rational]:
    """Degrees, minutes and seconds of an angle without its sign, to 1e-5 seconds (0.3 mm)."""
    units = round(abs(degrees) * 3600e5)
    minutes, seconds = divmod(units, 60 * 100_000)
    return (minutes // 60, 1), (minutes % 60, 1), (seconds, 100_000)


def gps_tags(lon: float, lat: float) -> dict[int, Any]:
    """The GPS directory of a position [deg] as piexif takes it; :func:`position` reads it back."""
    return {
        _LAT_REF: b"N" if lat >= 0 else b"S",
        _LAT: rationals(lat),
        _LON_REF: b"E" if lon >= 0 else b"W",
        _LON: rationals(lon),
    }


def number(value: Any) -> float | None:
    """A finite number, or None: rationals may be 0/0."""
    try:
        found = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return found if math.isfinite(found) else None


def text(value: Any) -> str | None:
    """A text without the padding that cameras leave, fit for UTF-8; None where nothing is left."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        return None
    return value.strip("\0 \n\r\t").encode(errors="replace").decode() or None


def _angle(parts: Any, reference: Any, signs: Mapping[str, int]) -> float | None:
    sign = signs.get((text(reference) or "")[:1].upper())
    numbers = [number(part) for part in (parts if isinstance(parts, tuple) else (parts,))]
    known = [n for n in numbers if n is not None and n >= 0]
    # Who writes decimal degrees, or decimal minutes, may leave what is behind them out, or write 0/0.
    as_given = numbers == known + [None] * (len(numbers) - len(known)) and len(numbers) <= 3
    whole = len(known) == 3 or any(n % 1 for n in known)
    if sign is None or not (as_given and whole) or any(n > 60 for n in known[1:]):
        return None
    return sign * sum(n / 60**i for i, n in enumerate(known))
