"""Small inputs of the geotag branch in exactly the formats of the three photo sets, faults included.

About 3,000 photos stand around some 60 towns of the globe, a few of them at the antimeridian; some lie anywhere, some
share one position, and some Flickr photos are in two sets. Nothing here is a real photo or a real author.
"""

from __future__ import annotations

import csv
import functools
import io
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from geo_assets.exif import gps_tags

if TYPE_CHECKING:
    from geo_assets.demo.wikimedia import World

N_TOWNS = 60
N_PLACING, N_LANDMARK, N_FLICKR_CSV, N_FLICKR_EXIF = 1500, 900, 520, 80
N_SHARED = 60
"""Flickr photos that are in ``placing_2016`` and in ``flickr_geotag``."""

N_LANDMARKS, N_LISTED = 90, 12
"""Landmarks, and those of them that ``landmark_coordinates.csv`` lists."""

_HALF_SHARD = "shard_4.msg"
_PLAIN = "/,()'!*;:@$_-.~"
"""What the real lists of categories leave unencoded."""
_LICENCE = "https://creativecommons.org/licenses/by/4.0/"


@dataclass(frozen=True)
class _Photo:
    """A made-up Flickr photo."""

    number: str
    lon: float
    lat: float
    author: str

    @property
    def path(self) -> str:
        """Where MediaEval keeps it: two folders of two hex digits, then the number."""
        return f"{int(self.number) % 256:02x}/{int(self.number) // 256 % 256:02x}/{self.number}.jpg"


