"""Files: what is fetched, kept, removed, refused and written down."""

import datetime as dt
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_assets.demo.server import Behaviour, serving
from geo_assets.errors import ApiError
from geo_assets.harvest import images
from geo_assets.harvest.exif import position, read_back
from geo_assets.harvest.images import Addresses, expires_at, fetch, shards, wanted, write_shards
from geo_assets.harvest.jpeg import problem_of
from geo_assets.harvest.metadata import FIELDS, rows
from geo_assets.lake import Lake
from geo_assets.tables import TABLES
from geo_assets_tests.harvest.worlds import client, jpeg, street

PARTITION = {"city": "town", "box": "r00c00"}
FOLDER = "files/images/city=town/box=r00c00"
NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
BROKEN = {
    "empty": b"",
    "html": b"<html><body>Sorry</body></html>",
    "truncated": jpeg(size=(640, 480))[:-900],
    "forged_end": jpeg()[:-40] + jpeg()[-2:],
    "huge": jpeg(size=(4200, 8)),
}


class Town:
    """A street, its metadata, and a lake."""

    def __init__(self, folder: Path, n: int = 30) -> None:
        self.world, self.lake = street(folder, n), Lake(folder / "lake")
        with serving(self.world) as address, client(address) as api:
            self.metadata = rows(api.images([i.id for i in self.world.images], FIELDS).rows, NOW)

    def fetch(self, behaviour: Behaviour | None = None, metadata: pd.DataFrame | None = None, **settings: Any):
        metadata = self.metadata if metadata is None else metadata
        with serving(self.world, behaviour) as address, client(address, **settings) as api:
            try:
                found = fetch(api, self.lake, metadata, PARTITION)
            finally:
                self.requests = address.requests
        TABLES["image_files"].conform(found.files)
        return found

    @property
    def names(self) -> list[str]:
        return self.lake.names(FOLDER)

    def path(self, name: str) -> Path:
        return Path(self.lake.uri(f"{FOLDER}/{name}"))

    def keep(self, found, size: str = "2048") -> None:
        self.lake.write("image_files", found.files, note={"size": size}, **PARTITION)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


def test_every_file_is_fetched_once(town: Town) -> None:
    found = town.fetch()
    assert set(found.files["status"]) == {"done"} and found.n_fetched == 30
    assert town.names == sorted(f"{i}.jpg" for i in found.files["image_id"])
    town.keep(found)
    again = town.fetch()
    assert (again.n_fetched, again.n_kept, town.requests.total()) == (0, 30, 0)
    assert TABLES["image_files"].conform(again.files).equals(TABLES["image_files"].conform(found.files))


def test_a_run_that_was_ended_before_its_table_goes_on(town: Town) -> None:
    town.fetch()
    again = town.fetch()  # no table was written
    assert (again.n_fetched, again.n_kept, town.requests.total()) == (0, 30, 0)


def test_damaged_and_lost_files_are_fetched_again(town: Town) -> None:
    found = town.fetch()
    town.keep(found)
    paths = found.files["path"].tolist()
    town.lake.put_bytes(paths[0], town.lake.get_bytes(paths[0])[:-20])
    town.lake.put_bytes(paths[1], b"")
    town.lake.fs.rm(town.lake.uri(paths[2]))
    again = town.fetch()
    assert (again.n_fetched, again.n_kept) == (3, 27) and town.requests["file"] == 3
    assert problem_of(town.lake.get_bytes(paths[0])) is None


def test_another_size_is_another_harvest(town: Town) -> None:
    town.keep(town.fetch())
    assert town.fetch(image_size="1024").n_fetched == 30


def test_expired_addresses_are_renewed(town: Town) -> None:
    now = [1000.0]

    def clock() -> float:
        now[0] += 0.5
        return now[0]

    found = town.fetch(Behaviour(clock=clock, url_lifetime_s=25))
    assert set(found.files["status"]) == {"done"}
    assert town.requests["images"] > 1, "the addresses of the last files had expired"


