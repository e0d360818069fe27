"""A city on paper: any number of images along drawn streets, for tests and benchmarks of the harvest.

Nothing is rendered. What a harvester can lose is here: images without a computed position, images exactly on the
area's edges and just beyond them, sequences of one image and of thousands, crowds within a few metres.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geo_assets.demo.world import DemoImage, World
from geo_assets.errors import GeoAssetsError
from geo_assets.grid import METRES_PER_DEGREE, Bounds

BLOCK_M = 100.0
BEYOND_M = 40.0
"""How far the streets go beyond the area's edges [m]."""
HOT_SHARE, HOT_RADIUS_M = 0.1, 60.0
"""Share of all images in one hot spot, and how far from its middle they stand [m]."""
WITHOUT_COMPUTED = 0.08
OFFSET_SIGMA_M, OFFSET_MOST_M = 3.0, 10.0
"""How far a computed position is off the recorded one, along each axis [m]."""
MEDIAN_SEQUENCE, LONGEST_DRIVE = 83, 1000
_N_PICTURES = 32
_ID_ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
_CAMERAS = (
    ("Apple", "iPhone 14 Pro", "perspective"),
    ("samsung", "SM-G991B", "perspective"),
    ("GoPro", "HERO11 Black", "perspective"),
    ("BLACKVUE", "DR900S-1CH", "perspective"),
    ("hellodrive", "none", "perspective"),
    ("Fairphone", "FP5", "perspective"),
    ("GoPro", "HERO8 Black", "fisheye"),
    ("GoPro", "Max", "spherical"),
    ("RICOH", "THETA Z1", "spherical"),
)
_CAMERA_SHARES = (0.2, 0.15, 0.2, 0.15, 0.08, 0.06, 0.04, 0.07, 0.05)
_NAMES = ("anna_maps", "ben-cycles", "Cara Öst", "o'dell", "宇佐美", "user, with comma", "k")

Array = npt.NDArray[np.float64]
Path2 = tuple[Array, float]  # positions [n, 2] in metres from the south-west corner, and seconds between two of them


@dataclass(frozen=True, repr=False)
class PaperWorld(World):
    """A world without cameras and files, usable wherever a :class:`~geo_assets.demo.world.World` is.

    Attributes:
        bounds: the area; some images stand exactly on its edges and corners, a few beyond them.
        jpeg_kb: size of a photo [kB]; 0 stands for tiny ones.
    """

    bounds: Bounds
    jpeg_kb: float

    def __repr__(self) -> str:
        return f"PaperWorld({len(self.images)} images in {self.bounds})"

    @property
    def ids(self) -> frozenset[str]:
        """The ids of all images."""
        return frozenset(self.by_id)

    def truth_inside(self, bounds: Bounds | None = None) -> frozenset[str]:
        """Ids of the images in a closed rectangle (the area itself by default), by computed position where there is one."""
        box = bounds or self.bounds
        return frozenset(
            image.id
            for image in self.images
            if box.west <= (image.lon if image.computed_lon is None else image.computed_lon) <= box.east
            and box.south <= (image.lat if image.computed_lat is None else image.computed_lat) <= box.north
        )

    def jpeg(self, image_id: str) -> bytes:
        """The photo as JPEG bytes: one of a few pictures, with the id as its comment, so that no two files are equal.

        Raises:
            GeoAssetsError: no such image.
        """
        image = self.by_id.get(image_id)
        if image is None:
            raise GeoAssetsError(f"The paper world has no image '{image_id}'.")
        pool = self._pictures[image.is_pano]
        picture, comment = pool[int(image_id) % len(pool)], image_id.encode()
        return picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + picture[2:]

    @functools.cached_property
    def _pictures(self) -> tuple[list[bytes], list[bytes]]:
        """JPEGs of the photos and of the panoramas, without comments."""
        rng = np.random.default_rng(0)
        sizes = _picture_size(self.jpeg_kb, spherical=False), _picture_size(self.jpeg_kb, spherical=True)
        counts = _N_PICTURES * 3 // 4, _N_PICTURES // 4
        photos, panoramas = (
            [_picture(rng, *size, self.jpeg_kb) for _ in range(n)] for size, n in zip(sizes, counts, strict=True)
        )
        return photos, panoramas


