"""Which images of a city were asked, what came of it, and where they lie."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from geo_assets.demo.server import Address, Behaviour, serving
from geo_assets.demo.world import DemoImage
from geo_assets.errors import ApiError
from geo_assets.harvest.answers import Answers
from geo_assets.harvest.area import Area
from geo_assets.harvest.closure import OUTSIDE
from geo_assets.harvest.describe import Description, Register, describe, homes_of
from geo_assets.harvest.mapillary import Mapillary
from geo_assets.harvest.metadata import now
from geo_assets.lake import Lake
from geo_assets.tables import TABLES
from geo_assets_tests.harvest.worlds import client, image, street, town, world

CITY = town()
BOX = "r00c01"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def register(api: Mapillary, lake: Lake, since: float = 0.0) -> Register:
    return Register(api, Answers(lake, "town"), Area.of(CITY), since)


def candidates(images: Sequence[DemoImage], home: str | None = BOX, **known: Any) -> pd.DataFrame:
    """Rows of ``sequence_images`` of images that tiles and the lists of their sequences name."""
    ids = pd.Series([i.id for i in images], dtype=object)
    row = {"in_tiles": True, "in_computed": True, "in_closure": True, "in_audit": True, "in_late_closure": False}
    return pd.DataFrame(
        {"image_id": ids, "sequence_id": [i.sequence_id for i in images], **row, "home_box": home} | known
    )


def closed(*names: str) -> pd.DataFrame:
    table = TABLES["sequence_ids"].empty()
    return pd.DataFrame({"sequence_id": list(names), "closed": True}, columns=table.columns)


def described(
    register: Register, images: pd.DataFrame, *sequences: str, before: pd.DataFrame | None = None
) -> Description:
    previous = TABLES["image_metadata"].empty() if before is None else before
    found = describe(register, BOX, images, closed(*sequences), {}, previous, now())
    TABLES["image_metadata"].conform(found.metadata)
    TABLES["certificates"].conform(found.certificate)
    return found


def test_each_image_is_asked_once_whichever_box_asks_first(tmp_path: Path, lake: Lake) -> None:
    here = street(tmp_path)
    homes = homes_of(candidates(here.images[20:40]))
    with serving(here) as address, client(address) as api:
        first = register(api, lake)
        assert first.lacks(homes) == list(homes) and first.ask(homes) == []
        assert first.lacks(homes) == [] and first.ask(homes) == []
        assert register(api, lake).lacks(homes) == [], "nor does the next run"
        assert address.requests == {"images": 1}


def test_an_image_that_lies_elsewhere_than_was_said_is_remembered(tmp_path: Path, lake: Lake) -> None:
    here = street(tmp_path)
    lost, found, beyond = here.images[25], here.images[30], image(99, "far", 5000.0, 20.0)
    homes = {lost.id: "r00c00", found.id: None, beyond.id: BOX, here.images[31].id: BOX}
    with serving(world(tmp_path, [*here.images, beyond])) as address, client(address) as api:
        asked = register(api, lake)
        asked.ask(homes)
        assert asked.strays == {lost.id: BOX, found.id: BOX, beyond.id: OUTSIDE}
        again = register(api, lake)
        assert again.strays == asked.strays and again.lacks(homes) == []
        rows = described(again, candidates([here.images[31]]), "seq-1_x").metadata
        assert set(rows["image_id"]) == {lost.id, found.id, here.images[31].id}
        assert address.requests["images"] == 1


def test_deleted_images_are_remembered_until_the_box_changes(tmp_path: Path, lake: Lake) -> None:
    here = street(tmp_path)
    gone = here.images[22:24]
    homes = homes_of(candidates(here.images[20:40]))
    with serving(here, Behaviour(deleted=frozenset(i.id for i in gone))) as address, client(address) as api:
        asked = register(api, lake)
        assert asked.ask(homes) == [] and set(asked.gone) == {i.id for i in gone}
        requests = address.requests.total()
        assert register(api, lake).lacks(homes) == [] and address.requests.total() == requests
        later = register(api, lake, since=time.time())
        assert later.lacks(homes) == [i.id for i in gone], "after a change it is asked again"


def test_images_that_get_no_answer_are_unresolved(tmp_path: Path, lake: Lake) -> None:
    here = street(tmp_path)
    faults = {"images": "empty", "entity": "service_unavailable"}
    images = here.images[20:24]
    with serving(here, Behaviour(fault=lambda kind, n: faults.get(kind))) as address, client(address) as api:
        asked = register(api, lake)
        assert asked.ask(homes_of(candidates(images))) == [i.id for i in images]
        proof = described(asked, candidates(images), "seq-1_x").certificate.iloc[0]
    assert proof["n_unresolved"] == 4 and not proof["complete"] and proof["n_tombstones"] == 0


@pytest.mark.parametrize("fault", ["partial", "half", "html", "empty"])
def test_what_a_page_leaves_out_is_asked_again(tmp_path: Path, lake: Lake, fault: str) -> None:
    here = street(tmp_path)
    faults = Behaviour(fault=lambda kind, n: fault if kind == "images" and n < 3 else None)
    with serving(here, faults) as address, client(address) as api:
        found = described(register(api, lake), candidates(here.images[20:40]), "seq-1_x")
        assert address.requests["entity"] == 0, "in pages, not one by one"
    assert len(found.metadata) == 20 and found.certificate["complete"].to_numpy(bool).all()


def test_a_token_without_rights_is_no_deletion(tmp_path: Path, lake: Lake) -> None:
    here = street(tmp_path)
    everything = frozenset(i.id for i in here.images)
    with serving(here, Behaviour(deleted=everything)) as address, client(address) as api:
        asked = register(api, lake)
        with pytest.raises(ApiError, match="without the right to read"):
            asked.ask(homes_of(candidates(here.images)))
        assert not asked.gone and not register(api, lake).gone, "nothing is taken for deleted"


def test_many_deletions_among_living_images_are_deletions(tmp_path: Path, lake: Lake) -> None:
    here = street(tmp_path)
    deleted = frozenset(i.id for i in here.images[:30])
    with serving(here, Behaviour(deleted=deleted)) as address, client(address) as api:
        asked = register(api, lake)
        asked.ask(homes_of(candidates(here.images)))
    assert set(asked.gone) == deleted


def test_a_sequence_that_only_metadata_name_is_listed_too(tmp_path: Path, lake: Lake) -> None:
    """One image of a sequence was found without its name; the list then brings the others."""
    here = street(tmp_path)
    known = here.images[22]
    with serving(here) as address, client(address) as api:
        found = described(register(api, lake), candidates([known], sequence_id=None))
        assert address.requests["sequence"] == 1
    assert set(found.metadata["image_id"]) == {i.id for i in here.images[20:40]}
    row = found.certificate.iloc[0]
    assert row["complete"] and (row["n_images"], row["n_audit_added"], row["n_tile_images"]) == (20, 19, 1)


def test_a_sequence_whose_list_cannot_be_had_leaves_the_box_incomplete(tmp_path: Path, lake: Lake) -> None:
    here = street(tmp_path)
    faults = Behaviour(fault=lambda kind, n: "empty" if kind == "sequence" else None)
    with serving(here, faults) as address, client(address) as api:
        row = described(register(api, lake), candidates(here.images[20:40])).certificate.iloc[0]
    assert row["n_unclosed"] == 1 and not row["complete"] and row["n_images"] == 20


def test_only_what_lies_in_the_box_is_a_row(tmp_path: Path, lake: Lake) -> None:
    here = street(tmp_path)
    outside = [image(901, "seq-1_x", 150.0, 120.0), image(902, "seq-1_x", 90.0, 20.0)]
    with serving(world(tmp_path, [*here.images, *outside])) as address, client(address) as api:
        found = described(register(api, lake), candidates([*here.images[20:40], *outside]), "seq-1_x")
    assert set(found.metadata["image_id"]) == {i.id for i in here.images[20:40]}
    assert found.figures["n_outside"] == 2 and found.figures["n_candidates"] == 22


def harvested(address: Address, lake: Lake, images: Sequence[DemoImage], before: pd.DataFrame | None) -> Description:
    with client(address) as api:
        return described(register(api, lake, since=time.time()), candidates(images), "seq-1_x", before=before)


def test_first_and_last_seen_and_tombstones(tmp_path: Path, lake: Lake) -> None:
    here = street(tmp_path)
    images = here.images[20:40]
    with serving(here) as address:
        first = harvested(address, lake, images, None)
    deleted, new = images[3].id, image(999, "seq-1_x", 151.0, 21.0)
    now_there = world(tmp_path, [*here.images, new])
    kept = [i for i in images if i.id != deleted]
    with serving(now_there, Behaviour(deleted=frozenset([deleted]))) as address:
        second = harvested(address, lake, [*kept, new], first.metadata)
        third = harvested(address, lake, [*kept, new], second.metadata)
    assert (second.figures["n_new"], second.figures["n_deleted"]) == (1, 1)
    assert (third.figures["n_new"], third.figures["n_deleted"]) == (0, 0)
    rows = third.metadata.set_index("image_id")
    assert rows["tombstoned_at"].notna().to_numpy(bool).sum() == 1 and pd.notna(rows.loc[deleted, "tombstoned_at"])
    assert rows.loc[deleted, "last_seen"] < rows.loc[deleted, "tombstoned_at"]
    before = first.metadata.set_index("image_id")
    assert rows.loc[kept[0].id, "first_seen"] == before.loc[kept[0].id, "first_seen"]
    assert rows.loc[kept[0].id, "last_seen"] > before.loc[kept[0].id, "last_seen"]
    assert third.certificate["n_images"].tolist() == [20] and third.certificate["complete"].to_numpy(bool).all()


def test_an_image_that_no_source_names_any_more_but_that_lives_stays(tmp_path: Path, lake: Lake) -> None:
    here = street(tmp_path)
    images = here.images[20:40]
    with serving(here) as address:
        first = harvested(address, lake, images, None)
        second = harvested(address, lake, images[1:], first.metadata)
    assert set(second.metadata["image_id"]) == {i.id for i in images}
    assert second.metadata["tombstoned_at"].notna().to_numpy(bool).sum() == 0 and second.figures["n_deleted"] == 0


def test_which_source_named_an_image_and_whether_it_lies_in_the_area(tmp_path: Path, lake: Lake) -> None:
    here = street(tmp_path)
    bare = dataclasses.replace(here.images[21], computed_lon=None, computed_lat=None)
    images = [here.images[20], bare, *here.images[22:]]
    told = candidates([images[0], bare])
    told.loc[1, ["in_tiles", "in_computed", "in_closure"]] = False
    with serving(world(tmp_path, images)) as address, client(address) as api:
        rows = described(register(api, lake), told, "seq-1_x").metadata.set_index("image_id")
    assert rows.loc[[images[0].id, bare.id], "source_mask"].tolist() == [15, 8]
    assert rows["in_aoi_original"].to_numpy(bool).all() and rows.loc[images[0].id, "in_aoi_computed"]
    assert pd.isna(rows.loc[bare.id, "in_aoi_computed"])
