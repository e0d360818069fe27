"""EXIF and panorama tags written from scratch into the bytes of a JPEG, and read back; nothing is re-encoded."""

from __future__ import annotations

import datetime as dt
import io
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from xml.sax.saxutils import quoteattr

import pandas as pd

from geo_assets import exif
from geo_assets.errors import SourceError
from geo_assets.harvest.jpeg import APP0, APP1, Layout, layout

DECIMALS = 7
"""Decimals of a degree in EXIF (1 cm): what is read back is the table's value, rounded so."""

_OURS = re.compile(r"geo_assets image (\S+) sequence (\S+) size (\S+)(?: asked (\S+))?")
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_GPANO = "http://ns.google.com/photos/1.0/panorama/"
_GPANO_TAG = re.compile(r'GPano:(\w+)="([^"]*)"')
_DESCRIPTION, _VERSION, _UNIQUE_ID = 0x010E, 0x9000, 0xA420
_TIME, _ZONE, _SUBSECONDS = 0x9003, 0x9011, 0x9291
_GPS_VERSION, _LAT_REF, _LAT, _LON_REF, _LON, _ALTITUDE_REF, _ALTITUDE, _GPS_TIME = range(8)
_DIRECTION_REF, _DIRECTION, _DATUM, _GPS_DATE = 16, 17, 18, 29
_TEXTS = {"creator_username": exif.ARTIST, "attribution": exif.COPYRIGHT, "make": exif.MAKE, "model": exif.MODEL}

_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 1, 2, 3, 4, 5, 7
_BYTES = {_BYTE: 1, _ASCII: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8, _UNDEFINED: 1}
"""Types of values in EXIF, and the bytes of one."""

_Value = tuple[int, bytes]
_Directory = dict[int, _Value]


@dataclass(frozen=True)
class Written:
    """What our EXIF says of its file.

    Attributes:
        image_id: the image.
        sequence_id: its sequence; ``-`` where unknown.
        size: which of the API's sizes the file is.
        asked: the size that was asked for; it differs where the image lacked that size.
    """

    image_id: str
    sequence_id: str
    size: str
    asked: str


def with_exif(jpeg: bytes, image: Mapping[str, Any], size: str, asked: str | None = None) -> bytes:
    """A JPEG with position, heading, time, author and licence of its image; other EXIF and XMP are dropped.

    The position is the corrected one where there is one. The altitude is the recorded one where there is one: the
    corrected one has no common datum. A panorama that is equirectangular says so in XMP, as viewers want it.

    Args:
        jpeg: the file as downloaded.
        image: its row of table ``image_metadata``.
        size: which of the API's sizes it is.
        asked: the size that was asked for, if it is another.

    Raises:
        SourceError: the bytes are not a JPEG that EXIF can be put into.
    """
    try:
        found = layout(jpeg)
        ours = [_segment(b"Exif\0\0" + _tiff(*_tags(image, size, asked or size)))]
        if _is_equirectangular(image):
            ours.append(_segment(_XMP + _gpano(image, found)))
    except (ValueError, struct.error) as error:
        raise SourceError(f"Image {image['image_id']}: EXIF cannot be written into it ({error}).") from None
    others = [s for s in found.segments if s.marker != APP1]
    first = [jpeg[s.start : s.end] for s in others if s.marker == APP0]  # JFIF wants to stand before all others
    rest = [jpeg[s.start : s.end] for s in others if s.marker != APP0]
    picture = found.segments[-1].end if found.segments else 2
    return b"".join([jpeg[:2], *first, *ours, *rest, jpeg[picture:]])