def paper_world(
    n_images: int = 20_000,
    *,
    hot_spots: int = 0,
    stacked: int = 0,
    long_sequence: int = 0,
    side_m: float = 4000.0,
    lon: float = -122.45,
    lat: float = 37.76,
    jpeg_kb: float = 0.0,
    seed: int = 0,
) -> PaperWorld:
    """Draw a city; the same arguments give the same city.

    Args:
        n_images: images in all.
        hot_spots: crowds, each of a tenth of the images within 60 m.
        stacked: images on exactly one point, without computed positions.
        long_sequence: length of one sequence that is longer than others; 0: none.
        side_m: side of the square area.
        lon: longitude of the area's middle [deg].
        lat: latitude of the area's middle [deg].
        jpeg_kb: about the size of a photo [kB]; 0: pictures of some hundred bytes.
        seed: of all that is drawn.

    Raises:
        ValueError: the parts hold more images than the whole.
    """
    rng = np.random.default_rng(seed)
    half_lat = side_m / 2 / METRES_PER_DEGREE
    half_lon = half_lat / math.cos(math.radians(lat))
    bounds = Bounds(*(round(v, 6) for v in (lon - half_lon, lat - half_lat, lon + half_lon, lat + half_lat)))
    paths, on_edge, is_stack = _paths(rng, n_images, hot_spots, stacked, long_sequence, np.array(bounds.size_m))
    return PaperWorld(tuple(_images(rng, bounds, paths, on_edge, is_stack, jpeg_kb)), {}, Path(), bounds, jpeg_kb)


