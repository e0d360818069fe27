"""The certificate of a box: what each source said of it, and whether nothing is known to be missing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from geo_assets.harvest.coverage import content_hash


def certificate(
    candidates: pd.DataFrame,
    sequences: pd.DataFrame,
    metadata: pd.DataFrame,
    *,
    tombstones: Collection[str],
    unresolved: Collection[str],
    figures: Mapping[str, Any],
    fetched_at: dt.datetime,
) -> pd.DataFrame:
    """The row of table ``certificates`` of a box.

    It says that three sources agree, no more: an image that no tile, no sequence list and no search names
    cannot be known to be missing.

    Args:
        candidates: rows of ``sequence_images`` of the box.
        sequences: rows of ``sequence_ids`` of the box.
        metadata: rows of ``image_metadata``: the images that lie in the box in the end.
        tombstones: candidates that the API says do not exist any more.
        unresolved: candidates of which the API said nothing.
        figures: ``n_tiles``, ``n_audit_cells`` and ``n_unverifiable`` of the search.
        fetched_at: when the box was harvested.
    """
    here = candidates.loc[candidates["image_id"].isin(list(metadata["image_id"]))]
    by_tiles = here["in_tiles"] | here["in_computed"]
    closed = set(sequences.loc[sequences["closed"], "sequence_id"])
    # A sequence that metadata names first was never listed either.
    unclosed = set(metadata["sequence_id"].dropna()) - closed
    unverifiable = int(figures.get("n_unverifiable", 0))
    return pd.DataFrame(
        {
            "n_tiles": [int(figures.get("n_tiles", 0))],
            "n_tile_images": [int(by_tiles.sum())],
            "n_closure_added": [int((here["in_closure"] & ~by_tiles).sum())],
            "n_audit_cells": [int(figures.get("n_audit_cells", 0))],
            "n_audit_added": [int((here["in_audit"] & ~by_tiles & ~here["in_closure"]).sum())],
            "n_unresolved": [len(unresolved)],
            "n_unverifiable": [unverifiable],
            "n_unclosed": [len(unclosed)],
            "n_tombstones": [len(tombstones)],
            "n_images": [len(metadata)],
            "complete": [not unresolved and not unverifiable and not unclosed],
            "dataset_hash": [content_hash(metadata["image_id"])],
            "fetched_at": [fetched_at],
        }
    )


def summary(proofs: pd.DataFrame) -> dict[str, Any]:
    """A certificate as figures, with one sentence for people under ``certificate``.

    Args:
        proofs: the row of table ``certificates``, or none for a box outside its city's grid.
    """
    if proofs.empty:
        return {"certificate": "The box lies outside the city's grid.", "complete": True}
    row = proofs.iloc[0].to_dict()
    figures = {k: int(v) for k, v in row.items() if str(k).startswith("n_")}
    return {"certificate": verdict(row), "complete": bool(row["complete"]), **figures}


def verdict(row: Mapping[str, Any]) -> str:
    """One sentence on a certificate, for people."""
    if row["complete"]:
        return f"Complete: {row['n_images']} images, and tiles, sequence lists and searches agree."
    said = {
        "n_unresolved": "ids without an answer",
        "n_unverifiable": "search cells without an answer",
        "n_unclosed": "sequences without a list",
    }
    missing = ", ".join(f"{row[k]} {what}" for k, what in said.items() if row[k])
    return f"Incomplete: {missing}. Materialize sequence_ids and image_metadata of the box again."
