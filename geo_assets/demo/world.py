"""The embedded demo world: what an imagery platform would know about the demo street, and the photos themselves.

``World.images`` is what the API tells: noisy positions, compass angles and times. ``World.truth`` is where the
cameras really were; only tests and benchmarks may look at it.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import functools
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geo_assets.demo.place import demo_frame
from geo_assets.demo.scene import Camera, cam_from_world, world_from_street
from geo_assets.errors import GeoAssetsError

SEED = 7
GPS_SIGMA_M, ALTITUDE_SIGMA_M, COMPASS_SIGMA_DEG = 3.0, 5.0, 5.0
"""Root mean square of the noise: horizontal distance, as receivers state it; height; heading."""
WIDTH_PX, HEIGHT_PX, PANORAMA_PX = 480, 360, (960, 480)
JPEG_QUALITY = 92
_SENSOR_SIGMA = 0.006
_REACH_M = 42.0  # drives begin and end this far from the crossing
_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DemoImage:
    """One image as the API describes it. Angles are degrees clockwise from north, heights metres on the ellipsoid.

    Attributes:
        computed_rotation: axis-angle [3] in radians, camera from east-north-up (OpenSfM), None without computed pose.
        camera_parameters: focal length and k1, k2, normalised by the longer side; empty for panoramas.
    """

    id: str
    sequence_id: str
    captured_at_ms: int
    lon: float
    lat: float
    altitude_m: float
    compass_deg: float
    computed_lon: float | None
    computed_lat: float | None
    computed_altitude_m: float | None
    computed_compass_deg: float | None
    computed_rotation: tuple[float, float, float] | None
    camera_type: str
    camera_parameters: tuple[float, ...]
    width: int
    height: int
    make: str
    model: str
    creator_id: str
    creator_username: str
    organization_id: str | None
    quality_score: float
    exif_orientation: int = 1

    @property
    def is_pano(self) -> bool:
        """Whether the image is a panorama."""
        return self.camera_type == "spherical"


@dataclass(frozen=True)
class World:
    """The images of the demo city in order of sequence and time.

    Attributes:
        images: what the API tells about each image.
        truth: the true camera of each image id, in metres of ``place.demo_frame()``. Only tests and benchmarks may
            use it: a platform that reads it would be judging itself by its own answer sheet.
        folder: where the JPEG files lie, one ``<id>.jpg`` an image.
    """

    images: tuple[DemoImage, ...]
    truth: Mapping[str, Camera] = field(repr=False)
    folder: Path

    @functools.cached_property
    def by_id(self) -> dict[str, DemoImage]:
        """The images by id."""
        return {image.id: image for image in self.images}

    @functools.cached_property
    def sequences(self) -> dict[str, tuple[DemoImage, ...]]:
        """The images of each sequence in order of capture."""
        found: dict[str, list[DemoImage]] = {}
        for image in self.images:
            found.setdefault(image.sequence_id, []).append(image)
        return {k: tuple(sorted(v, key=lambda image: image.captured_at_ms)) for k, v in found.items()}

    def jpeg(self, image_id: str) -> bytes:
        """The photo as JPEG bytes.

        Raises:
            GeoAssetsError: no such image, or the cache was emptied under a running process.
        """
        if image_id not in self.by_id:
            raise GeoAssetsError(f"The demo world has no image '{image_id}'.")
        try:
            return (self.folder / f"{image_id}.jpg").read_bytes()
        except FileNotFoundError:
            raise GeoAssetsError(
                f"{self.folder} has lost {image_id}.jpg. Delete the folder; the next start renders it anew."
            ) from None


@dataclass(frozen=True)
class _Drive:
    """One sequence: where its car went and what was on it."""

    poses: Array  # [n, 3]: x, y in metres of the street frame, direction of travel in radians from its x axis
    look_deg: float  # how far the camera is turned to the left of the direction of travel
    height_m: float
    focal: float  # normalised by the longer side
    make: str
    model: str
    creator: tuple[str, str]
    organization_id: str | None
    began: dt.datetime
    exposure: float
    white_balance: tuple[float, float, float]
    speed_m_s: float = 5.0
    spherical: bool = False


def demo_world(cache: Path | None = None, log: Callable[[str], None] | None = None) -> World:
    """The demo world; its photos are rendered once into a cache (about half a minute) and read from there after.

    Args:
        cache: folder of the cache; ``$GEO_ASSETS_DEMO_CACHE``, or ``.demo`` in the working directory.
        log: told when rendering begins.
    """
    base = Path(cache or os.environ.get("GEO_ASSETS_DEMO_CACHE") or ".demo").absolute()
    described = _describe()
    folder = base / f"world-{_key(described)}"
    if not folder.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        with (base / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # several steps may start at once: one renders, the others wait
            if not folder.is_dir():
                (log or (lambda _: None))(f"Rendering the demo world of {len(described)} photos into {folder}.")
                _render_all(described, folder)
    return World(tuple(image for image, _, _ in described), {i.id: c for i, c, _ in described}, folder)


def _key(described: list[tuple[DemoImage, Camera, _Drive]]) -> str:
    """Hash of all that decides the pictures: the poses, and the code that draws."""
    digest = hashlib.sha256(f"{SEED} {JPEG_QUALITY} {_SENSOR_SIGMA}".encode())
    for module in ("textures.py", "scene.py", "raycast.py"):
        digest.update((Path(__file__).parent / module).read_bytes())
    for image, camera, drive in described:
        pose = np.round(np.concatenate([camera.centre, camera.cam_from_world.ravel()]), 9).tolist()
        digest.update(repr((image.id, pose, camera.focal_px, drive.exposure, drive.white_balance)).encode())
    return digest.hexdigest()[:16]


def _drives() -> list[_Drive]:
    """Two drives straight through, two that turn at the crossing looking sideways, a stop of two, and a panorama.

    On each arm all look the same way, inwards or outwards, so that their photos share features; together they put
    about 22 perspective images on each of the four arms.
    """
    straight = np.linspace(-_REACH_M, _REACH_M, 26)
    along_a = np.column_stack([straight, np.full(26, -1.5), np.zeros(26)])
    along_b = _quarter_left(along_a)
    left_turn, right_turn = _turn(-0.8, 1.0, 6.0), _quarter_left(_mirrored(_turn(2.0, -1.3, 4.0)))
    phone, action = ("Fairphone", "FP5"), ("GoPro", "HERO11 Black")
    may = dt.datetime(2024, 5, 14, 9, 12, tzinfo=dt.UTC)
    anna, ben, cara = (
        ("102345678901234", "anna_maps"),
        ("109876543210987", "ben-cycles"),
        ("104455667788990", "Cara Öst"),
    )
    day = dt.timedelta(days=1)
    return [
        _Drive(along_a, 0, 2.1, 0.85, *phone, anna, None, may, 1.0, (1, 1, 1)),
        _Drive(along_b, 0, 2.1, 0.85, *phone, anna, None, may + dt.timedelta(minutes=9), 1.08, (1.02, 1, 0.98)),
        _Drive(left_turn, 40, 2.4, 0.8, *action, ben, "2100345678901", may + 3 * day, 0.9, (0.98, 1, 1.02)),
        _Drive(right_turn, 38, 2.4, 0.8, *action, ben, "2100345678901", may + 6 * day, 1.12, (1, 1, 1)),
        _Drive(np.array([[12, -3.9, 0.9], [14.6, -3.9, 0.9]]), 0, 1.7, 0.85, *phone, cara, None, may + 9 * day,
               0.95, (1.01, 1, 1), 1.3),
        _Drive(np.array([[5.5, 0.4, 0.3]]), 0, 2.6, 0.0, "RICOH", "THETA Z1", cara, None, may + 12 * day,
               1.0, (1, 1, 1), spherical=True),
    ]  # fmt: skip


def _turn(lane_in_m: float, lane_out_m: float, radius_m: float) -> Array:
    """Poses [20, 3] that come in along +x at y = ``lane_in_m``, turn left, and leave along +y at x = ``lane_out_m``.

    In the bend there is a photo every 18 degrees; half of that rate leaves the two arms without common features.
    """
    begin, end = lane_out_m - radius_m, lane_in_m + radius_m
    bend = np.linspace(0, np.pi / 2, 6)
    come, leave = np.linspace(-_REACH_M, begin, 8)[:-1], np.linspace(end, _REACH_M, 8)[1:]
    return np.concatenate(
        [
            np.column_stack([come, np.full(7, lane_in_m), np.zeros(7)]),
            np.column_stack([begin + radius_m * np.sin(bend), end - radius_m * np.cos(bend), bend]),
            np.column_stack([np.full(7, lane_out_m), leave, np.full(7, np.pi / 2)]),
        ]
    )


def _mirrored(poses: Array) -> Array:
    """The same way with left and right exchanged."""
    return poses * np.array([1, -1, -1])


def _quarter_left(poses: Array) -> Array:
    """The same way, the street frame turned by 90 degrees: what went along +x goes along +y."""
    return np.column_stack([-poses[:, 1], poses[:, 0], poses[:, 2] + np.pi / 2])


@functools.lru_cache(maxsize=1)
def _describe() -> list[tuple[DemoImage, Camera, _Drive]]:
    """Each image with its true camera and its drive; nothing is rendered."""
    rng = np.random.default_rng(SEED)
    described = []
    for drive in _drives():
        sequence_id = "".join(rng.choice(list(_ID_ALPHABET), 22))
        steps_m = np.hypot(*np.diff(drive.poses[:, :2], axis=0, prepend=drive.poses[:1, :2]).T)
        times = drive.began.timestamp() * 1000 + np.cumsum(steps_m) / drive.speed_m_s * 1000
        sequence_id = _with_both_signs(sequence_id)
        for k, (pose, captured_at) in enumerate(zip(drive.poses, times, strict=True)):
            camera = _camera(rng, drive, pose, k)
            described.append((_reported(rng, drive, camera, sequence_id, int(captured_at)), camera, drive))
    return described


def _with_both_signs(sequence_id: str) -> str:
    """The id with a minus and an underscore in it: both are legal, and both trip naive code."""
    return f"{sequence_id[:7]}-{sequence_id[8:15]}_{sequence_id[16:]}"


def _camera(rng: np.random.Generator, drive: _Drive, pose: Array, k: int) -> Camera:
    """The true camera at a pose of the drive, with the jitter of a car on a road."""
    turn = world_from_street()
    x, y = pose[:2] + rng.normal(0, (0.12, 0.12))
    height = drive.height_m + 0.06 * np.sin(0.9 * k) + rng.normal(0, 0.03)
    street_heading = float(np.arctan2(turn[1, 0], turn[0, 0]))
    heading = pose[2] + street_heading + np.radians(drive.look_deg) + rng.normal(0, np.radians(2.0))
    rotation = cam_from_world(heading, np.radians(1.5) + rng.normal(0, 0.017), rng.normal(0, np.radians(0.4)))
    width, height_px = PANORAMA_PX if drive.spherical else (WIDTH_PX, HEIGHT_PX)
    kind = "spherical" if drive.spherical else "perspective"
    return Camera(kind, width, height_px, drive.focal * width, turn @ np.array([x, y, height]), rotation)


def _reported(
    rng: np.random.Generator, drive: _Drive, camera: Camera, sequence_id: str, captured_at_ms: int
) -> DemoImage:
    """What the platform says about an image: the truth through a GPS receiver, a compass and somebody's SfM."""
    frame = demo_frame()
    sigma = np.array([GPS_SIGMA_M / np.sqrt(2), GPS_SIGMA_M / np.sqrt(2), ALTITUDE_SIGMA_M])
    lon, lat, alt = (float(v) for v in frame.geodetic(camera.centre + rng.normal(0, sigma)))
    clon, clat, calt = (float(v) for v in frame.geodetic(camera.centre + rng.normal(0, sigma)))
    forward = camera.cam_from_world[2]
    heading = np.degrees(np.arctan2(forward[0], forward[1]))
    compass, computed_compass = (heading + rng.normal(0, (COMPASS_SIGMA_DEG, 1.0))) % 360
    rotation = _axis_angle(cam_from_world_noise(rng) @ camera.cam_from_world)
    computed = rng.random() < 0.85
    return DemoImage(
        id=str(rng.integers(10**14, 10**16)),
        sequence_id=sequence_id,
        captured_at_ms=captured_at_ms,
        lon=lon,
        lat=lat,
        altitude_m=round(alt, 3),
        compass_deg=float(compass),
        computed_lon=clon if computed else None,
        computed_lat=clat if computed else None,
        computed_altitude_m=round(calt, 3) if computed else None,
        computed_compass_deg=float(computed_compass) if computed else None,
        computed_rotation=rotation if computed else None,
        camera_type=camera.kind,
        camera_parameters=() if drive.spherical else (drive.focal, 0.0, 0.0),
        width=camera.width,
        height=camera.height,
        make=drive.make,
        model=drive.model,
        creator_id=drive.creator[0],
        creator_username=drive.creator[1],
        organization_id=drive.organization_id,
        quality_score=round(float(rng.uniform(0.55, 0.98)), 3),
    )


