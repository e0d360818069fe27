"""Searches by rectangle against the demo server, whose answers are short, refused and spuriously empty."""

import contextlib
import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_assets.demo import server
from geo_assets.demo.server import Behaviour, serving
from geo_assets.demo.world import DemoImage, World
from geo_assets.errors import ApiError
from geo_assets.grid import Bounds
from geo_assets.harvest.answers import Answers
from geo_assets.harvest.audit import EMPTY_ASKS, MOST_ASKS, Audit, Auditor
from geo_assets.harvest.mapillary import Mapillary
from geo_assets.lake import Lake
from geo_assets_tests.harvest.worlds import around, client, image, street, world


def coverage_of(images: Sequence[DemoImage]) -> pd.DataFrame:
    """What tiles that name these images say."""
    return pd.DataFrame(
        {
            "image_id": pd.Series([i.id for i in images], dtype=object),
            "lon": np.array([i.lon for i in images], float),
            "lat": np.array([i.lat for i in images], float),
            "computed_lon": np.array([i.computed_lon for i in images], float),
            "computed_lat": np.array([i.computed_lat for i in images], float),
            "captured_at_ms": np.array([i.captured_at_ms for i in images], np.int64),
        }
    )


def audit(api: Mapillary, answers: Answers, known: Sequence[DemoImage], bounds: Bounds, since: float = 0.0) -> Audit:
    """Everything that the planned cells over a rectangle gave."""
    auditor, result = Auditor(api, answers, coverage_of(known), since), Audit(bounds, cells=0)
    for cell, members in auditor.cells(bounds):
        result.add(api.run(auditor.audit(cell, members)))
    return result


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(Lake(tmp_path / "lake"), "town")


def ids(images: Sequence[DemoImage]) -> set[str]:
    return {i.id for i in images}


def stack(folder: Path, n: int, apart_ms: int = 1000) -> World:
    """Images on exactly one point."""
    return world(
        folder,
        [image(i, f"s{i // 500}", 50.0, 50.0, captured_at_ms=1_600_000_000_000 + apart_ms * i) for i in range(n)],
    )


