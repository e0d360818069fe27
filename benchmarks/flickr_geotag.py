"""Processor seconds of the Flickr photo set: python benchmarks/flickr_geotag.py [--photos 20000] [--lines 2000000].

A folder tree of small JPEGs with EXIF is read whole, read again, and read the way earlier scripts did: Pillow decodes
all of the EXIF, a loop names the GPS tags, a row of a CSV is written for each photo. The goal is 1 ms a photo, which is
2,000 photos a second on two cores. Then a CSV file of many lines is read, whose memory must not grow with them.
"""

from __future__ import annotations

import csv
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import duckdb  # noqa: F401  # as the next, so that its import is not measured

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.apart import apart
from geo_assets.exif import gps_tags
from geo_assets.geotag.flickr import take_flickr
from geo_assets.lake import Lake
from geo_assets.settings import Geotag

GOAL_MS = 1.0


def write_photos(folder: Path, n: int) -> None:
    """JPEGs of some 9 kB in 256 folders, with the EXIF of a camera (3 kB of its maker's notes among it)."""
    import numpy as np
    import piexif
    from PIL import Image

    draw = np.random.default_rng(1)
    sink = io.BytesIO()
    Image.fromarray(draw.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(sink, "JPEG", quality=75)
    for number in range(n):
        lon, lat = float(draw.uniform(-180, 180)), float(draw.uniform(-90, 90))
        gps = {
            **gps_tags(lon, lat),
            piexif.GPSIFD.GPSDateStamp: b"2014:05:06",
            piexif.GPSIFD.GPSTimeStamp: ((7, 1), (8, 1), (9, 1)),
        }
        main = {piexif.ImageIFD.Make: b"Maker", piexif.ImageIFD.Artist: b"Ada", piexif.ImageIFD.Copyright: b"CC BY"}
        path = folder / f"{number % 256:02x}" / f"{8_010_000_000 + 7 * number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        block = piexif.dump({"0th": main, "Exif": {piexif.ExifIFD.MakerNote: bytes(3000)}, "GPS": gps})
        whole = io.BytesIO()
        piexif.insert(block, sink.getvalue(), whole)
        path.write_bytes(whole.getvalue())


def write_lines(path: Path, n: int) -> None:
    """A CSV file as the Flickr API's fields would make it."""
    import numpy as np

    draw = np.random.default_rng(2)
    with path.open("w", encoding="utf-8") as sink:
        sink.write("photo_id,owner,title,tags,datetaken,latitude,longitude,license\n")
        for number, (lon, lat) in enumerate(zip(draw.uniform(-180, 180, n), draw.uniform(-90, 90, n), strict=True)):
            sink.write(
                f'{2_000_000_000 + 37 * number},{number % 100_000}@N00,"A ""title"", {number}",a b c,'
                f"2013-08-17 12:00:00,{lat:.6f},{lon:.6f},{number % 10}\n"
            )


def the_earlier_way(folder: Path, target: Path) -> int:
    """Pillow's decoded EXIF, names of tags by a loop, a row for each photo; returns their number."""
    from PIL import ExifTags, Image

    def degrees(parts: Any, sign: str) -> float:
        value = float(parts[0]) + float(parts[1]) / 60 + float(parts[2]) / 3600
        return -value if sign in "SW" else value

    count = 0
    with target.open("w", newline="", encoding="utf-8") as sink:
        writer = csv.writer(sink)
        for base, _, names in os.walk(folder):
            for name in names:
                image: Any = Image.open(Path(base) / name)
                named: dict[str, Any] = {}
                for tag, value in (image._getexif() or {}).items():
                    if ExifTags.TAGS.get(tag, tag) == "GPSInfo":
                        named = {str(ExifTags.GPSTAGS.get(key, key)): value[key] for key in value}
                lat = degrees(named["GPSLatitude"], named["GPSLatitudeRef"])
                writer.writerow([f"{base}/{name}", lat, degrees(named["GPSLongitude"], named["GPSLongitudeRef"])])
                count += 1
    return count


def take(lake: Path, folder: Path, processes: int) -> dict[str, Any]:
    """The library's way."""
    return take_flickr(Lake(lake), folder, Geotag(processes=processes))


@click.command(help=__doc__)
@click.option("--photos", default=20_000, show_default=True)
@click.option("--lines", default=2_000_000, show_default=True)
@click.option("--processes", default=1, show_default=True, help="More of them cost their start, a second each.")
def _command(photos: int, lines: int, processes: int) -> None:
    with tempfile.TemporaryDirectory(prefix="geo_assets_benchmark_") as scratch:
        folder, root = Path(scratch) / "photos", Path(scratch)
        write_photos(folder, photos)
        before = apart(the_earlier_way, folder, root / "earlier.csv")
        assert before.result == photos
        now = apart(take, root / "lake", folder, processes)
        assert now.result["n_photos"] == photos and not now.result["n_rejects"]
        again = apart(take, root / "lake", folder, processes)
        assert again.result["n_photos"] == photos and not again.result["n_opened"]
        for name, ran in (("earlier way", before), ("read", now), ("nothing new", again)):
            each_ms = 1000 * ran.cpu_s / photos
            click.echo(
                f"{name:12} {1000 * each_ms:6.0f} µs CPU a photo, {2000 / each_ms:8,.0f} a second on two cores, "
                f"{GOAL_MS / each_ms:5.1f} times the goal, {before.cpu_s / ran.cpu_s:5.1f} times the earlier way"
            )
        click.echo(f"at most {now.peak_gb:.2f} GB for {photos:,} photos")
        table = Path(scratch) / "csv"
        table.mkdir()
        write_lines(table / "photos.csv", lines)
        read = apart(take, root / "lake_csv", table, processes)
        assert read.result["n_photos"] == lines
        click.echo(
            f"CSV: {lines / read.cpu_s:,.0f} lines a CPU second, at most {read.peak_gb:.2f} GB for {lines:,} lines"
        )


if __name__ == "__main__":
    _command()
