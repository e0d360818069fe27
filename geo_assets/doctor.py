"""``geo-assets doctor``: what stands in the way on this machine, each finding with its way out.

No finding prints a token, and nothing is changed but a probe file that is written to the lake and removed.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import uuid
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from geo_assets.errors import ApiError, ConfigError, GeoAssetsError
from geo_assets.files import replacing
from geo_assets.home import find_home
from geo_assets.lake import Lake
from geo_assets.limits import HostLimits
from geo_assets.machine import available_bytes, usable_cores
from geo_assets.settings import EMBEDDED, City, Settings, load, mapillary_token, settings_path

State = Literal["ok", "warn", "fail"]

NATIVE = ("pycolmap", "numba", "duckdb", "pyogrio")
"""Packages of compiled code, which may be installed and yet not load."""

LEAST_GB, DEMO_GB = 0.6, 2.6
"""Peak memory of a harvest of 200,000 images, and of the whole demo with training on the CPU, as measured [GB]."""

LEAST_DISK_GB, SCARCE_DISK_GB = 1.0, 10.0
TOKEN_PAGE = "https://www.mapillary.com/dashboard/developers"
_CODE = (
    "import importlib, sys\nfor name in sys.argv[1:]:\n"
    "    try:\n        print(name, flush=True, end=' '); importlib.import_module(name); print('ok', flush=True)\n"
    "    except Exception as error:\n        print(type(error).__name__, str(error).splitlines()[:1], flush=True)\n"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        about: what was looked at.
        state: ``ok``, ``warn`` for what works but could be better, ``fail`` for what will not work.
        said: what was found.
        way_out: what to do; empty where nothing has to be done.
    """

    about: str
    state: State
    said: str
    way_out: str = ""


def examine(*, offline: bool = False) -> Iterator[Finding]:
    """Look at everything, one finding after the other.

    Args:
        offline: ask nobody over the network.
    """
    yield _python()
    yield from _packages()
    yield from _settings()
    try:
        settings = load()
    except GeoAssetsError:
        settings = None
    yield from _machine(settings)
    if settings is not None:
        lake = Lake(settings.lake)
        is_writable = _lake(lake)
        yield is_writable
        yield from _disk(lake)
        yield from _hosts(settings, lake, offline, shared=is_writable.state == "ok")
        yield from _engines(settings)
        yield from _wikimedia(settings)
    yield from _instance()
    yield _browser()


def _python() -> Finding:
    return Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")  # an older one could not read this


def _packages() -> Iterator[Finding]:
    yield _locked()
    run = subprocess.run([sys.executable, "-c", _CODE, *NATIVE], capture_output=True, text=True, check=False)
    found = {name: said for name, _, said in (line.partition(" ") for line in run.stdout.splitlines())}
    broken = {name: found[name].strip() for name in NATIVE if name in found and found[name].strip() != "ok"}
    for name, error in broken.items():
        said = f"{name} cannot be imported: {error or f'its process died with status {run.returncode}'}"
        yield Finding(
            "native code", "fail", said, f"Reinstall it: {sys.executable} -m pip install --force-reinstall {name}"
        )
    if not broken:
        yield Finding("native code", "ok", f"{', '.join(NATIVE)} can be imported")


def _locked() -> Finding:
    """Installed packages against the lock file of a checkout, or else against what the package asks for."""
    from packaging.requirements import Requirement

    lock = Path(__file__).parent.parent / "requirements.lock"
    wanted = _lines_of(lock) if lock.is_file() else importlib.metadata.requires("geo-assets") or []
    missing, other, n = [], [], 0
    for line in wanted:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        n += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            other.append(f"{requirement.name} {version} instead of {requirement.specifier}")
    again = f"Install what is asked for: {sys.executable} -m pip install " + (
        "--require-hashes -r requirements.lock" if lock.is_file() else "--upgrade geo-assets"
    )
    if missing or other:
        said = "; ".join(filter(None, [", ".join(other[:5]), f"missing: {', '.join(missing[:5])}" if missing else ""]))
        return Finding("packages", "warn", said, again)
    return Finding("packages", "ok", f"{n} packages as {'requirements.lock' if lock.is_file() else 'geo-assets'} wants")


def _lines_of(lock: Path) -> list[str]:
    """The requirements of a lock file, without their hashes."""
    lines = (line.split("\\")[0].strip() for line in lock.read_text().splitlines())
    return [line for line in lines if re.match(r"[A-Za-z0-9]", line)]


