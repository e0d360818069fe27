"""Kept answers: what was written is read, whatever became of the process that wrote it."""

import itertools
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from geo_assets.harvest import answers as module
from geo_assets.harvest.answers import Answers
from geo_assets.lake import Lake


class Clock:
    """The time of the module, as the test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: float = 1_700_000_000.0) -> None:
        self.now = now
        fake = SimpleNamespace(time=lambda: self.now, monotonic=time.monotonic)
        monkeypatch.setattr(module, "time", fake)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


@pytest.fixture
def remote() -> Lake:
    return Lake(f"memory://{uuid.uuid4().hex}")


def values(answers: Answers, kind: str, key: str, since: float = 0.0) -> list:
    return [answer.value for answer in answers.of(kind, key, since)]


def kept(lake: Lake, *said: object) -> Path:
    with Answers(lake, "town") as answers:
        for value in said:
            answers.keep("search", "cell", value)
    [name] = lake.names("files/answers/city=town")
    return Path(lake.root) / "files/answers/city=town" / name


def test_what_was_kept_is_read_by_the_next_run(lake: Lake) -> None:
    kept(lake, [{"id": "1"}], "dense", {"ü": None})
    again = Answers(lake, "town")
    assert values(again, "search", "cell") == [[{"id": "1"}], "dense", {"ü": None}]
    assert values(again, "search", "other") == values(again, "sequence", "cell") == []
    assert again.keys("search") == ["cell"] and again.keys("sequence") == []
    assert values(Answers(lake, "village"), "search", "cell") == [], "cities keep their own"


def test_an_answer_is_there_before_the_run_ends(lake: Lake) -> None:
    running = Answers(lake, "town")
    running.keep("search", "cell", 1)
    assert values(Answers(lake, "town"), "search", "cell") == [1], "a killed process leaves what it was told"
    assert values(running, "search", "cell") == [1]
    running.__exit__()


def test_a_record_that_was_cut_off_is_where_reading_ends(lake: Lake) -> None:
    path = kept(lake, "first", "second", "third")
    whole = path.read_bytes()
    found = []
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        found.append(len(values(Answers(lake, "town"), "search", "cell")))
    assert found == sorted(found) and set(found) == {0, 1, 2, 3} and found[-2:] == [2, 3]


def test_a_spoilt_record_is_not_believed(lake: Lake) -> None:
    path = kept(lake, "first", "second", "third")
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert values(Answers(lake, "town"), "search", "cell") == ["first"]


def test_after_a_torn_file_new_answers_are_kept(lake: Lake) -> None:
    path = kept(lake, "first", "second")
    path.write_bytes(path.read_bytes()[:-3])
    with Answers(lake, "town") as answers:
        answers.keep("search", "cell", "again")
    assert values(Answers(lake, "town"), "search", "cell") == ["first", "again"]


def test_two_writers_at_once(lake: Lake) -> None:
    with Answers(lake, "town") as one, Answers(lake, "town") as other:
        for i in range(20):
            (one if i % 2 else other).keep("sequence", f"s{i % 4}", i)
    again = Answers(lake, "town")
    assert len(lake.names("files/answers/city=town")) == 2
    assert {key: values(again, "sequence", key) for key in sorted(again.keys("sequence"))} == {
        f"s{k}": list(range(k, 20, 4)) for k in range(4)
    }


def test_only_young_answers_count(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with Answers(lake, "town") as answers:
        for day in range(4):
            answers.keep("search", "cell", day)
            clock.now += 86_400
    assert values(Answers(lake, "town"), "search", "cell") == [0, 1, 2, 3]
    assert values(Answers(lake, "town", 2.5 * 86_400), "search", "cell") == [2, 3]
    since = clock.now - 3.5 * 86_400
    assert values(Answers(lake, "town"), "search", "cell", since) == [1, 2, 3]
    assert values(Answers(lake, "town", 1.5 * 86_400), "search", "cell", since) == [3]


def test_a_run_believes_what_it_asked_itself_however_long_it_takes(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    kept(lake, "before")
    clock.now += 1
    with Answers(lake, "town", fresh_for_s=0.0) as answers:
        answers.keep("search", "cell", "asked again")
        answers.keep_images("r00c00", {"id": ["a"]})
        clock.now += 86_400
        assert values(answers, "search", "cell") == ["asked again"]
        assert answers.images("r00c00")[0] == {"id": ["a"]}
    answers.prune()
    assert values(Answers(lake, "town"), "search", "cell") == ["asked again"]


def test_stale_files_are_removed_and_no_others(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    kept(lake, "old")
    with Answers(lake, "town") as mixed:
        mixed.keep("search", "cell", "old too")
        clock.now += 100.0
        mixed.keep("search", "cell", "young")
    clock.now += 10.0
    assert Answers(lake, "town").prune() == 0, "without an age nothing is stale"
    assert len(lake.names("files/answers/city=town")) == 2
    assert Answers(lake, "town", 50.0).prune() == 1
    assert values(Answers(lake, "town"), "search", "cell") == ["old too", "young"]


def test_of_each_image_the_last_word_counts(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with Answers(lake, "town") as answers:
        answers.keep_images("r00c00", {"id": ["a", "b"], "make": ["X", "Y"]})
        assert answers.image_ids("r00c00") == {"a", "b"}
        clock.now += 10
        later = clock.now
        answers.keep_images("r00c00", {"id": ["c", "a"], "make": ["Z", "W"], "model": ["m", None]})
        answers.keep_images("r00c01", {"id": ["d"], "make": ["V"]})
        clock.now += 10
        answers.keep_images("r00c00", {"id": ["e"]})
        assert answers.image_ids("r00c00") == {"a", "b", "c", "e"}, "ids that were read once are kept up to date"
    for source in (answers, Answers(lake, "town")):
        columns, times = source.images("r00c00")
        by_id = {i: (columns["make"][k], columns["model"][k], times[k] - later) for k, i in enumerate(columns["id"])}
        assert by_id == {"a": ("W", None, 0), "b": ("Y", None, -10), "c": ("Z", "m", 0), "e": (None, None, 10)}
        assert {len(column) for column in columns.values()} == {4}
        assert source.image_ids("r00c00", since=later) == {"a", "c", "e"}
        assert source.images("r07c07") == ({}, []) and source.image_ids("r07c07") == set()
        source.forget_ids()
        assert source.image_ids("r00c00") == {"a", "b", "c", "e"}


def test_small_dictionaries_are_united(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with Answers(lake, "town") as answers:
        answers.keep("strays", "", {"a": "r00c00", "b": "r00c01"})
        clock.now += 10
        answers.keep("strays", "", {"a": "r00c02"})
    assert Answers(lake, "town").named("strays") == {"a": "r00c02", "b": "r00c01"}
    assert Answers(lake, "town").named("strays", since=clock.now) == {"a": "r00c02"}


def test_on_object_storage_answers_come_in_segments(remote: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SEGMENT_BYTES", 2000)
    with Answers(remote, "town") as answers:
        for i in range(60):
            answers.keep("search", f"cell {i}", [uuid.uuid4().hex for _ in range(4)])
        assert values(answers, "search", "cell 59"), "the writer itself has them at once"
        before = Answers(remote, "town").keys("search")
        assert 0 < len(before) < 60, "whole segments are there while the run goes on"
    again = Answers(remote, "town")
    assert len(remote.names("files/answers/city=town")) > 3
    assert sorted(again.keys("search")) == sorted(f"cell {i}" for i in range(60))
    assert all(values(again, "search", f"cell {i}") == values(answers, "search", f"cell {i}") for i in range(60))


def test_on_object_storage_a_slow_run_is_synced_after_some_time(remote: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(0.0, 8.0)
    fake = SimpleNamespace(time=time.time, monotonic=lambda: next(seconds))
    monkeypatch.setattr(module, "time", fake)
    answers = Answers(remote, "town")
    for i in range(8):
        answers.keep("search", f"cell {i}", i)
    assert len(Answers(remote, "town").keys("search")) >= 4, "a killed machine loses seconds, not the harvest"


def test_segments_on_object_storage_are_pruned(remote: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with Answers(remote, "town") as answers:
        answers.keep("search", "cell", "old")
    clock.now += 100
    assert Answers(remote, "town", 50.0).prune() == 1
    assert remote.names("files/answers/city=town") == []