def write_geotag_inputs(folder: Path, seed: int = 0) -> None:
    """Write ``placing_2016``, ``google_landmark`` and ``flickr_geotag`` into a folder; a seed gives the same bytes.

    - ``placing_2016``: ``shard_0`` and ``shard_1`` with coordinates, ``shard_2`` without (``mp16_places365.csv`` has
      them), ``shard_3`` of bad records, ``shard_4`` that breaks off inside a record.
    - ``google_landmark``: the five ``train*.csv``, and ``landmark_coordinates.csv`` of a few landmarks, one of them as
      text; where the others are, the server of :func:`wikimedia_world` knows.
    - ``flickr_geotag``: ``photos.csv``, and below ``1/`` photos with EXIF positions, one without and one broken.

    Args:
        folder: made if need be; each of the three folders in it is replaced as a whole.
        seed: decides every position, id and author.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    towns = _towns(rng)
    placing = _photos(rng, towns, N_PLACING)
    flickr = _photos(rng, towns, N_FLICKR_CSV + N_FLICKR_EXIF - N_SHARED)
    shared = [placing[i] for i in rng.choice(N_PLACING, N_SHARED, replace=False)]
    with tempfile.TemporaryDirectory(prefix=".geotag_", dir=folder) as scratch:
        staged = Path(scratch)
        _write_placing(staged / "placing_2016", placing)
        _write_landmarks(staged / "google_landmark", rng, _landmarks(seed))
        _write_flickr(staged / "flickr_geotag", rng, [*shared, *flickr])
        for made in staged.iterdir():
            shutil.rmtree(folder / made.name, ignore_errors=True)
            made.rename(folder / made.name)


# -- where the photos stand -------------------------------------------------------------------------------------


def _towns(rng: np.random.Generator) -> np.ndarray:
    """Longitude, latitude [deg], spread [m] and share of the photos of each town [N_TOWNS, 4]."""
    lon = rng.uniform(-180, 180, N_TOWNS)
    lat = np.degrees(np.arcsin(rng.uniform(np.sin(np.radians(-50)), np.sin(np.radians(66)), N_TOWNS)))
    # Fiji and Chukotka: photos of one town on both sides of 180 degrees.
    lon[:3], lat[:3] = (179.995, -179.99, 180.0), (-16.8, -17.9, 65.0)
    share = rng.pareto(1.2, N_TOWNS) + 0.3
    share[:3] += 1.0
    return np.column_stack([lon, lat, rng.uniform(200, 4000, N_TOWNS), share / share.sum()])


def _positions(rng: np.random.Generator, towns: np.ndarray, n: int) -> np.ndarray:
    """Longitudes and latitudes [n, 2]: most in towns, 8 % anywhere, 6 % exactly where an earlier one is."""
    town = towns[rng.choice(len(towns), n, p=towns[:, 3])]
    offset_m = rng.standard_normal((n, 2)) * town[:, 2:3]
    lat = town[:, 1] + offset_m[:, 1] / 111_320
    lon = town[:, 0] + offset_m[:, 0] / (111_320 * np.cos(np.radians(town[:, 1])))
    stray = rng.random(n) < 0.08
    lon[stray] = rng.uniform(-180, 180, int(stray.sum()))
    lat[stray] = np.degrees(np.arcsin(rng.uniform(-0.85, 0.95, int(stray.sum()))))
    positions = np.round(np.column_stack([(lon + 180) % 360 - 180, np.clip(lat, -89.9, 89.9)]), 6)
    for i in np.flatnonzero(rng.random(n) < 0.06):
        positions[i] = positions[rng.integers(i + 1)]
    return positions


def _photos(rng: np.random.Generator, towns: np.ndarray, n: int) -> list[_Photo]:
    numbers = rng.choice(9 * 10**9, n, replace=False, shuffle=False) + 10**9
    authors = rng.integers(10**7, 10**8, max(1, n // 6))
    return [
        _Photo(str(number), float(lon), float(lat), f"{rng.choice(authors)}@N0{number % 9}")
        for number, (lon, lat) in zip(numbers, _positions(rng, towns, n), strict=True)
    ]


# -- placing_2016 -----------------------------------------------------------------------------------------------


def _write_placing(folder: Path, photos: Sequence[_Photo]) -> None:
    folder.mkdir()
    third = len(photos) // 3
    with_position, without, broken = photos[: 2 * third - 60], photos[2 * third - 60 : -60], photos[-60:]
    half = len(with_position) // 2
    for k, part in enumerate((with_position[:half], with_position[half:])):
        (folder / f"shard_{k}.msg").write_bytes(_packed(_record(p) for p in part))
    # The older writer keeps no coordinates; they are joined from the CSV by IMG_ID.
    records = [{"image": _jpeg(int(p.number) % 5), "id": p.path} for p in without]
    (folder / "shard_2.msg").write_bytes(_packed(records))
    scenes = ["S3_Label", "S16_Label", "S365_Label", "Prob_indoor", "Prob_natural", "Prob_urban"]
    header = ["IMG_ID", "AUTHOR", "LAT", "LON", *scenes]
    rows = [[p.path, p.author, p.lat, p.lon, 2, 10, 319, 0.11, 0.22, 0.67] for p in photos]
    _write_csv(folder / "mp16_places365.csv", header, rows)
    (folder / "shard_3.msg").write_bytes(_packed(_bad_records()))
    whole, last = _packed(_record(p) for p in broken), _packed([_record(broken[-1])])
    (folder / _HALF_SHARD).write_bytes(whole[: len(whole) - len(last) // 2])


def _packed(records: Iterable[Any]) -> bytes:
    """Records as a shard keeps them: msgpack maps, one behind the other."""
    import msgpack

    packer = msgpack.Packer(autoreset=False)
    for record in records:
        packer.pack(record)
    return packer.bytes()


def _record(photo: _Photo) -> dict[str, Any]:
    return {
        "image": _jpeg(int(photo.number) % 5),
        "id": photo.path,
        "latitude": photo.lat,
        "longitude": photo.lon,
    }


def _bad_records() -> list[Any]:
    """What a careless writer leaves, and two good records at the antimeridian among it."""
    image = _jpeg(0)
    return [
        {"image": image, "id": "../../etc/7000000001.jpg", "latitude": 48.1, "longitude": 11.5},
        {"image": image, "id": "/7000000002.jpg", "latitude": 48.1, "longitude": 11.5},
        {"image": image, "id": "aa/bb/7000000003.jpg", "latitude": float("nan"), "longitude": 11.5},
        {"image": image, "id": "aa/bb/7000000004.jpg", "latitude": 95.0, "longitude": 11.5},
        {"image": image, "id": "aa/bb/7000000005.jpg", "latitude": 0.0, "longitude": 0.0},
        ["not", "a", "map"],
        {"image": image, "latitude": 48.1, "longitude": 11.5},
        {"image": image, "id": "aa/bb/7000000006.jpg", "latitude": 48.1},
        {"image": image, "id": "aa/bb/7000000007.jpg", "latitude": "48.1 N", "longitude": 11.5},
        {"image": image, "id": "aa/bb/7000000008.jpg", "latitude": -16.8, "longitude": 179.9999},
        {"image": image, "id": "aa/bb/7000000009.jpg", "latitude": -16.8, "longitude": -179.9999},
    ]


# -- google_landmark --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Landmark:
    """A made-up landmark: its number, the name of its category, and where it is [deg]."""

    id: int
    name: str
    lon: float
    lat: float

    @property
    def title(self) -> str:
        return f"Category:{self.name.replace('_', ' ')}"


def _landmarks(seed: int) -> list[_Landmark]:
    """Landmarks whose ids have gaps, as the real ones have."""
    towns, rng = _towns(np.random.default_rng(seed)), np.random.default_rng([seed, 1])
    ids = np.sort(rng.choice(203_094, N_LANDMARKS, replace=False))
    forms = ("Demo_Tower_{}", "Château_de_Démo_{}", "Demo's_Bridge_{}", "Hill,_{}_(Demo)")
    return [
        _Landmark(int(i), forms[k % len(forms)].format(k), float(lon), float(lat))
        for k, (i, (lon, lat)) in enumerate(zip(ids, _positions(rng, towns, N_LANDMARKS), strict=True))
    ]


def _write_landmarks(folder: Path, rng: np.random.Generator, landmarks: Sequence[_Landmark]) -> None:
    """Landmarks with a photo or many."""
    folder.mkdir()
    n = len(landmarks)
    popularity = rng.pareto(1.1, n) + 0.2
    of = np.concatenate([np.arange(n), rng.choice(n, N_LANDMARK - n, p=popularity / popularity.sum())])
    photos = [
        (f"{value:016x}", landmarks[k]) for value, k in zip(rng.integers(0, 2**63 - 1, N_LANDMARK), of, strict=True)
    ]
    urls = [f"https://upload.wikimedia.org/demo/{p[0]}/{p[:2]}/{mark.name}.jpg" for p, mark in photos]
    train = [[p, url, mark.id] for (p, mark), url in zip(photos, urls, strict=True)]
    _write_csv(folder / "train.csv", ["id", "url", "landmark_id"], train)
    clean: dict[int, list[str]] = {}
    for p, mark in photos:
        clean.setdefault(mark.id, []).append(p)
    rows = [[i, " ".join(sorted(members))] for i, members in sorted(clean.items()) if len(members) > 2]
    _write_csv(folder / "train_clean.csv", ["landmark_id", "images"], rows)
    credit = [
        [p, url, f"Author {k % 23}", _LICENCE, f"File:{mark.name}.jpg"]
        for (p, mark), url, k in zip(photos, urls, of, strict=True)
    ]
    _write_csv(folder / "train_attribution.csv", ["id", "url", "author", "license", "title"], credit)
    urls = [f"http://commons.wikimedia.org/wiki/Category:{quote(mark.name, safe=_PLAIN)}" for mark in landmarks]
    category = [[mark.id, url] for mark, url in zip(landmarks, urls, strict=True)]
    _write_csv(folder / "train_label_to_category.csv", ["landmark_id", "category"], category)
    header = ["landmark_id", "category", "supercategory", "hierarchical_label", "natural_or_human_made"]
    kinds = [
        [
            mark.id,
            url,
            *(("hill", "mountain", "natural") if "Hill" in mark.name else ("tower", "building", "human-made")),
        ]
        for mark, url in zip(landmarks, urls, strict=True)
    ]
    _write_csv(folder / "train_label_to_hierarchical.csv", header, kinds)
    known = [[mark.id, mark.lon, mark.lat, ""] for mark in landmarks[60 : 60 + N_LISTED]]
    known[1][1:] = ["", "", f"{_dms(landmarks[61].lat, 'NS')}, {_dms(landmarks[61].lon, 'EW')}"]
    known[2][1:] = ["NaN", "NaN", ""]
    _write_csv(folder / "landmark_coordinates.csv", ["landmark_id", "lon", "lat", "geohack"], known)


def _dms(value: float, sides: str) -> str:
    """Degrees as people write them, to a hundredth of a second."""
    hundredths = round(abs(value) * 360_000)
    return f"{hundredths // 360_000}° {hundredths // 6000 % 60}′ {hundredths % 6000 / 100:g}″ {sides[value < 0]}"


def wikimedia_world(seed: int = 0) -> World:
    """What Commons and Wikidata know of the landmarks that :func:`write_geotag_inputs` writes with the same seed.

    A third have a coordinate of their own, most of the others one of their item; an eighth have none, for one of the
    reasons that there are: no such category, no item, none there, a deprecated, an unknown one, or one on the Moon.
    """
    from geo_assets.demo.wikimedia import Category, Statement, World

    categories: dict[str, Category] = {}
    items: dict[str, tuple[Statement, ...]] = {"Q1000": ()}
    merged: dict[str, str] = {}
    for k, mark in enumerate(_landmarks(seed)):
        place, item, topic, target = (mark.lon, mark.lat), f"Q{2000 + k}", f"Q{5000 + k}", f"{mark.title} (moved)"
        own, of_item = Category(place, item), Category(item=item)
        here, there = Statement(place), Statement((place[0] / 2, place[1] / 2))
        form = k % 15
        categories[mark.title] = of_item
        if form in (1, 2, 3, 4, 5, 14):
            categories[mark.title] = own
        elif form in (6, 7, 8):
            items[item] = (here,)
        elif form == 9:
            items[item] = (replace(there, rank="deprecated"), there, replace(here, rank="preferred"))
        elif form == 10:
            items |= {item: (Statement(topic=topic),), topic: (here,)}
        elif form == 11:
            categories |= {
                mark.title: Category(redirect=f"{target} twice"),
                f"{target} twice": Category(redirect=target),
            }
            categories[target] = own
        elif form == 12:
            categories |= {
                mark.title: Category(text=f"{{{{Category redirect|{target.partition(':')[2]}}}}}"),
                target: own,
            }
        elif form == 0:
            categories[mark.title] = Category()
        else:
            gaps = (replace(here, rank="deprecated"), Statement(), replace(here, globe="Q405"))
            which = k // 15
            if which < len(gaps):
                items[item] = (gaps[which],)
            elif which == 3:
                del categories[mark.title]
            elif which == 4:
                merged[item], items[topic] = topic, (here,)
    return World(categories, items, merged)


# -- flickr_geotag ----------------------------------------------------------------------------------------------


def _write_flickr(folder: Path, rng: np.random.Generator, photos: Sequence[_Photo]) -> None:
    """A CSV of most photos, and JPEG files with EXIF of the others."""
    photos = [photos[i] for i in rng.permutation(len(photos))]
    by_exif, listed = photos[:N_FLICKR_EXIF], photos[N_FLICKR_EXIF:]
    (folder / "1").mkdir(parents=True)
    rows = [[p.number, p.author, p.lat, p.lon] for p in listed]
    _write_csv(folder / "photos.csv", ["photo_id", "owner", "latitude", "longitude"], rows)
    for photo in by_exif:
        path = folder / "1" / photo.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_with_exif(_jpeg(int(photo.number) % 5), photo))
    (folder / "1" / "9900000001.jpg").write_bytes(_jpeg(1))
    (folder / "1" / "9900000002.jpg").write_bytes(_jpeg(2)[:60])


def _with_exif(jpeg: bytes, photo: _Photo) -> bytes:
    """The photo with its position, author and time of the satellites in its EXIF; the pixels are not touched."""
    import piexif

    seconds = int(photo.number) % 86_400
    gps = {
        **gps_tags(photo.lon, photo.lat),
        piexif.GPSIFD.GPSDateStamp: b"2013:08:17",
        piexif.GPSIFD.GPSTimeStamp: ((seconds // 3600, 1), (seconds // 60 % 60, 1), (seconds % 60, 1)),
    }
    exif = piexif.dump({"0th": {piexif.ImageIFD.Artist: photo.author.encode()}, "GPS": gps})
    sink = io.BytesIO()
    piexif.insert(exif, jpeg, sink)
    return sink.getvalue()


@functools.cache
def _jpeg(kind: int) -> bytes:
    """One of a few tiny pictures."""
    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * kind, 200 - 30 * kind, 90)).save(sink, "JPEG", quality=60, optimize=True)
    return sink.getvalue()


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as sink:
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