def _settings() -> Iterator[Finding]:
    path = settings_path()
    try:
        settings = load()
    except ConfigError as error:
        problems = error.figures.get("problems") or [str(error)]
        for problem in problems:
            yield Finding("settings", "fail", str(problem), f"Correct it in {path}, or in a variable GEO_ASSETS_...")
        return
    except GeoAssetsError as error:
        yield Finding("settings", "fail", str(error), f"Correct it in {path}.")
        return
    where = str(path) if path.exists() else "defaults, there is no geo_assets.toml"
    yield Finding("settings", "ok", f"{where}; cities: {', '.join(settings.cities)}")


def _machine(settings: Settings | None) -> Iterator[Finding]:
    cores = usable_cores()
    slow = "" if cores > 1 else "With one core a box takes hours: give the process more."
    yield Finding("cores", "ok" if cores > 1 else "warn", f"{cores} usable", slow)
    yield from _memory(settings)
    yield _gpu(settings)


def _memory(settings: Settings | None) -> Iterator[Finding]:
    free = available_bytes()
    if free is None:
        yield Finding("memory", "warn", "this system does not say how much is available")
        return
    said = f"{free / 1e9:.1f} GB available"
    if free < LEAST_GB * 1e9:
        way_out = "End other programs, or take a larger machine."
        yield Finding("memory", "fail", f"{said}; a harvest alone takes up to {LEAST_GB} GB", way_out)
        return
    asked = {}
    if settings is not None:
        asked["reconstruct.block_memory_mb"] = settings.reconstruct.block_memory_mb / 1e3
        asked["geotag.memory_gb"] = settings.geotag.memory_gb
    beyond = {name: gb for name, gb in asked.items() if gb * 1e9 > free}
    if free < DEMO_GB * 1e9:
        yield Finding(
            "memory", "warn", f"{said}; the demo with its trainings took {DEMO_GB} GB at most", "End other programs."
        )
    else:
        yield Finding("memory", "ok", f"{said}; the demo with its trainings took {DEMO_GB} GB at most")
    for name, gb in beyond.items():
        yield Finding(
            "memory", "warn", f"{name} allows {gb:g} GB, more than is available", f"Lower {name} to what there is."
        )


