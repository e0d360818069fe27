"""The certificate of a box: what each source said of it, and whether nothing is known to be missing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.harvest.coverage import content_hash
from geo_assets.tables import TABLES


def certificate(
    candidates: pd.DataFrame,
    metadata: pd.DataFrame,
    *,
    unclosed: Collection[str],
    tombstones: Collection[str],
    unresolved: Collection[str],
    figures: Mapping[str, Any],
    fetched_at: dt.datetime,
) -> pd.DataFrame:
    """The row of table ``certificates`` of a box.

    It says that three sources agree, no more: an image that no tile, no sequence list and no search names
    cannot be known to be missing. How many such images there may be is estimated by capture and recapture.

    Args:
        candidates: rows of ``sequence_images`` of the box.
        metadata: rows of ``image_metadata``: the images that lie in the box in the end.
        unclosed: sequences with an image in the box that the API would not list.
        tombstones: candidates that the API says do not exist any more.
        unresolved: candidates of which the API said nothing.
        figures: ``n_tiles``, ``n_failed_tiles``, ``n_audit_cells``, ``n_audit_asks`` and ``n_unverifiable``.
        fetched_at: when the box was harvested.
    """
    here = candidates.loc[candidates["image_id"].isin(list(metadata["image_id"]))]
    tiles = (here["in_tiles"] | here["in_computed"]).to_numpy(bool)
    named = tiles | here["in_closure"].to_numpy(bool)
    audit = here["in_audit"].to_numpy(bool)
    counted = {
        name: int(figures.get(name, 0)) for name in ("n_tiles", "n_failed_tiles", "n_audit_cells", "n_audit_asks")
    }
    missing = {
        "n_failed_tiles": counted["n_failed_tiles"],
        "n_unresolved": len(unresolved),
        "n_unverifiable": int(figures.get("n_unverifiable", 0)),
        "n_unclosed": len(unclosed),
    }
    sources = {
        "n_tile_images": int(tiles.sum()),
        "n_closure_added": int((named & ~tiles).sum()),
        "n_audit_again": int((audit & named).sum()),
        "n_audit_new": int((audit & ~named).sum()),
        "n_audit_added": len(here) - int(named.sum()),
    }
    row: dict[str, Any] = counted | sources | missing
    row |= {
        "n_tombstones": len(tombstones),
        "n_images": len(metadata),
        "n_estimated_missing": estimated_missing(int(named.sum()), sources["n_audit_again"], sources["n_audit_new"]),
        "complete": not any(missing.values()),
        "dataset_hash": content_hash(metadata["image_id"]),
        "fetched_at": fetched_at,
    }
    return TABLES["certificates"].frame([row])


def estimated_missing(n_named: int, n_again: int, n_new: int) -> float | None:
    """Images that all sources may have missed, by capture and recapture (Lincoln and Petersen).

    The searches found ``n_again`` of the ``n_named`` images that tiles and sequence lists name, so of all images
    they find that share; ``n_new`` images that only they found stand for as many more as they miss. It assumes that
    searches miss independently of tiles.

    Returns:
        None where it cannot be said: images are named, and the searches found none of them.
    """
    if n_again == 0:
        return None if n_named or n_new else 0.0
    return max(0.0, n_new / n_again * n_named - n_new)


def city_certificate(proofs: pd.DataFrame, n_boxes: int, n_sequences: int, fetched_at: dt.datetime) -> pd.DataFrame:
    """The row of table ``city_certificates`` of the certificates of a city's boxes.

    Args:
        proofs: rows of table ``certificates``.
        n_boxes: boxes of the city's grid; a box without a certificate is not complete.
        n_sequences: sequences with an image in the city.
        fetched_at: now.
    """
    table = TABLES["city_certificates"]
    counts = [c for c in table.column_names if c in proofs and c.startswith("n_") and c != "n_estimated_missing"]
    sums = {c: int(np.nansum(proofs[c].to_numpy(float))) for c in counts}
    n_named, n_again = sums["n_tile_images"] + sums["n_closure_added"], sums["n_audit_again"]
    row = sums | {
        "n_boxes": n_boxes,
        "n_complete": int(proofs["complete"].to_numpy(bool).sum()),
        "n_sequences": n_sequences,
        "n_estimated_missing": estimated_missing(n_named, n_again, sums["n_audit_new"]),
        "complete": len(proofs) == n_boxes and bool(proofs["complete"].all()),
        "dataset_hash": content_hash(proofs["dataset_hash"]),
        "fetched_at": fetched_at,
    }
    return table.frame([row])


def summary(proofs: pd.DataFrame) -> dict[str, Any]:
    """A certificate as figures, with one sentence for people under ``certificate``.

    Args:
        proofs: the row of table ``certificates``, or none for a box outside its city's grid.
    """
    if proofs.empty:
        return {"certificate": "The box lies outside the city's grid.", "complete": True}
    row = proofs.iloc[0].to_dict()
    figures = {str(k): v for k, v in row.items() if str(k).startswith("n_") and not pd.isna(v)}
    return {"certificate": verdict(row), "complete": bool(row["complete"]), **figures}


def verdict(row: Mapping[str, Any]) -> str:
    """One sentence on a certificate, for people."""
    if row["complete"]:
        return f"Complete: {row['n_images']} images, and tiles, sequence lists and searches agree."
    said = {
        "n_failed_tiles": "tiles that could not be had",
        "n_unresolved": "ids without an answer",
        "n_unverifiable": "search cells without an answer",
        "n_unclosed": "sequences without a list",
    }
    missing = ", ".join(f"{row[k]} {what}" for k, what in said.items() if row[k])
    return f"Incomplete: {missing}. Materialize sequence_ids and image_metadata of the box again."
