"""Positions as people and templates write them: ``41° 18′ 40″ N, 72° 55′ 43″ W``, ``41.3111, -72.9286``."""

from __future__ import annotations

import html
import re
from typing import NamedTuple

AGREE_DEG = 0.01
"""Spellings of one text, as in ``51°30′26″N 0°7′39″W / 51.50722; -0.12750``, may lie this far apart."""

_ALIKE = str.maketrans(
    dict.fromkeys("−–‒﹣－", "-")
    | dict.fromkeys("º˚", "°")
    | dict.fromkeys("′’‘ʹʼ´`＇", "'")
    | dict.fromkeys("″”“ʺ＂", '"')
    | dict.fromkeys("\ufeff\u200b\u200c\u200d\u200e\u200f\u2060", "")
)
_WORD = re.compile(r"\b(north|south|east|west)\b", re.IGNORECASE)
_NUMBER = r"\d++(?:[.,]\d++)?+(?:[eE]-\d+)?"
# Markers d, m, s stand right behind their number in lower case, and s only where d does; any other s means south.
_VALUE = re.compile(
    rf"""(?P<before>[NSEWnsew])?\ ?(?P<sign>[+-])?\ ?
    (?P<degrees>{_NUMBER})(?:(?P<d>d)|(?P<marker>\ ?[°:]))?
    (?:\ ?(?P<minutes>{_NUMBER})(?:m|\ ?[':])?
    (?:\ ?(?P<seconds>{_NUMBER})(?:(?(d)s|\ ?(?:"|'')))?)?)?
    \ ?(?P<after>[NSEWnsew])?""",
    re.VERBOSE | re.ASCII,
)
_CUT = re.compile(r""" ?[,;] ?| |(?<=[NSEWnsew°'"])|(?=[+\-NSEWnsew])""")
_WKT = re.compile(r"point ?\( ?(\S+) (\S+) ?\)", re.IGNORECASE)


class _Value(NamedTuple):
    degrees: float
    side: str  # N, S, E, W, or nothing
    marked: bool  # whether the degrees bear a marker

    @property
    def may_be_lat(self) -> bool:
        return self.side not in ("E", "W") and abs(self.degrees) <= 90

    @property
    def may_be_lon(self) -> bool:
        return self.side not in ("N", "S")


def position_of(text: str) -> tuple[float, float] | None:
    """The position that a text gives, if there is exactly one way to read it.

    Both values bear a letter N, S, E or W, in any order, or neither does; then the latitude comes first, as the world
    writes pairs. Only in ``Point(lon lat)``, which Wikidata's queries answer, the longitude does.

    Returns:
        Longitude and latitude [deg]; None for texts without a position, with a contradiction, or out of range.
    """
    text = _plain(text)
    if wkt := _WKT.fullmatch(text):
        lon, lat = _value(wkt[1]), _value(wkt[2])
        return (lon.degrees, lat.degrees) if lon and lat and lat.may_be_lat and not lon.side + lat.side else None
    spellings = [_pair(part) for part in text.split(" / ")]
    first = spellings[0]
    if first is None or any(
        s is None or max(abs(s[0] - first[0]), abs(s[1] - first[1])) > AGREE_DEG for s in spellings
    ):
        return None
    return first


def number_of(text: str) -> float | None:
    """One longitude or latitude [deg] of a text such as ``48.1 N`` or ``11° 34′ E``, south and west negative.

    Returns:
        The value; None for texts that are no such value, contradict themselves, or are out of range.
    """
    value = _value(_plain(text))
    return value.degrees if value else None


def _plain(text: str) -> str:
    """The text with one sign for each meaning, letters for words, and single spaces."""
    text = html.unescape(text).translate(_ALIKE)
    return " ".join(_WORD.sub(lambda word: word[0][0], text).split())


def _pair(text: str) -> tuple[float, float] | None:
    """Longitude and latitude of two values, wherever the text can be cut into such; None unless all cuts agree."""
    readings: set[tuple[float, float]] = set()
    for cut in _CUT.finditer(text):
        one, two = _value(text[: cut.start()]), _value(text[cut.end() :])
        if one is None or two is None or bool(one.side) != bool(two.side):
            continue
        if one.side:
            lat, lon = (one, two) if one.side in "NS" else (two, one)
        elif one.marked == two.marked:
            lat, lon = one, two
        else:
            continue
        if lat.may_be_lat and lon.may_be_lon:
            readings.add((lon.degrees, lat.degrees))
    return readings.pop() if len(readings) == 1 else None


def _value(text: str) -> _Value | None:
    match = _VALUE.fullmatch(text.strip())
    if match is None or (match["before"] and match["after"]):
        return None
    side = (match["before"] or match["after"] or "").upper()
    parts = [part.replace(",", ".") for name in ("degrees", "minutes", "seconds") if (part := match[name])]
    # Only the last part can have a fraction; a signed value with a letter says its direction twice.
    if any(not part.isdigit() for part in parts[:-1]) or (side and match["sign"]):
        return None
    degrees, minutes, seconds = (*map(float, parts), 0.0, 0.0)[:3]
    # Templates that round write 60.
    if minutes > 60 or seconds > 60:
        return None
    degrees += minutes / 60 + seconds / 3600
    if degrees > (90 if side in ("N", "S") else 180):
        return None
    return _Value(
        -degrees if side in ("S", "W") or match["sign"] == "-" else degrees, side, bool(match["d"] or match["marker"])
    )