def _gpu(settings: Settings | None) -> Finding:
    wants = settings is not None and settings.reconstruct.device == "cuda"
    missing = 'Install the driver, or set reconstruct.device = "auto".' if wants else ""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("gpu", "fail" if wants else "ok", "none found (no nvidia-smi); the CPU is used", missing)
    query = [program, "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return Finding("gpu", "fail" if wants else "warn", "nvidia-smi does not answer", "Look at the driver.")
    if run.returncode or not run.stdout.strip():
        said = (run.stderr.strip() or run.stdout.strip() or "nvidia-smi failed").splitlines()[0]
        return Finding("gpu", "fail" if wants else "warn", said, missing or "Look at the driver.")
    cards = [line.split(", ") for line in run.stdout.strip().splitlines()]
    return Finding("gpu", "ok", "; ".join(f"{c[0]}, {c[1]} of {c[2]} free" if len(c) == 3 else c[0] for c in cards))


# -- the lake -----------------------------------------------------------------------------------------------


def _lake(lake: Lake) -> Finding:
    """Whether a file can be written, synced, renamed, read and removed where the lake is."""
    data = uuid.uuid4().hex.encode()
    name = f".probe-{data[:8].decode()}"
    where = lake.uri(lake.root)
    try:
        if lake.is_local and not Path(lake.root).exists():
            above = _existing(Path(lake.root))
            with replacing(above / name) as sink:
                sink.write(data)
            (above / name).unlink()
            return Finding("lake", "ok", f"{where} can be made; there is nothing yet")
        lake.put_bytes(name, data)
        same = lake.get_bytes(name) == data
        lake.remove(name)
    except Exception as error:  # object storage fails in ways of its own
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        way_out = "Make it writable for this user, or set GEO_ASSETS_LAKE to a folder or address that is."
        return Finding("lake", "fail", f"{where} cannot be written: {reason}", way_out)
    if not same:
        return Finding("lake", "fail", f"{where} gives back other bytes than were written", "Use another disk.")
    return Finding("lake", "ok", f"{where} can be written, synced and renamed in")


def _disk(lake: Lake) -> Iterator[Finding]:
    if not lake.is_local:
        return
    free = shutil.disk_usage(_existing(Path(lake.root))).free / 1e9
    said, way_out = f"{free:.1f} GB free at the lake", "Free some space, or set GEO_ASSETS_LAKE to another disk."
    if free < LEAST_DISK_GB:
        yield Finding("disk", "fail", f"{said}; a run needs {LEAST_DISK_GB:g} GB at least", way_out)
    elif free < SCARCE_DISK_GB:
        yield Finding("disk", "warn", f"{said}; geo-assets harvest CITY --dry-run says what a city takes", way_out)
    else:
        yield Finding("disk", "ok", said)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


# -- others -------------------------------------------------------------------------------------------------


def _hosts(settings: Settings, lake: Lake, offline: bool, *, shared: bool) -> Iterator[Finding]:
    """The token at each graph API that the cities ask, and whether a tile host has blocked this address."""
    asking = {
        name: city for name, city in settings.cities.items() if city.photos is None and city.graph_url != EMBEDDED
    }
    if not asking:
        yield Finding("token", "ok", "none is needed: no city asks Mapillary")
        return
    by_host: dict[str, list[str]] = {}
    for name, city in asking.items():
        by_host.setdefault(city.graph_url or settings.mapillary.graph_url, []).append(name)
    for url, names in by_host.items():
        yield _token(settings, lake if shared else None, url, asking[names[0]], names, offline)
    for url in sorted({city.tiles_url or settings.mapillary.tiles_url for city in asking.values()}):
        host = urllib.parse.urlsplit(url).netloc
        until = HostLimits({}, host, lake).blocked_until
        if until > time.time():
            when = dt.datetime.fromtimestamp(until, dt.UTC)
            said = f"{host} has blocked this address and is not asked until {when:%Y-%m-%d %H:%M} UTC"
            way_out = "Wait: probing prolongs a block. Tiles that are in the lake are used meanwhile."
            yield Finding("tile host", "warn", said, way_out)
        else:
            yield Finding("tile host", "ok", f"{host}: no block is known")


def _token(settings: Settings, lake: Lake | None, url: str, city: City, names: list[str], offline: bool) -> Finding:
    """One search of a single row tells a good token from an expired one; errors are classified as the harvest does."""
    host, token = urllib.parse.urlsplit(url).netloc, mapillary_token()
    anew = f"Make one at {TOKEN_PAGE} and put MAPILLARY_TOKEN=MLY|... into .env."
    if token is None:
        return Finding("token", "fail", f"MAPILLARY_TOKEN is not set, and {', '.join(names)} asks {host}", anew)
    if offline:
        return Finding("token", "ok", f"set; {host} was not asked (--offline)")
    from geo_assets.harvest.mapillary import Mapillary, Patience, kind_of

    quick = settings.mapillary.model_copy(update={"graph_url": url, "timeout_s": 10.0})
    try:
        with Mapillary(quick, token.get_secret_value(), Patience(attempts=1, pauses=0), lake) as client:
            client.search(city.grid.bounds(next(iter(city.grid))), ("id",), limit=1)
    except ApiError as error:
        kind = kind_of(error)
        if kind == "fatal":
            word = "has expired" if error.subcode == 463 or "expire" in str(error).lower() else "is not valid"
            return Finding("token", "fail", f"MAPILLARY_TOKEN {word}: {host} refuses it", anew)
        if kind == "limited":
            return Finding(
                "token", "warn", f"{host} says that too much is asked at the moment", "Look again in a minute."
            )
        if kind == "dense":
            return Finding("token", "ok", f"{host} accepts it")
        if error.status == 0:
            way_out = "Look at the network, HTTPS_PROXY, and mapillary.graph_url of the settings; --offline skips this."
            return Finding("token", "fail", f"no answer from {host}: {error}", way_out)
        return Finding("token", "warn", f"{host} did not say: {error}", "Look again later.")
    return Finding("token", "ok", f"{host} accepts it")


def _engines(settings: Settings) -> Iterator[Finding]:
    """The engine that would train, of each city that has one of its own, and why the others would not."""
    from geo_assets.splats.engine import choose_engine, engines

    decisive = ("engine", "command", "brush", "opensplat", "nerfstudio", "gsplat_python")
    several = {"": settings.splats} | {name: settings.splats_of(name) for name in settings.cities}
    known: list[dict[str, object]] = []
    for place, options in several.items():
        if (said := options.model_dump(include=set(decisive))) in known:
            continue
        known.append(said)
        about = f"splats of {place}" if place else "splat engine"
        try:
            chosen = choose_engine(options, lambda _: None)
        except GeoAssetsError as error:
            yield Finding(about, "fail", str(error), 'Set splats.engine = "auto", or install what it names.')
        else:
            yield Finding(about, "ok", f"{chosen.name} trains (splats.engine = {options.engine})")
    for name, engine in engines(settings.splats).items():
        if reason := engine.available():
            prefix = f"engine '{name}'"
            yield Finding(f"  {name}", "ok", reason.removeprefix(prefix).lstrip(": "))


def _wikimedia(settings: Settings) -> Iterator[Finding]:
    geotag = settings.geotag
    if geotag.google_landmark is None or not geotag.wikimedia.ask or geotag.wikimedia.dumps is not None:
        return
    if geotag.wikimedia.contact:
        yield Finding("wikimedia", "ok", "a contact is sent, as Wikimedia asks: 200 requests a minute")
        return
    way_out = 'Set contact = "you@example.org" in [geotag.wikimedia]: 200 requests a minute instead of 10.'
    yield Finding("wikimedia", "warn", "no contact is set, so landmarks are asked for slowly", way_out)


# -- Dagster ------------------------------------------------------------------------------------------------


def _instance() -> Iterator[Finding]:
    home = find_home()
    if home is None:
        named = os.environ.get("DAGSTER_HOME")
        if named:
            yield Finding(
                "instance", "fail", f"DAGSTER_HOME is {named}, which is no folder", "Make it, or correct .env."
            )
        else:
            yield Finding("instance", "ok", "none yet; the first run makes .dagster/ here")
        return
    yield _pools(home)
    import dagster as dg

    from geo_assets import runs

    try:
        with dg.DagsterInstance.get() as instance:
            old, dead = runs.old_schemas(instance), runs.dead_runs(instance)
            stuck = set(runs.long_runs(instance, 6 * 3600)) - {run.run_id for run in dead}
    except Exception as error:  # a broken database, a wrong dagster.yaml, no Postgres
        said = f"{home} cannot be opened: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        yield Finding(
            "instance", "fail", said, "Correct dagster.yaml, or move the folder away: the lake needs none of it."
        )
        return
    if old:
        yield Finding(
            "instance", "fail", f"its tables are of an older Dagster: {', '.join(old)}", "dagster instance migrate"
        )
    else:
        yield Finding("instance", "ok", f"{home}, its tables are as this Dagster wants them")
    if dead:
        said = f"{len(dead)} runs whose process was killed hold their slots"
        yield Finding("runs", "warn", said, "The next geo-assets materialize ends them and frees the slots.")
    if stuck:
        said = f"running for more than six hours: {', '.join(sorted(stuck)[:3])}"
        yield Finding("runs", "warn", said, "Look at them in the UI (geo-assets dev), and end what hangs.")
    if not dead and not stuck:
        yield Finding("runs", "ok", "none is stuck")