def crowd(folder: Path, n: int = 900) -> World:
    """Images two metres apart in each direction."""
    return world(folder, [image(i, f"s{i % 9}", 10 + i % 30 * 2.0, 10 + i // 30 * 2.0) for i in range(n)])


AROUND_STACK, AROUND_CROWD, STREET = around(50, 50, 40), around(40, 40, 60), around(150, 20, 80)


def test_what_tiles_show_is_confirmed_in_two_answers(tmp_path: Path, answers: Answers) -> None:
    here = street(tmp_path)
    with serving(here) as address, client(address) as api:
        found = audit(api, answers, here.images, STREET)
    assert ids(here.images[14:46]) <= set(found.images) and not found.unverifiable
    assert (found.asks, found.cells, address.requests["search"]) == (2, 1, 2)


def test_what_no_tile_shows_is_found_with_its_sequence_and_place(tmp_path: Path, answers: Answers) -> None:
    here = street(tmp_path)
    new = here.images[30]
    with serving(here) as address, client(address) as api:
        found = audit(api, answers, [i for i in here.images if i is not new], STREET)
    said = found.images[new.id]
    assert said.sequence_id == new.sequence_id
    assert (said.lon, said.computed_lat) == pytest.approx((new.lon, new.computed_lat))
    assert address.requests["search"] >= 2, "news are asked for until an answer brings none"


def test_cut_answers_are_united(tmp_path: Path, answers: Answers) -> None:
    # 900 images but 850 rows an answer, up to 40 % fewer: one answer of a cell this full is never the whole.
    here = crowd(tmp_path)
    with serving(here, Behaviour(rows=850, short=0.4)) as address, client(address) as api:
        assert set(audit(api, answers, [], AROUND_CROWD).images) == ids(here.images)


@pytest.mark.parametrize("known", [0, 900])
def test_partial_rows_are_made_good(tmp_path: Path, answers: Answers, known: int) -> None:
    here = crowd(tmp_path)
    faults = Behaviour(fault=lambda kind, n: "partial" if n % 2 else None)
    with serving(here, faults) as address, client(address) as api:
        assert set(audit(api, answers, here.images[:known], AROUND_CROWD).images) == ids(here.images)


def test_spurious_empty_answers_are_not_believed(tmp_path: Path, answers: Answers) -> None:
    here = street(tmp_path)
    with (
        serving(here, Behaviour(fault=lambda kind, n: "empty" if n < EMPTY_ASKS else None)) as address,
        client(address) as api,
    ):
        assert len(audit(api, answers, [], STREET).images) == 32


def test_empty_land_is_believed_after_five_empty_answers(tmp_path: Path, answers: Answers) -> None:
    with serving(street(tmp_path)) as address, client(address) as api:
        found = audit(api, answers, [], around(5000, 5000, 500))
        assert (found.asks, address.requests["search"], found.images) == (EMPTY_ASKS, EMPTY_ASKS, {})
    assert not found.unverifiable


def test_deleted_images_that_tiles_still_show_do_not_keep_a_cell_open(tmp_path: Path, answers: Answers) -> None:
    here = street(tmp_path)
    with serving(here, Behaviour(deleted=frozenset(ids(here.images[20:30])))) as address, client(address) as api:
        found = audit(api, answers, here.images, STREET)
        assert address.requests["search"] == MOST_ASKS
    assert len(found.images) == 22 and not found.unverifiable


def test_a_dense_cell_is_asked_in_parts(tmp_path: Path, answers: Answers) -> None:
    here = street(tmp_path)
    with serving(here, Behaviour(dense_above=8)) as address, client(address) as api:
        for known in ([], here.images):
            found = audit(api, answers, known, STREET)
            assert ids(here.images[14:46]) <= set(found.images) and found.cells > 4 and not found.unverifiable


def test_a_cell_that_is_fuller_than_planned_is_asked_in_parts(tmp_path: Path, answers: Answers) -> None:
    here = crowd(tmp_path)
    with serving(here) as address, client(address) as api:
        found = audit(api, answers, here.images[::10], AROUND_CROWD)
    assert set(found.images) == ids(here.images) and found.cells > 1 and not found.unverifiable


# -- images on one point --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share_known", [0.0, 0.98, 1.0])
def test_more_images_on_one_point_than_an_answer_holds(tmp_path: Path, answers: Answers, share_known: float) -> None:
    here = stack(tmp_path, 2500)
    known = here.images[: round(2500 * share_known)]
    with serving(here) as address, client(address) as api:
        found = audit(api, answers, known, AROUND_STACK)
        assert address.requests["search"] < 150
    assert set(found.images) == ids(here.images) and not found.unverifiable


def test_images_on_one_point_at_one_moment_cannot_be_verified(tmp_path: Path, answers: Answers) -> None:
    here = stack(tmp_path, 2500, apart_ms=0)
    with serving(here) as address, client(address) as api:
        found = audit(api, answers, here.images, AROUND_STACK)
    assert found.unverifiable and address.requests["search"] < 200


def test_a_server_that_ignores_windows_proves_nothing(
    tmp_path: Path, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = stack(tmp_path, 2500)
    monkeypatch.setattr(server, "_filter", lambda query: None)
    with serving(here) as address, client(address) as api:
        assert audit(api, answers, here.images, AROUND_STACK).unverifiable


@pytest.mark.parametrize("known", [0, 15, 30])
def test_a_refused_point_is_said_to_be_unverifiable(tmp_path: Path, answers: Answers, known: int) -> None:
    """The gate counts what lies there whatever the window is; where tiles lag too, nobody can say what is missing."""
    here = stack(tmp_path, 30)
    with serving(here, Behaviour(dense_above=8)) as address, client(address) as api:
        found = audit(api, answers, here.images[:known], AROUND_STACK)
    assert found.unverifiable and address.requests["search"] < 200
    assert all(max(cell.size_m) < 4 for cell in found.unverifiable), "the rest of the cell is verified"


# -- failures, and what is kept -------------------------------------------------------------------------------


def test_a_search_that_keeps_failing_fails_the_box(tmp_path: Path, answers: Answers) -> None:
    down = Behaviour(fault=lambda kind, n: "service_unavailable")
    with (
        serving(street(tmp_path), down) as address,
        client(address) as api,
        pytest.raises(ApiError, match="Service temporarily unavailable"),
    ):
        audit(api, answers, [], STREET)


def test_a_refused_token_is_not_taken_for_density(tmp_path: Path, answers: Answers) -> None:
    with serving(street(tmp_path), Behaviour(fault=lambda kind, n: "no_token")) as address, client(address) as api:
        with pytest.raises(ApiError, match="Check MAPILLARY_TOKEN"):
            audit(api, answers, [], STREET)
        assert address.requests["search"] == 1


def test_a_cell_that_times_out_is_asked_in_parts(tmp_path: Path, answers: Answers) -> None:
    here = street(tmp_path)
    with serving(here) as address, client(address) as api:
        whole = api.ask_search

        async def slow(bounds: Bounds, *arguments, **filters):
            if max(bounds.size_m) > 100:
                error = ApiError("Query Timeout", status=400, code=-2)
                error.may_pass = True
                raise error
            return await whole(bounds, *arguments, **filters)

        api.ask_search = slow  # type: ignore[method-assign]
        found = audit(api, answers, here.images, STREET)
    assert ids(here.images[14:46]) <= set(found.images) and not found.unverifiable


@pytest.mark.parametrize(
    ("make", "bounds", "behaviour"),
    [
        (street, STREET, Behaviour()),
        (street, STREET, Behaviour(dense_above=8)),
        (street, around(5000, 5000, 500), Behaviour()),
        (crowd, AROUND_CROWD, Behaviour()),
        (lambda folder: stack(folder, 2500), AROUND_STACK, Behaviour()),
        (lambda folder: stack(folder, 30), AROUND_STACK, Behaviour(dense_above=8)),
    ],
    ids=["street", "dense", "empty", "crowd", "stack", "refused point"],
)
@pytest.mark.parametrize("share_known", [0, 1])
def test_no_kept_answer_is_asked_for_again(tmp_path: Path, make, bounds, behaviour, share_known: int) -> None:
    here, lake = make(tmp_path), Lake(tmp_path / "lake")
    known = here.images[: share_known * len(here.images)]
    with serving(here, behaviour) as address, client(address) as api:
        with Answers(lake, "town") as answers:
            first = audit(api, answers, known, bounds)
        asked = address.requests["search"]
        with Answers(lake, "town") as answers:
            again = audit(api, answers, known, bounds)
        assert address.requests["search"] == asked
    assert (again.images, again.asks, again.cells) == (first.images, first.asks, first.cells)
    assert again.unverifiable == first.unverifiable


def test_a_killed_audit_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed after each of its requests in turn, the audit asks no more in all than one that was never killed."""
    here, lake = street(tmp_path), Lake(tmp_path / "lake")
    behaviour = Behaviour(dense_above=20)
    with serving(here, behaviour) as address, client(address) as api:
        with Answers(Lake(tmp_path / "other"), "town") as answers:
            whole = audit(api, answers, here.images, STREET)
        asked, search = address.requests["search"], api.ask_search

        found = None
        for _ in range(asked):
            left = [1]

            async def one_more(*arguments, left: list[int] = left, **filters):
                if not left:
                    raise RuntimeError("killed")
                left.pop()
                return await search(*arguments, **filters)

            api.ask_search = one_more  # type: ignore[method-assign]
            with Answers(lake, "town") as answers, contextlib.suppress(RuntimeError):
                found = audit(api, answers, here.images, STREET)
                break
        assert address.requests["search"] == 2 * asked
    assert found is not None and found.images == whole.images


def test_answers_from_before_a_change_are_not_believed(tmp_path: Path, answers: Answers) -> None:
    here = street(tmp_path)
    with serving(here) as address, client(address) as api:
        audit(api, answers, here.images, STREET)
        audit(api, answers, here.images, STREET, since=dt.datetime.now().timestamp())
        assert address.requests["search"] == 4