@pytest.mark.parametrize("fault", ["half", "html", "reset", "service_unavailable", "empty"])
def test_broken_downloads_are_repeated(town: Town, fault: str) -> None:
    faults = [fault] * 3
    behaviour = Behaviour(fault=lambda kind, n: faults.pop() if kind == "file" and faults else None)
    assert set(town.fetch(behaviour).files["status"]) == {"done"}


def test_dead_files_say_why_and_leave_nothing_behind(town: Town) -> None:
    found = town.fetch(Behaviour(fault=lambda kind, n: "half" if kind == "file" else None))
    assert set(found.files["status"]) == {"dead"} and None not in set(found.files["reason"])
    assert town.names == []
    town.keep(found)
    assert set(town.fetch().files["status"]) == {"done"}, "the dead are tried again"


def test_images_without_an_address_are_dead(town: Town) -> None:
    ids = [i.id for i in town.world.images]
    found = town.fetch(Behaviour(without_thumb=frozenset(ids[:2]), deleted=frozenset(ids[2:3])))
    files = found.files.set_index("image_id")
    assert files.loc[ids[:2], "reason"].tolist() == ["the API names no file of it"] * 2
    assert files.loc[ids[2], "reason"] == "the API says that the image does not exist"
    assert set(files.loc[ids[3:], "status"]) == {"done"} and found.n_fetched == 27


def test_images_that_were_deleted_since_do_not_end_the_rerun(town: Town) -> None:
    deleted = Behaviour(deleted=frozenset(i.id for i in town.world.images[5:]))
    town.keep(town.fetch(deleted))
    again = town.fetch(deleted)
    assert (again.n_kept, len(again.files)) == (5, 30)
    assert set(again.files["attempts"]) == {1, 2}


def test_a_token_without_rights_is_no_box_of_deleted_images(town: Town) -> None:
    with pytest.raises(ApiError, match="MAPILLARY_TOKEN"):
        town.fetch(Behaviour(deleted=frozenset(i.id for i in town.world.images)))


def without_2048(monkeypatch: pytest.MonkeyPatch) -> None:
    real = images.ask

    def ask(api, ids, **how):
        known = real(api, ids, **how)
        return {i: Addresses({s: u for s, u in a.urls.items() if s != "2048"}, a.asked_at) for i, a in known.items()}

    monkeypatch.setattr(images, "ask", ask)


def test_an_absent_size_is_replaced_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(tmp_path, 3)
    without_2048(monkeypatch)
    assert town.fetch().files["size"].tolist() == ["original"] * 3
    again = town.fetch()
    assert (again.n_kept, again.files["size"].tolist()) == (3, ["original"] * 3), "without a table, EXIF says it"


# -- what is written down -----------------------------------------------------------------------------------


def test_the_table_and_the_file_say_the_same(town: Town) -> None:
    files = town.fetch().files.set_index("image_id")
    for row in town.metadata.to_dict("records"):
        listed = files.loc[row["image_id"]]
        data = town.lake.get_bytes(listed["path"])
        said = read_back(data)
        assert (said["lon"], said["lat"]) == position(row)
        assert (said["captured_at"], said["altitude_m"]) == (row["captured_at"], row["altitude_m"])
        assert (said["image_id"], said["sequence_id"]) == (row["image_id"], row["sequence_id"])
        assert (said["creator_username"], said["attribution"]) == (row["creator_username"], row["attribution"])
        assert (listed["bytes"], listed["width"], listed["height"]) == (len(data), 64, 48)
        assert listed["exif_written"] and listed["attempts"] == 1
        assert listed["url_expires_at"] > pd.Timestamp.now("UTC") + pd.Timedelta(days=29)


def test_attempts_of_dead_files_add_up(town: Town) -> None:
    broken = Behaviour(fault=lambda kind, n: "half" if kind == "file" else None)
    for n in (1, 2):
        found = town.fetch(broken)
        assert set(found.files["attempts"]) == {n * images.ATTEMPTS}
        town.keep(found)
    assert set(town.fetch().files["attempts"]) == {2 * images.ATTEMPTS + 1}