def _pools(home: Path) -> Finding:
    """Whether the instance bounds what runs at once, and frees what a killed run holds."""
    import yaml

    path, template = home / "dagster.yaml", Path(__file__).parent / "deploy" / "dagster.yaml"
    way_out = f"Take it over from {template}."
    if not path.exists():
        return Finding("pools", "warn", f"{path} is missing: nothing bounds what runs at once", way_out)
    try:
        said = yaml.safe_load(path.read_text()) or {}
        concurrency = said.get("concurrency") or {}
        limit = (concurrency.get("pools") or {}).get("default_limit")
        most = (concurrency.get("runs") or {}).get("max_concurrent_runs")
        monitored = bool((said.get("run_monitoring") or {}).get("enabled"))
    except (yaml.YAMLError, AttributeError) as error:
        return Finding("pools", "fail", f"{path} is not readable: {str(error).splitlines()[0]}", way_out)
    if limit is None:
        return Finding("pools", "warn", f"{path} gives pools no default limit", way_out)
    if not monitored:
        return Finding("pools", "warn", f"{path} has no run_monitoring: a killed run keeps its slots for ever", way_out)
    bound = f"; at most {most} runs at once" if most else ""
    return Finding(
        "pools", "ok", f"{limit} step{'s' * (limit != 1)} of each pool at once{bound}; killed runs free their slots"
    )


def _browser() -> Finding:
    try:
        webbrowser.get()
    except webbrowser.Error:
        way_out = "geo-assets show CITY --print gives the address to open elsewhere."
        return Finding("browser", "warn", "none is known to this system", way_out)
    return Finding("browser", "ok", "one is there for show, serve and dev")


# -- what is said -------------------------------------------------------------------------------------------


def lines(finding: Finding) -> list[str]:
    """A finding for a terminal; its way out stands below it."""
    said = [f"{finding.state:<5} {finding.about:<14} {finding.said}"]
    return said + ([f"{'':<21}-> {finding.way_out}"] if finding.way_out else [])


def as_json(findings: list[Finding]) -> str:
    """All findings as one line of JSON."""
    return json.dumps({"ok": not any(f.state == "fail" for f in findings), "findings": [vars(f) for f in findings]})
