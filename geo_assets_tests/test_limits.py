"""Paces, pauses and blocks that workers share; time is the test's own, so nothing waits."""

import asyncio
import multiprocessing
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from geo_assets import limits as module
from geo_assets.harvest.mapillary import _Room
from geo_assets.lake import Lake
from geo_assets.limits import BLOCKED_FOR_S, HostLimits, Manners

PACES = {"searches": 600, "entities": 6000, "tiles": 60}


class Clock:
    """The time of the limits. While something sleeps it runs, so that a minute takes no time."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            await asyncio.sleep(0)

    async def run(self, work: Awaitable) -> None:
        task = asyncio.ensure_future(work)
        while not task.done():
            self.now += 0.005
            await asyncio.sleep(0)
        task.result()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: fake.now))
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(Event=asyncio.Event, sleep=fake.sleep))
    return fake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def most_in_a_minute(times: list[float]) -> int:
    """The most requests that any 60 seconds hold."""
    starts = np.sort(np.array(times))
    return int((np.arange(len(starts)) - np.searchsorted(starts, starts - 60.0, "right") + 1).max())


def taken(limits: HostLimits, clock: Clock, purpose: str, n: int, pause_s: Callable[[], float] = lambda: 0.0) -> list:
    """Starts of requests by one worker that waits for each turn, and does something else now and then."""
    starts = []
    for _ in range(n):
        clock.now = max(clock.now, limits.take(purpose))
        starts.append(clock.now)
        clock.now += pause_s()
    return starts


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("purpose", ["searches", "entities"])
def test_turns_are_evenly_spaced(clock: Clock, lake: Lake, shared: bool, purpose: str) -> None:
    starts = taken(HostLimits(PACES, "graph", lake if shared else None), clock, purpose, 3000)
    gaps = np.diff(starts)
    assert gaps.min() >= 60 / PACES[purpose] * 0.999 and gaps.max() <= 60 / PACES[purpose] * 1.1
    assert most_in_a_minute(starts) <= PACES[purpose]


@pytest.mark.parametrize("purpose", ["searches", "entities", "tiles"])
@pytest.mark.parametrize("seed", range(3))
def test_no_minute_holds_more_than_the_limit(clock: Clock, lake: Lake, purpose: str, seed: int) -> None:
    """Two workers that stop for a while at any time, and never make up for it."""
    chance = random.Random(seed)
    workers = [HostLimits(PACES, "host", lake) for _ in range(2)]
    starts = []
    for _ in range(400):
        worker = chance.choice(workers)
        long_s = chance.choice([0.0, 0.0, 0.02, 1.0, 45.0])
        starts += taken(worker, clock, purpose, chance.randint(1, 30), lambda s=long_s: s * chance.random() / 10)
    assert len(starts) > 1000 and most_in_a_minute(starts) <= PACES[purpose]


def test_tiles_come_in_a_burst_and_then_wait_for_the_window(clock: Clock, lake: Lake) -> None:
    limits, began = HostLimits({"tiles": 10}, "tiles", lake), clock.now
    starts = taken(limits, clock, "tiles", 25)
    assert starts[:10] == [began] * 10 and 60 <= starts[10] - began < 62 and 120 <= starts[20] - began < 124
    assert HostLimits({"tiles": 10}, "tiles", lake).take("tiles") == starts[20], "another client shares the window"


def test_what_has_no_limit_is_not_paced(clock: Clock, lake: Lake) -> None:
    limits = HostLimits(PACES, "host", lake)
    assert limits.take("files") == 0.0 and HostLimits({}, "host", lake).take("searches") <= clock.now


def test_hosts_do_not_share(clock: Clock, lake: Lake) -> None:
    taken(HostLimits({"tiles": 3}, "one:80", lake), clock, "tiles", 3)
    assert HostLimits({"tiles": 3}, "other:80", lake).take("tiles") == clock.now
    assert HostLimits({"tiles": 3}, "one:80", lake).take("tiles") > clock.now


def test_a_clock_that_was_set_back_stops_nothing(clock: Clock, lake: Lake) -> None:
    limits = HostLimits(PACES, "host", lake)
    for purpose in PACES:
        taken(limits, clock, purpose, 100)
    clock.now -= 7 * 86_400
    for purpose in PACES:
        assert HostLimits(PACES, "host", lake).take(purpose) <= clock.now + 130


def test_a_spoilt_file_stops_nothing(clock: Clock, lake: Lake) -> None:
    limits = HostLimits(PACES, "host", lake)
    limits.take("searches")
    (Path(lake.root) / "files/limits/host.limits").write_bytes(b"spoilt")
    assert HostLimits(PACES, "host", lake).take("searches") == clock.now


def turns(root: str, n: int) -> list[float]:
    """Turns of one process."""
    limits = HostLimits({"searches": 60_000}, "host", Lake(root))
    return [limits.take("searches") for _ in range(n)]


def test_processes_share_the_rate(lake: Lake) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        starts = np.sort(np.concatenate(pool.starmap(turns, [(lake.root, 500)] * 4)))
    assert len(starts) == 2000 and np.diff(starts).min() >= 0.99e-3, "no two processes have the same turn"


# -- pauses and blocks ----------------------------------------------------------------------------------------


def test_a_pause_stops_everybody(clock: Clock, lake: Lake) -> None:
    one, other = HostLimits(PACES, "host", lake), HostLimits(PACES, "host", lake)
    other.take("entities")
    one.pause(clock.now + 30)
    assert one.take("entities") >= clock.now + 30 and one.take("tiles") >= clock.now + 30
    clock.now += 2.1 * module.LEASE_S  # what the other has leased it may use
    assert other.take("entities") >= clock.now + 29 and other.take("tiles") >= clock.now + 29
    clock.now += 31
    assert other.take("searches") <= clock.now + 0.2


def test_a_learned_rate_holds_for_everybody_and_all_purposes(clock: Clock, lake: Lake) -> None:
    one, other = HostLimits(PACES, "host", lake), HostLimits(PACES, "host", lake)
    one.pause(clock.now + 10, learned_per_minute=120)
    starts = []
    for _ in range(200):
        for worker, purpose in ((one, "searches"), (other, "entities")):
            clock.now = max(clock.now, worker.take(purpose))
            starts.append(clock.now)
    assert most_in_a_minute(starts) <= 120 and np.diff(starts[1:]).max() < 1.0


def test_a_learned_rate_is_forgotten_after_a_while(clock: Clock, lake: Lake) -> None:
    limits = HostLimits({"searches": 600}, "host", lake)
    limits.pause(clock.now, learned_per_minute=100)

    def rate() -> float:
        starts = taken(limits, clock, "searches", 21)
        return 60 / ((starts[-1] - starts[0]) / 20)

    assert rate() == pytest.approx(100, rel=0.01)
    clock.now += module.LEARNED_FOR_S
    assert rate() == pytest.approx(600 * module.MARGIN, rel=0.05), "then what is configured holds again"


@pytest.mark.parametrize("remote", [False, True])
def test_a_block_is_remembered_for_a_day_by_all(clock: Clock, tmp_path: Path, remote: bool) -> None:
    lake = Lake(f"memory://{uuid.uuid4().hex}" if remote else tmp_path)
    assert HostLimits(PACES, "tiles", lake).blocked_until == 0.0
    HostLimits(PACES, "tiles", lake).block()
    again = HostLimits(PACES, "tiles", lake)
    assert again.blocked_until == clock.now + BLOCKED_FOR_S == clock.now + 86_400
    assert HostLimits(PACES, "another", lake).blocked_until == 0.0
    lake.put_bytes("files/limits/tiles.blocked.json", b"{}")
    assert again.blocked_until == 0.0, "what cannot be read blocks nothing"


def test_a_block_without_a_lake_lasts_as_long_as_the_client(clock: Clock) -> None:
    alone = HostLimits(PACES, "tiles", None)
    alone.block()
    assert alone.blocked_until == clock.now + 86_400 and HostLimits(PACES, "tiles", None).blocked_until == 0.0


# -- object storage: no locks, so machines share by heartbeats -------------------------------------------------


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], HostLimits]]:
    """Makes the limits of a machine that shares a lake on object storage with the others."""
    remote = Lake(f"memory://{uuid.uuid4().hex}")

    def of(name: str) -> HostLimits:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path / name))
        return HostLimits(PACES, "host", remote)

    yield of


def test_machines_share_the_rate_by_heartbeats(clock: Clock, machines: Callable[[str], HostLimits]) -> None:
    one = machines("a")
    assert np.diff(taken(one, clock, "searches", 50)).mean() == pytest.approx(0.1, rel=0.05)
    same = machines("a")
    other = machines("b")
    other.take("searches")
    clock.now += module.HEARTBEAT_S + 1
    assert np.diff(taken(one, clock, "searches", 50)).mean() == pytest.approx(0.2, rel=0.05)
    assert np.diff(taken(same, clock, "searches", 50)).mean() == pytest.approx(0.2, rel=0.05), "one machine, one share"
    clock.now += module.ALIVE_FOR_S + module.HEARTBEAT_S
    assert np.diff(taken(one, clock, "searches", 50)).mean() == pytest.approx(0.1, rel=0.05), "the other has gone"


# -- manners --------------------------------------------------------------------------------------------------


class Traffic:
    """Workers that keep asking a server which refuses some requests."""

    def __init__(self, clock: Clock, manners: Manners, refuses: Callable[[int, float, "Traffic"], bool]) -> None:
        self.clock, self.manners, self.refuses = clock, manners, refuses
        self.starts: list[float] = []
        self.served: list[float] = []
        self.refused: list[float] = []
        self.in_flight = self.left = 0

    def send(self, n: int, workers: int = 8) -> "Traffic":
        self.left = n

        async def work() -> None:
            while self.left > 0:
                self.left -= 1
                await self._ask()

        async def everybody() -> None:
            await asyncio.gather(*(work() for _ in range(workers)))

        asyncio.run(self.clock.run(everybody()))
        return self

    async def _ask(self) -> None:
        await self.manners.turn("searches")
        started = self.clock.now
        self.starts.append(started)
        refused = self.refuses(len(self.starts), started, self)
        (self.refused if refused else self.served).append(started)
        await self.clock.sleep(0.05)
        if refused:
            self.manners.refused(started, None)
        else:
            self.manners.accepted(started)


def manners(per_minute: int = 6000, first_s: float = 0.5) -> Manners:
    return Manners(HostLimits({"searches": per_minute}, "host", None), first_s, 60.0)


def test_one_refusal_is_a_short_pause_and_one_probe(clock: Clock) -> None:
    traffic = Traffic(clock, manners(), lambda n, now, _: n == 50).send(200)
    [refused] = traffic.refused
    after = [t - refused for t in traffic.starts if t > refused + 0.06]
    assert 0.5 <= after[0] < 0.8, "a pause"
    assert after[1] - after[0] >= 0.05, "nobody else before the probe is answered"
    assert after[2] - after[1] < 0.05 and after[-1] < 5, "and then all is as before"
    assert len(traffic.starts) == 200


def test_four_refusals_are_a_long_pause_and_a_learned_rate(clock: Clock) -> None:
    """The application's limit is 300 a minute, the settings say 6,000."""

    def limited(n: int, now: float, traffic: Traffic) -> bool:
        return sum(t > now - 60 for t in traffic.served[-400:]) >= 300

    traffic = Traffic(clock, manners(), limited).send(1500)
    assert most_in_a_minute(traffic.served) <= 300
    pauses = np.diff(np.sort(traffic.starts))
    assert 60 <= pauses.max() < 80, "until a window has passed"
    assert len(traffic.refused) < 0.01 * len(traffic.starts)
    minutes = (traffic.served[-1] - traffic.served[0]) / 60
    assert len(traffic.served) / minutes > 200, "and it goes on near what is allowed"