def cam_from_world_noise(rng: np.random.Generator, sigma_deg: float = 0.5) -> Array:
    """A small random rotation [3, 3]; each axis has the standard deviation given in degrees."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(rng.normal(0, np.radians(sigma_deg), 3)).as_matrix()


def _axis_angle(rotation: Array) -> tuple[float, float, float]:
    from scipy.spatial.transform import Rotation

    x, y, z = Rotation.from_matrix(rotation).as_rotvec()
    return float(x), float(y), float(z)


def _render_all(described: list[tuple[DemoImage, Camera, _Drive]], folder: Path) -> None:
    """Render every image into a temporary folder that becomes ``folder`` when the last one is written."""
    from geo_assets.demo.scene import build_scene

    scene = build_scene(SEED)
    for stale in folder.parent.glob(f"{folder.name}.*.tmp"):  # left by a killed render; we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    staged = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))

    def one(job: tuple[DemoImage, Camera, _Drive]) -> None:
        image, camera, drive = job
        picture, _ = scene.render(camera)
        with (staged / f"{image.id}.jpg").open("wb") as sink:
            sink.write(_photograph(picture, drive, int(image.id)))
            sink.flush()
            os.fsync(sink.fileno())

    try:
        # The ray caster releases the GIL; more threads than a few would only hold more pictures.
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(one, described))
        staged.chmod(0o755)  # mkdtemp lets nobody else in
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _photograph(picture: npt.NDArray[np.float32], drive: _Drive, seed: int) -> bytes:
    """JPEG bytes of a picture as the drive's camera would have taken it: gain, white balance, sensor noise."""
    from PIL import Image

    gain = np.float32(drive.exposure) * np.array(drive.white_balance, np.float32)
    noisy = picture * gain + np.random.default_rng(seed).normal(0, _SENSOR_SIGMA, picture.shape).astype(np.float32)
    pixels = (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return sink.getvalue()
