import datetime as dt
from typing import Any

import pandas as pd
import pytest

from geo_assets.harvest.certificate import certificate, city_certificate, estimated_missing, summary, verdict
from geo_assets.harvest.coverage import content_hash
from geo_assets.tables import TABLES

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
CANDIDATES = pd.DataFrame(
    {
        "image_id": ["a", "b", "c", "d", "e"],
        "sequence_id": ["s", "s", "t", "t", "t"],
        "in_tiles": [True, False, False, True, False],
        "in_computed": [False, False, False, True, False],
        "in_closure": [True, True, False, True, False],
        "in_audit": [True, False, True, True, False],
        "in_late_closure": [False, False, False, False, True],
    }
)
"""a is in all sources, b in a list, c in a search, d is deleted, e in the list of a sequence that a search named."""


def proof_of(**changes: Any) -> pd.DataFrame:
    known: dict[str, Any] = {
        "unclosed": [],
        "tombstones": ["d"],
        "unresolved": [],
        "figures": {"n_tiles": 2, "n_audit_cells": 5, "n_audit_asks": 11},
        "fetched_at": NOW,
    }
    images = pd.DataFrame({"image_id": ["a", "b", "c", "e"]})
    row = certificate(CANDIDATES, images, **(known | changes))
    TABLES["certificates"].conform(row)
    return row


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"unresolved": ["x"]}, "1 ids without an answer"),
        ({"unclosed": ["s", "t"]}, "2 sequences without a list"),
        ({"figures": {"n_unverifiable": 1}}, "1 search cells without an answer"),
        ({"figures": {"n_failed_tiles": 3}}, "3 tiles that could not be had"),
        ({"unresolved": ["x"], "unclosed": ["s"]}, "1 ids without an answer, 1 sequences without a list"),
    ],
)
def test_a_certificate_is_complete_only_if_nothing_is_left(changes: dict, said: str | None) -> None:
    found = summary(proof_of(**changes))
    assert found["complete"] is (said is None)
    assert found["certificate"].startswith(f"Incomplete: {said}." if said else "Complete: 4 images")


def test_what_each_source_added() -> None:
    said = summary(proof_of())
    assert (said["n_tile_images"], said["n_closure_added"], said["n_audit_added"]) == (1, 1, 2)
    assert (said["n_audit_again"], said["n_images"], said["n_tombstones"]) == (1, 4, 1)
    assert (said["n_tiles"], said["n_audit_cells"], said["n_audit_asks"]) == (2, 5, 11)
    assert said["n_tile_images"] + said["n_closure_added"] + said["n_audit_added"] == said["n_images"]
    assert said["n_estimated_missing"] == 1.0, "the search found a but not b, and c alone: one like b is missing"


def test_the_hash_names_the_images_whatever_their_order() -> None:
    row = proof_of().iloc[0]
    assert row["dataset_hash"] == content_hash(["e", "c", "b", "a"]) != content_hash(["a", "b", "c"])


@pytest.mark.parametrize(
    ("named", "again", "new", "missing"),
    [
        (0, 0, 0, 0.0),
        (100, 100, 0, 0.0),
        (100, 50, 0, 0.0),
        (100, 100, 7, 0.0),
        (100, 50, 10, 10.0),
        (90, 60, 4, 2.0),
        (10, 0, 0, None),
        (0, 0, 3, None),
    ],
)
def test_capture_and_recapture(named: int, again: int, new: int, missing: float | None) -> None:
    found = estimated_missing(named, again, new)
    assert found is None if missing is None else found == pytest.approx(missing)


def test_an_estimate_that_cannot_be_made_is_null() -> None:
    proof = proof_of(figures={})
    assert "n_estimated_missing" in summary(proof)
    blind = certificate(
        CANDIDATES.assign(in_audit=False),
        pd.DataFrame({"image_id": ["a"]}),
        unclosed=[],
        tombstones=[],
        unresolved=[],
        figures={},
        fetched_at=NOW,
    )
    assert pd.isna(blind["n_estimated_missing"].iloc[0]) and "n_estimated_missing" not in summary(blind)


def test_no_certificate_is_no_accusation() -> None:
    assert summary(TABLES["certificates"].empty())["complete"]


def test_an_empty_box_is_complete() -> None:
    none = TABLES["sequence_images"].empty()
    proof = certificate(
        none,
        TABLES["image_metadata"].empty(),
        unclosed=[],
        tombstones=[],
        unresolved=[],
        figures={"n_tiles": 2},
        fetched_at=NOW,
    )
    assert summary(proof)["complete"] and summary(proof)["n_estimated_missing"] == 0.0


def test_a_city_is_complete_when_every_box_is() -> None:
    proofs = pd.concat([proof_of(), proof_of()], ignore_index=True)
    whole = city_certificate(proofs, 2, 17, NOW).iloc[0]
    TABLES["city_certificates"].conform(city_certificate(proofs, 2, 17, NOW))
    assert whole["complete"] and (whole["n_boxes"], whole["n_complete"], whole["n_sequences"]) == (2, 2, 17)
    assert (whole["n_images"], whole["n_tile_images"], whole["n_audit_added"], whole["n_tombstones"]) == (8, 2, 4, 2)
    assert verdict(whole.to_dict()).startswith("Complete: 8 images")


def test_a_city_lacks_a_box() -> None:
    proofs = pd.concat([proof_of(), proof_of(unresolved=["x"])], ignore_index=True)
    one_bad = city_certificate(proofs, 2, 17, NOW).iloc[0]
    assert not one_bad["complete"] and one_bad["n_complete"] == 1 and one_bad["n_unresolved"] == 1
    assert not city_certificate(proofs.head(1), 2, 17, NOW)["complete"].iloc[0], "a box without a certificate"
    none = city_certificate(TABLES["certificates"].empty(), 2, 0, NOW).iloc[0]
    assert not none["complete"] and none["n_images"] == 0