def test_refusals_by_chance_slow_nobody_down_for_long(clock: Clock) -> None:
    traffic = Traffic(clock, manners(first_s=0.25), lambda n, now, _: n % 40 == 0).send(2000)
    assert len(traffic.refused) == 50
    assert traffic.starts[-1] - traffic.starts[0] < 20 + 50 * 0.6, "20 s of requests and short pauses"


def test_pauses_double_while_the_first_request_after_them_is_refused(clock: Clock) -> None:
    traffic = Traffic(clock, manners(), lambda n, now, _: n <= 7).send(12, workers=1)
    gaps = np.diff(traffic.starts)[:7]
    for gap, wanted in zip(gaps, [0.5, 10, 20, 60, 120, 240, 480], strict=True):
        assert wanted <= gap < 1.25 * wanted + 0.2


def test_an_answer_says_when_to_come_back(clock: Clock) -> None:
    limits = HostLimits(PACES, "host", None)
    Manners(limits, 0.5, 60.0).refused(clock.now, retry_after_s=33.0)
    assert 33 <= limits.take("searches") - clock.now < 40


def test_a_probe_that_fails_otherwise_makes_room_for_the_next(clock: Clock) -> None:
    polite = manners()

    async def story() -> list[str]:
        polite.refused(clock.now, None)
        told = []

        async def ask(name: str) -> None:
            await polite.turn("searches")
            told.append(name)

        first = asyncio.ensure_future(ask("first"))
        second = asyncio.ensure_future(ask("second"))
        await clock.sleep(5)
        assert len(told) == 1
        polite.ended(clock.now)
        await clock.sleep(1)
        assert len(told) == 2
        polite.accepted(clock.now)
        await asyncio.gather(first, second)
        return told

    asyncio.run(clock.run(story()))