def _tags(image: Mapping[str, Any], size: str, asked: str) -> tuple[_Directory, _Directory, _Directory]:
    """The directories of an image, of its camera and of its position."""
    image_id, sequence_id = image["image_id"], image.get("sequence_id")
    said = f"geo_assets image {image_id} sequence {'-' if _missing(sequence_id) else sequence_id} size {size}"
    zeroth: _Directory = {
        _DESCRIPTION: _ascii(said + (f" asked {asked}" if asked != size else "")),
        exif.ORIENTATION: (_SHORT, struct.pack(">H", 1)),  # the API's sizes stand upright
    }
    zeroth |= {tag: _ascii(str(image[name])) for name, tag in _TEXTS.items() if not _missing(image.get(name))}
    camera: _Directory = {_VERSION: (_UNDEFINED, b"0232"), _UNIQUE_ID: _ascii(str(image_id))}
    gps: _Directory = {}
    if not _missing(captured_at := image.get("captured_at")):
        time = cast(dt.datetime, pd.Timestamp(captured_at).tz_convert("UTC").to_pydatetime())
        date, milliseconds = f"{time.year:04}:{time.month:02}:{time.day:02}", time.microsecond // 1000
        camera[_TIME] = _ascii(f"{date} {time.hour:02}:{time.minute:02}:{time.second:02}")
        camera[_ZONE], camera[_SUBSECONDS] = _ascii("+00:00"), _ascii(f"{milliseconds:03}")
        gps[_GPS_DATE] = _ascii(date)
        gps[_GPS_TIME] = _rationals((time.hour, 1), (time.minute, 1), (time.second * 1000 + milliseconds, 1000))
    if (place := position(image)) is not None:
        lon, lat = place
        gps[_LON_REF], gps[_LON] = _ascii("E" if lon >= 0 else "W"), _rationals(*exif.rationals(lon))
        gps[_LAT_REF], gps[_LAT] = _ascii("N" if lat >= 0 else "S"), _rationals(*exif.rationals(lat))
        gps[_DATUM] = _ascii("WGS-84")
    metres = next((m for n in ("altitude_m", "computed_altitude_m") if not _missing(m := image.get(n))), None)
    if metres is not None and abs(metres) < 1e6:
        gps[_ALTITUDE_REF] = (_BYTE, bytes([metres < 0]))
        gps[_ALTITUDE] = _rationals((round(abs(metres) * 1000), 1000))
    if (heading := _heading_deg(image)) is not None:
        gps[_DIRECTION_REF], gps[_DIRECTION] = _ascii("T"), _rationals((round(heading * 100), 100))
    return zeroth, camera, gps | {_GPS_VERSION: (_BYTE, bytes([2, 3, 0, 0]))} if gps else {}


def _tiff(zeroth: _Directory, camera: _Directory, gps: _Directory) -> bytes:
    """The block of EXIF: a header and the directories, the first of which points to the others that hold something."""
    header = b"MM\0*\0\0\0\x08"
    others = {tag: entries for tag, entries in ((exif.CAMERA, camera), (exif.GPS, gps)) if entries}
    unknown = dict.fromkeys(others, (_LONG, bytes(4)))
    at = len(header) + len(_directory(zeroth | unknown, 0))
    pointers, blocks = {}, []
    for tag, entries in others.items():
        pointers[tag] = (_LONG, struct.pack(">I", at))
        blocks.append(_directory(entries, at))
        at += len(blocks[-1])
    return b"".join([header, _directory(zeroth | pointers, len(header)), *blocks])