def _paths(
    rng: np.random.Generator, n_images: int, hot_spots: int, stacked: int, long_sequence: int, size_m: Array
) -> tuple[list[Path2], Array, Array]:
    """The way of each sequence; and for each image whether it stands on an edge, and whether in the stack."""
    hot = int(n_images * HOT_SHARE)
    edge = min(16 * max(1, n_images // 2500), n_images // 8)
    rest = n_images - hot * hot_spots - stacked - long_sequence - edge
    if n_images < 1 or rest < 0:
        raise ValueError(
            f"{hot_spots} hot spots of {hot}, a stack of {stacked} and a sequence of {long_sequence} images leave "
            f"nothing of {n_images} images for the streets. Ask for more images or fewer of these."
        )
    spot = size_m * rng.uniform(0.2, 0.8, 2)
    groups: list[tuple[list[int], Callable[[int], Path2]]] = [
        (_sizes(rng, rest), lambda n: _drive(rng, n, size_m)),
        ([long_sequence] if long_sequence else [], lambda n: _drive(rng, n, size_m)),
        (_sizes(rng, edge), lambda n: (_border(rng, n, size_m), 10.0)),
        (_sizes(rng, stacked), lambda n: (np.tile(spot, (n, 1)), 60.0)),
    ]
    for centre in size_m * rng.uniform(0.1, 0.9, (hot_spots, 2)):
        groups.append((_sizes(rng, hot), lambda n, centre=centre: (_crowd(rng, n, centre), 2.0)))
    paths, marks = [], []
    for k, (sizes, way) in enumerate(groups):
        paths += [way(n) for n in sizes]
        marks.append(np.full(sum(sizes), k))
    mark = np.concatenate(marks)
    return paths, mark == 2, mark == 3


def _sizes(rng: np.random.Generator, total: int) -> list[int]:
    """Lengths of sequences that hold so many images together: long-tailed, some of one or two images."""
    if total <= 0:
        return []
    drawn = np.exp(rng.normal(np.log(MEDIAN_SEQUENCE * 1.07), 0.9, total // 20 + 50))
    sizes = np.clip(drawn, 3, LONGEST_DRIVE).astype(int)
    short = rng.random(len(sizes)) < 0.07
    sizes[short] = rng.integers(1, 3, short.sum())
    ends = np.minimum(np.cumsum(sizes), total)
    sizes = np.diff(ends, prepend=0)
    left = total - int(ends[-1])
    return [int(n) for n in sizes if n] + ([left] if left else [])


def _drive(rng: np.random.Generator, n: int, size_m: Array) -> Path2:
    """A drive along the streets that turns at some crossings and turns back a little beyond the area."""
    step = rng.uniform(4, 9)
    legs = int(n * step / BLOCK_M) + 3
    heading = (rng.integers(4) + np.cumsum(rng.choice([-1, 0, 0, 1], legs))) % 4
    ways = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])[heading] * BLOCK_M
    start = rng.integers(0, np.maximum(size_m // BLOCK_M, 1) + 1) * BLOCK_M
    crossings = np.concatenate([[start], start + np.cumsum(ways, axis=0)])
    along = rng.uniform(0, BLOCK_M) + step * np.arange(n) + rng.uniform(-0.3, 0.3, n)
    stations = BLOCK_M * np.arange(legs + 1)
    way = np.column_stack([np.interp(along, stations, crossings[:, axis]) for axis in (0, 1)])
    return _folded(way + rng.normal(0, 1.5, way.shape), size_m), step / rng.uniform(2, 12)


def _folded(way: Array, size_m: Array) -> Array:
    """The way with what lies outside mirrored at a line a little beyond the area's edges."""
    length = size_m + 2 * BEYOND_M
    return length - np.abs(np.mod(way + BEYOND_M, 2 * length) - length) - BEYOND_M


def _crowd(rng: np.random.Generator, n: int, centre: Array) -> Array:
    radius = np.minimum(np.abs(rng.normal(0, HOT_RADIUS_M / 3, n)), HOT_RADIUS_M)
    angle = np.sort(rng.uniform(0, 2 * np.pi, n))
    return centre + np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])


def _border(rng: np.random.Generator, n: int, size_m: Array) -> Array:
    """Points exactly on the four edges and the four corners in turn."""
    share = rng.random((n, 2))
    corners_and_edges = np.array(
        [[0, 0], [0, np.nan], [0, 1], [np.nan, 1], [1, 1], [1, np.nan], [1, 0], [np.nan, 0]], float
    )
    wanted = corners_and_edges[np.arange(n) % 8]
    return np.where(np.isnan(wanted), share, wanted) * size_m


def _images(
    rng: np.random.Generator, bounds: Bounds, paths: list[Path2], on_edge: Array, is_stack: Array, jpeg_kb: float
) -> list[DemoImage]:
    """What the API says about each image of the ways."""
    sizes = np.array([len(way) for way, _ in paths])
    place = np.concatenate([way for way, _ in paths])
    n, n_sequences, sequence = len(place), len(paths), np.repeat(np.arange(len(paths)), sizes)

    computed = (rng.random(n) >= WITHOUT_COMPUTED) & ~is_stack.astype(bool)
    border = np.flatnonzero(on_edge)
    computed[border] = np.arange(len(border)) // 8 % 2 == 0  # each edge and corner with a computed position and without
    offset = np.clip(rng.normal(0, OFFSET_SIGMA_M, (n, 2)), -OFFSET_MOST_M, OFFSET_MOST_M)
    # The position that decides is the computed one: that is what stands on the edge.
    recorded_m = place + np.where((on_edge.astype(bool) & computed)[:, None], offset, 0)
    computed_m = place + np.where(on_edge.astype(bool)[:, None], 0, offset)
    (lon, lat), (clon, clat) = _degrees(bounds, recorded_m), _degrees(bounds, computed_m)

    heading = _headings(place, sequence, sizes)
    compass, computed_compass = np.mod(heading + rng.normal(0, 5, n), 360), np.mod(heading + rng.normal(0, 1, n), 360)
    captured = _times(rng, paths, sizes)
    altitude, computed_altitude = np.round(rng.normal(30, 8, n), 3), np.round(rng.normal(32, 6, n), 3)
    rotation = _rotations(np.radians(computed_compass))
    quality = np.round(rng.uniform(0.3, 0.98, n), 3)

    camera = rng.choice(len(_CAMERAS), n_sequences, p=_CAMERA_SHARES)
    creators = [(str(v), _NAMES[k % len(_NAMES)] + (f"-{k}" if k >= len(_NAMES) else ""))
                for k, v in enumerate(rng.integers(10**14, 10**15, 60))]  # fmt: skip
    creator = np.minimum(rng.zipf(1.4, n_sequences) - 1, len(creators) - 1)
    organization = np.where(rng.random(n_sequences) < 0.15, rng.integers(0, 4, n_sequences), -1)
    sequence_ids = ["".join(row) for row in rng.choice(_ID_ALPHABET, (n_sequences, 22))]
    photo, panorama = _picture_size(jpeg_kb, spherical=False), _picture_size(jpeg_kb, spherical=True)

    about = []  # what all images of a sequence share
    for k in range(n_sequences):
        make, model, kind = _CAMERAS[camera[k]]
        parameters = () if kind == "spherical" else (round(0.7 + 0.02 * int(camera[k]), 3), -0.01, 0.002)
        owner = str(2_100_000_000_000 + int(organization[k])) if organization[k] >= 0 else None
        size = panorama if kind == "spherical" else photo
        about.append((sequence_ids[k], kind, parameters, *size, make, model, *creators[creator[k]], owner))

    rows = zip(
        *(_ids(rng, n), sequence.tolist(), captured.tolist(), lon.tolist(), lat.tolist(), altitude.tolist()),
        *(compass.tolist(), _where(computed, clon), _where(computed, clat), _where(computed, computed_altitude)),
        *(_where(computed, computed_compass), computed.tolist(), rotation.tolist(), quality.tolist()),
        strict=True,
    )
    images = []
    for image_id, k, at, x, y, z, angle, cx, cy, cz, cangle, posed, turn, good in rows:
        name, kind, parameters, width, height, make, model, author, username, owner = about[k]
        images.append(
            DemoImage(
                *(image_id, name, at, x, y, z, angle, cx, cy, cz, cangle, tuple(turn) if posed else None),
                *(kind, parameters, width, height, make, model, author, username, owner, good),
            )
        )
    return images


def _degrees(bounds: Bounds, place_m: Array) -> tuple[Array, Array]:
    """Longitude and latitude of metres from the south-west corner; what stands on an edge gets the edge's own value."""
    out = []
    for axis, low, high in ((0, bounds.west, bounds.east), (1, bounds.south, bounds.north)):
        side = bounds.size_m[axis]
        values = low + place_m[:, axis] / side * (high - low)
        out.append(np.where(place_m[:, axis] == side, high, np.where(place_m[:, axis] == 0, low, values)))
    return out[0], out[1]


def _headings(place: Array, sequence: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Array:
    """Direction to the next image of the sequence, of the last one from the one before it [deg from north]."""
    step = np.diff(place, axis=0, append=place[-1:])
    heading = np.degrees(np.arctan2(step[:, 0], step[:, 1]))
    last = np.cumsum(sizes) - 1
    heading[last] = np.where(sizes > 1, heading[np.maximum(last - 1, 0)], 0)
    return heading


def _times(rng: np.random.Generator, paths: list[Path2], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Milliseconds since the epoch: each sequence begins at some time of eleven years."""
    began = rng.integers(1_400_000_000_000, 1_750_000_000_000, len(paths))
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    apart = np.array([max(int(1000 * seconds), 100) for _, seconds in paths])
    return np.repeat(began, sizes) + within * np.repeat(apart, sizes)


def _rotations(heading: Array) -> Array:
    """Axis-angle [n, 3] of level cameras, from east-north-up, that look along a heading [rad]."""
    from scipy.spatial.transform import Rotation

    sin, cos, zero = np.sin(heading), np.cos(heading), np.zeros_like(heading)
    rows = [[cos, -sin, zero], [zero, zero, zero - 1], [sin, cos, zero]]
    return Rotation.from_matrix(np.array(rows).transpose(2, 0, 1)).as_rotvec()


def _ids(rng: np.random.Generator, n: int) -> list[str]:
    """Distinct numbers of 15 to 17 digits."""
    drawn = np.zeros(0, np.int64)
    while len(drawn) < n:
        digits = rng.integers(14, 17, n)
        more = (10.0**digits * rng.uniform(1, 9.99, n)).astype(np.int64)
        drawn = np.unique(np.concatenate([drawn, more]))
    return [str(v) for v in rng.permutation(drawn)[:n].tolist()]


def _where(there: npt.NDArray[np.bool_], values: Array) -> list[float | None]:
    return [v if t else None for v, t in zip(values.tolist(), there.tolist(), strict=True)]


def _picture_size(jpeg_kb: float, *, spherical: bool) -> tuple[int, int]:
    """Width and height [px] at which noise of middling quality fills so many kilobytes; tiny for 0."""
    if not jpeg_kb:
        return (64, 32) if spherical else (64, 48)
    unit = math.sqrt(jpeg_kb * 1000 * 8 / 2 / (2 if spherical else 12))  # two bits a pixel
    wide, high = (2, 1) if spherical else (4, 3)
    return max(16, round(unit * wide / 8) * 8), max(16, round(unit * high / 8) * 8)


def _picture(rng: np.random.Generator, width: int, height: int, jpeg_kb: float) -> bytes:
    """A JPEG of a random colour, or of noise with the quality that comes nearest to the size."""
    from PIL import Image

    if not jpeg_kb:
        return _jpeg(Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(0, 256, 3))), 80)
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    low, high = 2, 95
    while high - low > 1:  # the size grows with the quality
        middle = (low + high) // 2
        low, high = (middle, high) if len(_jpeg(noise, middle)) <= jpeg_kb * 1000 else (low, middle)
    return _jpeg(noise, low)


def _jpeg(picture: object, quality: int) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=quality)  # type: ignore[attr-defined]
    return sink.getvalue()