# -- requests in flight ---------------------------------------------------------------------------------------


def in_flight(room: _Room, latency_s: float, n: int) -> int:
    """The most requests at once while many want to be sent that take so long."""
    now = most = 0

    async def ask() -> None:
        nonlocal now, most
        await room.enter()
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        room.leave(latency_s)

    async def everybody() -> None:
        await asyncio.gather(*(ask() for _ in range(n)))

    asyncio.run(everybody())
    return most


@pytest.mark.parametrize(("latency_s", "most"), [(0.001, 4), (0.1, 25), (0.2, 50), (1.0, 64), (30.0, 64)])
def test_as_many_in_flight_as_the_latency_asks_for(latency_s: float, most: int) -> None:
    assert in_flight(_Room(64), latency_s, 2000) == pytest.approx(most, abs=1)


def test_few_connections_are_few_in_flight() -> None:
    assert in_flight(_Room(2), 1.0, 50) == 2 and in_flight(_Room(1), 0.0, 50) == 1


def test_a_cancelled_request_leaves_its_place() -> None:
    async def story() -> None:
        room = _Room(1)
        await room.enter()
        waiting = [asyncio.ensure_future(room.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        room.leave(None)
        await asyncio.wait_for(waiting[1], 5)
        room.leave(0.1)
        await asyncio.wait_for(waiting[2], 5)

    asyncio.run(story())


def test_limits_without_a_fake_clock_go_by_the_time() -> None:
    assert abs(HostLimits(PACES, "host", None).take("searches") - time.time()) < 60
