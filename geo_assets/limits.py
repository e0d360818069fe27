"""How often a host may be asked: paces, pauses and blocks that all workers of a lake share.

The state of a host is one small file in ``files/limits`` of the lake, changed under a file lock, so that processes
on one machine, and machines on one shared disk, take their turns from the same clock. A lake on object storage has
no locks: there each machine keeps its own file, says in the lake that it is alive, and takes its share of the rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import struct
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from geo_assets.errors import ConfigError
from geo_assets.lake import Lake

Purpose = Literal["tiles", "searches", "entities", "files", "calls"]

MARGIN = 0.99
"""Share of a limit that is used: clocks of client and server do not tick together."""

WINDOW_S = 60.0
LEASE_S = 0.05
"""Turns are taken from the file for so long at once; a lock for each request would cost more than the request."""

BLOCKED_FOR_S = 24 * 3600.0
"""The tile host forgets an address this long after its last refused request."""

ALIVE_FOR_S, HEARTBEAT_S = 90.0, 30.0
LEARNED_FOR_S = 600.0
"""A limit that was inferred is believed for so long."""

CERTAIN = 4
"""Refusals in a row that are no chance any more."""

_ENOUGH = 30
"""Accepted requests in a minute from which a limit is inferred."""

_TURNS = {"searches": 0, "calls": 0, "entities": 1, "any": 2}
_HEAD = struct.Struct(
    "<6d"
)  # next start for each of _TURNS (no host has searches and calls), end of the pause, learned rate [1/min] and its end


class HostLimits:
    """The paces of one host.

    Args:
        per_minute: limit of each purpose; a purpose without one is not paced. ``tiles`` may come in a burst as long
            as no 60 seconds hold more than the limit; the others are spaced evenly.
        host: name of the host, for the file.
        lake: whose workers share the limits; None for a client that is alone.
    """

    def __init__(self, per_minute: Mapping[str, float], host: str, lake: Lake | None) -> None:
        self.per_minute = dict(per_minute)
        name = re.sub(r"[^A-Za-z0-9.-]", "_", host) or "host"
        self._lake, self._name = lake, name
        self._beat, self._machines = 0.0, 1
        self._alone: tempfile.TemporaryDirectory[str] | None = None
        if lake is None:
            self._alone = tempfile.TemporaryDirectory(prefix="geo_assets_limits_")
            folder = Path(self._alone.name)
        else:
            folder = Path(lake.uri(lake.key("limits"))) if lake.is_local else _machine_folder(lake)
        self._path = folder / f"{name}.limits"
        self._leases: dict[str, deque[float]] = {}
        self.paused_until = self._blocked_until = 0.0

    def take(self, purpose: str) -> float:
        """The time [s since the epoch] at which the next request of a purpose may start."""
        limit = self.per_minute.get(purpose)
        if not limit:
            return max(time.time(), self.paused_until) if purpose != "files" else 0.0
        if purpose == "tiles":
            return self._take_tile(limit)
        lease = self._leases.setdefault(purpose, deque())
        while lease and lease[0] < time.time() - LEASE_S:
            lease.popleft()  # a turn that was slept through is not made up for: two would come together
        if not lease:
            self._lease(purpose, limit, lease)
        return max(lease.popleft(), self.paused_until)

    def pause(self, until: float, learned_per_minute: float | None = None) -> None:
        """Stop all requests to the host until a time, and go on at a learned rate."""
        self.paused_until = max(self.paused_until, until)
        self._leases.clear()
        with self._locked() as state:
            head = list(_HEAD.unpack(state[: _HEAD.size]))
            head[3] = max(head[3], until)
            if learned_per_minute is not None:
                head[2], head[4], head[5] = until, learned_per_minute, until + LEARNED_FOR_S
            state[: _HEAD.size] = _HEAD.pack(*head)

    # -- the block of the tile host -------------------------------------------------------------------------

    @property
    def blocked_until(self) -> float:
        """Time [s since the epoch] before which the host must not be probed; 0 where it is not blocked."""
        if self._lake is None:
            return self._blocked_until
        key = self._lake.key("limits", f"{self._name}.blocked.json")
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return float(json.loads(self._lake.get_bytes(key))["until"])
        return 0.0

    def block(self) -> None:
        """Remember that the host turned this address away."""
        until = time.time() + BLOCKED_FOR_S
        self._blocked_until = until
        if self._lake is not None:
            key = self._lake.key("limits", f"{self._name}.blocked.json")
            self._lake.put_bytes(key, json.dumps({"until": until}).encode())

    # -- the file -------------------------------------------------------------------------------------------

    def _lease(self, purpose: str, limit: float, lease: deque[float]) -> None:
        limit *= MARGIN / self._sharers()
        with self._locked() as state:
            head = list(_HEAD.unpack(state[: _HEAD.size]))
            self.paused_until, learned = head[3], head[4] if time.time() < head[5] else 0.0
            rate = min(limit, learned) if learned else limit
            n, gap_s = max(1, int(rate / 60 * LEASE_S)), 60.0 / rate
            slot = _TURNS["any" if learned else purpose]
            now = time.time()
            due = head[slot] if head[slot] < now + 2 * WINDOW_S + n * gap_s else now  # a clock was set back
            start = max(now, due, self.paused_until)
            head[slot] = start + n * gap_s
            state[: _HEAD.size] = _HEAD.pack(*head)
        lease.extend(start + i * gap_s for i in range(n))

    def _take_tile(self, limit: float) -> float:
        most = max(1, int(limit / self._sharers()))
        with self._locked() as state:
            times = sorted(t for (t,) in struct.iter_unpack("<d", bytes(state[_HEAD.size :])))
            now = time.time()
            times = [t for t in times if now - 2 * WINDOW_S < t < now + 3600][-most:]
            self.paused_until = max(self.paused_until, _HEAD.unpack(state[: _HEAD.size])[3])
            free_at = times[0] + WINDOW_S / MARGIN if len(times) >= most else now
            start = max(now, free_at, self.paused_until)
            times = [*times, start][-most:]
            state[_HEAD.size :] = struct.pack(f"<{len(times)}d", *times)
        return start

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bytearray]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            state = bytearray(os.pread(descriptor, size, 0))
            if len(state) < _HEAD.size or (len(state) - _HEAD.size) % 8:
                state = bytearray(_HEAD.size)
            before = bytes(state)
            yield state
            if bytes(state) != before:
                os.pwrite(descriptor, state, 0)
                os.ftruncate(descriptor, len(state))
        finally:
            os.close(descriptor)

    def _sharers(self) -> int:
        """Machines that share the rate: 1 where a lock does, else those that were alive lately."""
        if self._lake is None or self._lake.is_local:
            return 1
        now = time.time()
        if now - self._beat > HEARTBEAT_S:
            folder = self._lake.key("limits", self._name)
            self._lake.put_bytes(f"{folder}/{_machine_name(self._path.parent)}", str(now).encode())
            beats = []
            for name in self._lake.names(folder):
                with contextlib.suppress(OSError, ValueError):
                    beats.append(float(self._lake.get_bytes(f"{folder}/{name}")))
            self._machines = max(1, sum(now - beat < ALIVE_FOR_S for beat in beats))
            self._beat = now
        return self._machines


def _machine_folder(lake: Lake) -> Path:
    """A folder of this machine and user for the limits of a lake on object storage."""
    folder = Path(tempfile.gettempdir()) / f"geo_assets-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise ConfigError(f"{folder} belongs to somebody else; set TMPDIR to a folder of your own.")
    return folder / hashlib.sha256(lake.uri(lake.root).encode()).hexdigest()[:16]


def _machine_name(folder: Path) -> str:
    """A name that all processes of this machine share and no other machine has."""
    path = folder / "machine"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), path.open("x") as sink:
            sink.write(uuid.uuid4().hex[:12])
    return path.read_text() or "new"


class Manners:
    """When a request to a host may start, and what a refusal for asking too much means.

    One refusal may be chance: everybody stops for a moment and one request probes; if that is refused too, for longer.
    After four in a row the application's limit is certainly lower than the settings say: everybody waits until a
    window has passed, and goes on for a while at nine tenths of what was accepted in the minute before.

    Args:
        limits: the paces.
        first_pause_s: pause after the first refusal; 20 times this after the second.
        pause_s: pause after the fourth one in a row, a third of it after the third; it doubles with each further one,
            up to ten times this.
    """

    def __init__(self, limits: HostLimits, first_pause_s: float, pause_s: float) -> None:
        self.limits, self.first_pause_s, self.pause_s = limits, first_pause_s, pause_s
        self._accepted: deque[float] = deque()
        self._refusals = 0
        self._probing = False
        self._calm = asyncio.Event()
        self._paused_at = 0.0

    async def turn(self, purpose: str) -> None:
        """Wait until a request may start."""
        while True:
            start = self.limits.take(purpose)
            while (wait := start - time.time()) > 0:
                await asyncio.sleep(wait)
            if purpose == "tiles":  # few, and a turn taken counts: it is not given back for a pause
                while (wait := self.limits.paused_until - time.time()) > 0:
                    await asyncio.sleep(wait)
                return
            if self.limits.paused_until > time.time():
                continue
            if not self._refusals:
                return
            if not self._probing:
                self._probing = True
                self._calm.clear()
                return
            await self._calm.wait()

    def accepted(self, started_at: float) -> None:
        """A request was answered."""
        now = time.time()
        self._accepted.append(now)
        while self._accepted and self._accepted[0] < now - WINDOW_S:
            self._accepted.popleft()
        if self._refusals and started_at >= self._paused_at:  # the others say nothing of the time after the pause
            self._refusals, self._probing = 0, False
            self._calm.set()

    def ended(self, started_at: float) -> None:
        """A request ended without a word about limits; a probe makes room for the next one."""
        if started_at < self._paused_at:
            return
        self._probing = False
        self._calm.set()

    def refused(self, started_at: float, retry_after_s: float | None) -> None:
        """A request was refused because the application asks too much."""
        now = time.time()
        if started_at < self._paused_at:
            return  # it was on its way when the pause began
        self._refusals += 1
        self._paused_at = now
        learned = None
        if self._refusals < CERTAIN:
            pause_s = (self.first_pause_s, 20 * self.first_pause_s, self.pause_s / 3)[self._refusals - 1]
        else:
            pause_s = min(self.pause_s * 2 ** (self._refusals - CERTAIN), 10 * self.pause_s)
            counted = sum(t > now - WINDOW_S for t in self._accepted)
            learned = 0.9 * counted if self._refusals == CERTAIN and counted >= _ENOUGH else None
        self.limits.pause(now + (retry_after_s or pause_s) * random.uniform(1.0, 1.2), learned)
        self._probing = False
        self._calm.set()