def _directory(entries: _Directory, at: int) -> bytes:
    """A directory at an offset in the block: its entries by tag, then the values that do not fit into them."""
    values_at, values, fields = at + 2 + 12 * len(entries) + 4, b"", []
    for tag, (kind, value) in sorted(entries.items()):
        field = value.ljust(4, b"\0")
        if len(value) > 4:
            field = struct.pack(">I", values_at + len(values))
            values += value + bytes(len(value) % 2)
        fields.append(struct.pack(">HHI", tag, kind, len(value) // _BYTES[kind]) + field)
    return b"".join([struct.pack(">H", len(entries)), *fields, bytes(4), values])


def _ascii(text: str) -> _Value:
    return _ASCII, text.encode(errors="replace") + b"\0"


def _rationals(*values: exif.Rational) -> _Value:
    return _RATIONAL, b"".join(struct.pack(">II", *value) for value in values)


def position(image: Mapping[str, Any]) -> tuple[float, float] | None:
    """Longitude and latitude [deg] that a file says: corrected, else recorded, to :data:`DECIMALS`."""
    for lon, lat in (("computed_lon", "computed_lat"), ("lon", "lat")):
        if not (_missing(image.get(lon)) or _missing(image.get(lat))):
            # A unit of the seventh decimal is a whole number of the rationals' units, so nothing is lost.
            return round(float(image[lon]), DECIMALS), round(float(image[lat]), DECIMALS)
    return None


def written(jpeg: bytes) -> Written | None:
    """What :func:`with_exif` put into a file; None where the file is not ours."""
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        with JpegImageFile(io.BytesIO(jpeg)) as image:
            return _ours(image.getexif())
    except Exception:  # a foreign file fails anywhere in the parser: OSError, SyntaxError, struct.error, ...
        return None


def read_back(jpeg: bytes) -> dict[str, Any]:
    """What :func:`with_exif` wrote, under the names of table ``image_metadata``; what is absent is missing.

    Beside these, ``size`` and ``asked`` say which of the API's sizes the file is, and ``gpano`` holds the panorama
    tags. Positions are in degrees to :data:`DECIMALS`, altitudes in metres, headings in degrees, times in UTC.

    Raises:
        SourceError: the bytes cannot be read as a JPEG with EXIF.
    """
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        with JpegImageFile(io.BytesIO(jpeg)) as image:
            zeroth, xmp = image.getexif(), image.info.get("xmp", b"")
            gps, camera = dict(zeroth.get_ifd(exif.GPS)), dict(zeroth.get_ifd(exif.CAMERA))
    except Exception as error:
        raise SourceError(f"A file of {len(jpeg)} bytes cannot be read as a photo ({error}).") from None
    ours, place, metres = _ours(zeroth), exif.position(gps), exif.number(gps.get(_ALTITUDE))
    lon, lat = place or (None, None)
    below = gps.get(_ALTITUDE_REF) in (1, b"\x01")
    gpano = dict(_GPANO_TAG.findall(xmp.decode(errors="replace")))
    found = {
        "image_id": ours.image_id if ours else _text(camera.get(_UNIQUE_ID)),
        "sequence_id": ours.sequence_id if ours and ours.sequence_id != "-" else None,
        "size": ours.size if ours else None,
        "asked": ours.asked if ours else None,
        "lon": None if lon is None else round(lon, DECIMALS),
        "lat": None if lat is None else round(lat, DECIMALS),
        "altitude_m": None if metres is None else -metres if below else metres,
        "compass_deg": exif.number(gps.get(_DIRECTION)),
        "captured_at": _time(camera),
        **{name: _text(zeroth.get(tag)) for name, tag in _TEXTS.items()},
        "is_pano": True if gpano else None,
        "gpano": gpano or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _ours(zeroth: Mapping[int, Any]) -> Written | None:
    match = _OURS.fullmatch(str(zeroth.get(_DESCRIPTION, "")))
    return Written(match[1], match[2], match[3], match[4] or match[3]) if match else None


def _time(camera: Mapping[int, Any]) -> dt.datetime | None:
    stamp, zone = exif.text(camera.get(_TIME)), exif.text(camera.get(_ZONE)) or "+00:00"
    fraction = exif.text(camera.get(_SUBSECONDS)) or "0"
    try:
        return dt.datetime.strptime(f"{stamp}.{fraction} {zone}", "%Y:%m:%d %H:%M:%S.%f %z").astimezone(dt.UTC)
    except (ValueError, OverflowError):
        return None


def _text(value: Any) -> str | None:
    """EXIF text is ASCII by the standard and UTF-8 by use; Pillow hands it over as Latin-1."""
    if isinstance(value, str):
        value = value.encode("latin-1", "replace")
    return exif.text(value)


def _is_equirectangular(image: Mapping[str, Any]) -> bool:
    kind = image.get("camera_type")
    if _missing(kind):
        return not _missing(image.get("is_pano")) and bool(image.get("is_pano"))
    return kind in ("spherical", "equirectangular")


def _gpano(image: Mapping[str, Any], found: Layout) -> bytes:
    """The XMP packet of a panorama of 360 degrees; one that is not half as high as wide lacks sky and ground."""
    full_height = max(found.height, round(found.width / 2))
    values: dict[str, Any] = {
        "ProjectionType": "equirectangular",
        "UsePanoramaViewer": "True",
        "FullPanoWidthPixels": found.width,
        "FullPanoHeightPixels": full_height,
        "CroppedAreaImageWidthPixels": found.width,
        "CroppedAreaImageHeightPixels": found.height,
        "CroppedAreaLeftPixels": 0,
        "CroppedAreaTopPixels": (full_height - found.height) // 2,
    }
    heading = _heading_deg(image)
    values |= {} if heading is None else {"PoseHeadingDegrees": f"{heading:.2f}"}
    attributes = " ".join(f"GPano:{name}={quoteattr(str(value))}" for name, value in values.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:GPano="{_GPANO}" {attributes}/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def _heading_deg(image: Mapping[str, Any]) -> float | None:
    """Heading to two decimals, below 360."""
    for name in ("computed_compass_deg", "compass_deg"):
        value = image.get(name)
        if value is not None and not _missing(value):
            return round(float(value) * 100) % 36000 / 100
    return None


def _segment(body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, APP1, len(body) + 2) + body


def _missing(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return value is None
    return value != value if isinstance(value, float) else value is pd.NA or value is pd.NaT