# -- what comes over the line -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_file_that_always_comes_broken_is_dead_and_harms_no_other(
    town: Town, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = town.world.images[3].id
    monkeypatch.setattr(
        type(town.world),
        "jpeg",
        lambda self, i: BROKEN[name] if i == victim else (self.folder / f"{i}.jpg").read_bytes(),
    )
    files = town.fetch().files.set_index("image_id")
    assert files.loc[victim, "status"] == "dead" and "is broken" in files.loc[victim, "reason"]
    assert files.loc[victim, "attempts"] == images.ATTEMPTS and f"{victim}.jpg" not in town.names
    assert set(files["status"].drop(victim)) == {"done"}


def test_expired_addresses_are_no_attempts_but_have_an_end(town: Town) -> None:
    found = town.fetch(Behaviour(url_lifetime_s=-1))  # every address has expired when it is given
    assert set(found.files["status"]) == {"dead"} and set(found.files["attempts"]) == {1}
    assert town.requests["file"] == 30 * (1 + images.REFRESHES)
    assert "403" in found.files["reason"].iloc[0]


def test_an_address_is_renewed_before_it_expires(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    began, looks = time.time(), []

    class Clock:
        """The client's clock: an hour goes by after the first addresses were asked for."""

        @staticmethod
        def time() -> float:
            looks.append(0)
            return began + (3600 if len(looks) > 1 else 0)

    monkeypatch.setattr(images, "time", Clock)
    refused: list[int] = []
    found = town.fetch(
        Behaviour(url_lifetime_s=3630, fault=lambda kind, n: refused.append(n) if kind == "file" else None)
    )
    assert set(found.files["status"]) == {"done"} and town.requests["file"] == 30
    assert town.requests["images"] == 1 + 30, "one for all, then one each"


@pytest.mark.parametrize(
    ("url", "moment"),
    [
        ("https://x/y.jpg?oh=1&oe=68FFDC87", 0x68FFDC87),
        ("https://x/y.jpg?oe=", None),
        ("https://x/y.jpg?oe=zz", None),
        ("https://x/y.jpg?oe=-5", None),
        ("https://x/y.jpg?oe=FFFFFFFFFFFF", None),
        ("https://x/y.jpg", None),
    ],
)
def test_expiry_of_an_address(url: str, moment: int | None) -> None:
    assert expires_at(url) == moment


def test_addresses_are_asked_late_and_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CHUNK", 5)
    town, asked, lock, fetched_when_asked = Town(tmp_path, 60), [], threading.Lock(), []
    real = images.ask

    def ask(api, ids, **how):
        with lock:
            asked.append(len(ids))
            fetched_when_asked.append(len(town.names))
        return real(api, ids, **how)

    monkeypatch.setattr(images, "ask", ask)
    assert town.fetch().n_fetched == 60
    assert asked == [5] * 12, "in chunks, each once"
    assert max(fetched_when_asked) >= 60 - 5 * (images.AHEAD + 1) - 4 * 2, "the last when most files are there"


def test_a_host_that_is_down_ends_the_run(tmp_path: Path) -> None:
    town = Town(tmp_path, 120)
    with pytest.raises(ApiError, match="none of the last 50 files") as caught:
        town.fetch(Behaviour(fault=lambda kind, n: "service_unavailable" if kind == "file" else None))
    assert caught.value.may_pass
    assert town.requests["file"] < 6 * 80, "the rest was not asked for"


def test_files_that_are_not_there_do_not(tmp_path: Path) -> None:
    town = Town(tmp_path, 60)
    found = town.fetch(Behaviour(fault=lambda kind, n: "not_found" if kind == "file" else None))
    assert set(found.files["status"]) == {"dead"}


def test_what_came_before_the_host_went_down_is_kept(tmp_path: Path) -> None:
    town = Town(tmp_path, 120)
    with pytest.raises(ApiError):
        town.fetch(Behaviour(fault=lambda kind, n: "service_unavailable" if kind == "file" and n > 20 else None))
    again = town.fetch()
    assert again.n_kept >= 15 and set(again.files["status"]) == {"done"}


# -- folder and table ---------------------------------------------------------------------------------------


def test_only_selected_images_that_exist_are_wanted() -> None:
    frame = pd.DataFrame({"image_id": ["a", "b", "c"]})
    assert len(wanted(frame)) == 3, "a table of an earlier version"
    frame = frame.assign(tombstoned_at=[pd.NaT, pd.Timestamp(NOW), pd.NaT], dropped_by=[None, None, "spacing"])
    assert wanted(frame)["image_id"].tolist() == ["a"]


@pytest.mark.parametrize("has_table", [True, False])
def test_images_that_are_no_longer_wanted_leave_table_and_folder(town: Town, has_table: bool) -> None:
    found = town.fetch(resize=(16, 16))
    if has_table:
        town.keep(found)
    ids, metadata = town.metadata["image_id"].tolist(), town.metadata.iloc[3:].copy()
    metadata["dropped_by"] = ["spacing" if i == ids[3] else None for i in metadata["image_id"]]
    metadata["tombstoned_at"] = [NOW if i == ids[4] else None for i in metadata["image_id"]]
    town.path("notes.txt").write_text("theirs")
    town.path("5.jpg").write_bytes(jpeg())  # neither the table nor its EXIF says that it is ours
    again = town.fetch(metadata=metadata, resize=(16, 16))
    assert sorted(again.files["image_id"]) == sorted(ids[5:]) and town.requests.total() == 0
    assert town.names == sorted([f"{i}.jpg" for i in ids[5:]] + ["5.jpg", "notes.txt"])
    assert town.lake.names("files/images_resized/city=town/box=r00c00") == sorted(f"{i}.jpg" for i in ids[5:])
    assert (again.n_kept, again.n_removed) == (25, 10)


def harvest(address: str, lake: Path, metadata: pd.DataFrame) -> None:
    """What a killed process was doing."""
    with client(address) as api:
        fetch(api, Lake(lake), metadata, PARTITION)


@pytest.mark.chaos
def test_killed_runs_end_in_the_same_table_and_fetch_no_file_twice(tmp_path: Path) -> None:
    town, other = Town(tmp_path, 200), Lake(tmp_path / "other")
    with serving(town.world) as address:
        for n in (1, 60, 61, 150):
            run = multiprocessing.get_context("spawn").Process(
                target=harvest, args=(str(address), tmp_path / "lake", town.metadata)
            )
            run.start()
            while run.is_alive() and sum(name.endswith(".jpg") for name in town.names) < n:
                time.sleep(0.001)
            run.kill()
            run.join()
        with client(address) as api:
            found = fetch(api, town.lake, town.metadata, PARTITION)
            n_asked = address.requests["file"]
            undisturbed = fetch(api, other, town.metadata, PARTITION)
    got, wanted_rows = (f.files.drop(columns="url_expires_at") for f in (found, undisturbed))
    pd.testing.assert_frame_equal(got, wanted_rows)
    assert town.names == sorted(f"{i}.jpg" for i in found.files["image_id"])
    assert n_asked <= 200 + 4 * 4, "but for those in flight when a run was killed"


def test_leftovers_of_a_killed_run_go(town: Town) -> None:
    found = town.fetch()
    name = f"{found.files['image_id'].iloc[0]}.jpg"
    town.path(f"{name}.0badcafe.tmp").write_bytes(b"half a file")
    town.fetch()
    assert town.names == sorted(f"{i}.jpg" for i in found.files["image_id"])


def test_files_follow_their_metadata_without_being_fetched_again(town: Town) -> None:
    town.keep(town.fetch())
    metadata = town.metadata.assign(computed_lon=0.25)
    again = town.fetch(metadata=metadata)
    assert (again.n_fetched, town.requests.total()) == (0, 0)
    for path, digest in zip(again.files["path"], again.files["sha256"], strict=True):
        data = town.lake.get_bytes(path)
        assert read_back(data)["lon"] == 0.25 and images.hashlib.sha256(data).hexdigest() == digest


def test_rows_of_an_earlier_version_are_understood(town: Town) -> None:
    found = town.fetch()
    town.keep(found)
    path = Path(town.lake.uri("tables/image_files/city=town/box=r00c00/data.parquet"))
    old = images.pd.read_parquet(path).drop(columns=["exif_written", "resized_path", "url_expires_at"])
    real = Lake.read_if_any
    town.lake.read_if_any = lambda table, columns=None, **p: (  # type: ignore[method-assign]
        real(town.lake, table, columns, **p) if columns else old
    )
    assert town.fetch().n_kept == 30


def test_the_table_is_in_the_order_of_the_metadata_whatever_was_kept(town: Town) -> None:
    town.keep(town.fetch())
    town.path(f"{town.metadata['image_id'].iloc[0]}.jpg").unlink()
    assert town.fetch().files["image_id"].tolist() == town.metadata["image_id"].tolist()


# -- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("box_px", "size"), [((32, 32), (32, 24)), ((1000, 12), (16, 12)), ((640, 480), (64, 48))])
def test_a_reduced_copy_keeps_its_proportions_and_its_exif(
    tmp_path: Path, box_px: tuple[int, int], size: tuple[int, int]
) -> None:
    town = Town(tmp_path, 4)
    found = town.fetch(resize=box_px)
    for image_id, key in zip(found.files["image_id"], found.files["resized_path"], strict=True):
        data = town.lake.get_bytes(key)
        with Image.open(images.io.BytesIO(data)) as picture:
            assert picture.size == size
        said = read_back(data)
        assert (said["image_id"], said["size"]) == (image_id, f"{box_px[0]}x{box_px[1]}") and "lon" in said
    town.keep(found)
    before = [town.lake.get_bytes(key) for key in found.files["resized_path"]]
    town.fetch(resize=box_px)
    assert [town.lake.get_bytes(key) for key in found.files["resized_path"]] == before


def test_reduced_copies_come_and_go_without_a_request(town: Town) -> None:
    folder = "files/images_resized/city=town/box=r00c00"
    town.keep(town.fetch())
    found = town.fetch(resize=(32, 32))
    assert town.requests.total() == 0 and len(town.lake.names(folder)) == 30
    town.keep(found)
    other = town.fetch(resize=(16, 16))
    assert read_back(town.lake.get_bytes(other.files["resized_path"].iloc[0]))["size"] == "16x16"
    none = town.fetch()
    assert town.lake.names(folder) == [] and bool(none.files["resized_path"].isna().all())


@pytest.mark.parametrize("n", [1, 4, 7, 40])
def test_shards_hold_every_file_once(town: Town, n: int, tmp_path: Path) -> None:
    files = town.fetch(Behaviour(without_thumb=frozenset([town.world.images[0].id]))).files
    parts = shards(files, n)
    assert len(parts) == n and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert np.concatenate([part["image_id"] for part in parts]).tolist() == sorted(files["image_id"])[1:]
    write_shards(town.lake, files, 3, **PARTITION)
    keys = write_shards(town.lake, files, n, **PARTITION)
    assert sorted(key.rsplit("/", 1)[1] for key in keys) == town.lake.names("files/shards/city=town/box=r00c00")
    paths = write_shards(tmp_path / "lists", files, n)
    assert [Path(path).read_bytes() for path in paths] == [town.lake.get_bytes(key) for key in keys]
    assert pd.read_csv(paths[0], dtype=str)["path"].tolist() == parts[0]["path"].tolist()


def test_no_shards_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="not into 0"):
        shards(TABLES["image_files"].empty(), 0)
