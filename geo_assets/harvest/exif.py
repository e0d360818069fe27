"""EXIF written from scratch into the bytes of a JPEG; the picture itself is not re-encoded."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Mapping
from typing import Any

import pandas as pd

from geo_assets.errors import SourceError
from geo_assets.exif import rationals

_OURS = re.compile(r"geo_assets image (\S+) sequence (\S+) size (\S+)")


def with_exif(jpeg: bytes, image: Mapping[str, Any], size: str) -> bytes:
    """A JPEG with position, heading, time, author and licence of its image; other EXIF is replaced.

    Altitude is the recorded one where there is one: the computed one has no common datum.

    Args:
        jpeg: the file as downloaded.
        image: its row of table ``image_metadata``.
        size: which of the API's sizes it is.

    Raises:
        SourceError: the bytes are not a JPEG that EXIF can be put into.
    """
    import piexif

    if not jpeg.startswith(b"\xff\xd8"):  # piexif would take other bytes for the name of a file
        raise SourceError(f"Image {image['image_id']}: {len(jpeg)} bytes are not a JPEG.")
    sink = io.BytesIO()
    try:
        piexif.insert(piexif.dump(tags(image, size)), jpeg, sink)
    except (ValueError, struct.error, IndexError) as error:
        raise SourceError(f"Image {image['image_id']}: EXIF cannot be written into it ({error}).") from None
    return sink.getvalue()


def tags(image: Mapping[str, Any], size: str) -> dict[str, dict[int, Any]]:
    """The EXIF tags of an image, as piexif wants them."""
    from piexif import GPSIFD, ExifIFD, ImageIFD

    known = {k: v for k, v in image.items() if not _missing(v)}
    zeroth: dict[int, Any] = {
        ImageIFD.ImageDescription: (
            f"geo_assets image {known['image_id']} sequence {known.get('sequence_id', '-')} size {size}"
        ).encode(),
        ImageIFD.Copyright: str(known.get("attribution", "")).encode(),
        ImageIFD.Orientation: 1,  # the API's sizes stand upright
    }
    if "creator_username" in known:
        zeroth[ImageIFD.Artist] = known["creator_username"].encode()
    for name, tag in (("make", ImageIFD.Make), ("model", ImageIFD.Model)):
        if name in known:
            zeroth[tag] = known[name].encode()
    exif: dict[int, Any] = {ExifIFD.ImageUniqueID: str(known["image_id"]).encode()}
    gps: dict[int, Any] = {}
    if "captured_at" in known:
        time = pd.Timestamp(known["captured_at"]).tz_convert("UTC")
        exif[ExifIFD.DateTimeOriginal] = time.strftime("%Y:%m:%d %H:%M:%S").encode()
        exif[ExifIFD.OffsetTimeOriginal] = b"+00:00"
        exif[ExifIFD.SubSecTimeOriginal] = f"{time.microsecond // 1000:03d}".encode()
        gps[GPSIFD.GPSDateStamp] = time.strftime("%Y:%m:%d").encode()
        gps[GPSIFD.GPSTimeStamp] = ((time.hour, 1), (time.minute, 1), (time.second, 1))
    lon, lat = known.get("computed_lon", known.get("lon")), known.get("computed_lat", known.get("lat"))
    if lon is not None and lat is not None:
        gps[GPSIFD.GPSVersionID] = (2, 3, 0, 0)
        gps[GPSIFD.GPSMapDatum] = b"WGS-84"
        gps[GPSIFD.GPSLongitudeRef], gps[GPSIFD.GPSLongitude] = b"E" if lon >= 0 else b"W", rationals(lon)
        gps[GPSIFD.GPSLatitudeRef], gps[GPSIFD.GPSLatitude] = b"N" if lat >= 0 else b"S", rationals(lat)
    metres = known.get("altitude_m", known.get("computed_altitude_m"))
    if metres is not None and abs(metres) < 1e6:
        gps[GPSIFD.GPSAltitudeRef] = 0 if metres >= 0 else 1
        gps[GPSIFD.GPSAltitude] = (round(abs(metres) * 1000), 1000)
    heading = known.get("computed_compass_deg", known.get("compass_deg"))
    if heading is not None:
        gps[GPSIFD.GPSImgDirectionRef] = b"T"
        gps[GPSIFD.GPSImgDirection] = (round(heading % 360 * 100), 100)
    return {"0th": zeroth, "Exif": exif, "GPS": gps}


def written(jpeg: bytes) -> tuple[str, str] | None:
    """Image id and size that :func:`with_exif` put into a file; None where the file is not ours."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg)) as image:
            match = _OURS.match(str(image.getexif().get(0x010E, "")))
    except (OSError, ValueError, SyntaxError):
        return None
    return (match[1], match[3]) if match else None


def _missing(value: Any) -> bool:
    return value is None or (
        not isinstance(value, list | tuple | dict) and not hasattr(value, "__len__") and pd.isna(value)
    )
