"""The blocks of a box mapped, each in a process of its own, several at once; finished ones are kept.

A block's model lies in the lake under the key of its content as soon as it is done, so a run that is killed goes
on where it was. A block that is too much for its process is cut in two, down to a size that cannot be the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.lake import BoxPartition, Lake
from geo_assets.reconstruct.blocks import Block, block_key, cut, halves
from geo_assets.reconstruct.cameras import image_name
from geo_assets.reconstruct.stage import StepEnded, run_step
from geo_assets.settings import Reconstruct
from geo_assets.tables import TABLES

SMALLEST_CUT = 25
"""A block of so many images is not cut further: what ends its process is not its size."""

ANSWER = "answer.json"
_KEPT = ("status", "reason", "models", "given", "cpu_seconds", "peak_mb")
_RULES = 2  # counted up when mapping changes, so that kept blocks of earlier code are left aside

_OF_IMAGES = [
    *("image_id", "colmap_image_id", "camera_id", "frame_id", "feature_key", "known_upright", "camera_model"),
    *("parameters", "known_focal", "east_m", "north_m", "up_m", "sigma_xy_m", "sigma_z_m", "heading_deg"),
    *("given_centre", "given_rotation", "given_cluster"),
]


@dataclass(frozen=True)
class BlockRun:
    """What became of one block.

    Attributes:
        key: key of its content.
        component: number of the component of the verified graph that it was cut from.
        block: its images.
        status: ``mapped``, ``not_mapped``, or ``split`` after it failed.
        reason: why its process ended or made no model; None where it did.
        models: for each model its ``folder`` in the block's folder, ``mapper`` and ``names``.
        given: what came of the provider's own poses, each time they were asked: figures of ``GivenFigures``.
        resumed: whether it was there from an earlier run.
        cpu_seconds: processor time [s], also of an earlier run.
        peak_mb: peak memory of its process [MB].
    """

    key: str
    component: int
    block: Block
    status: str
    reason: str | None = None
    models: list[dict[str, Any]] = field(default_factory=list)
    given: list[dict[str, Any]] = field(default_factory=list)
    resumed: bool = False
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0

    @property
    def row(self) -> dict[str, Any]:
        """Columns of ``model_blocks``."""
        return {
            "block": self.key,
            "component": self.component,
            "n_images": len(self.block.image_ids),
            "n_shared": len(self.block.shared),
            "n_registered": len({name for model in self.models for name in model["names"]}),
            "mapper": self.models[0]["mapper"] if self.models else None,
            "status": self.status,
            "reason": self.reason,
            "resumed": self.resumed,
            "cpu_seconds": self.cpu_seconds,
            "peak_mb": self.peak_mb,
        }


@dataclass(frozen=True)
class BlockMapper:
    """Maps the blocks of one box.

    Attributes:
        lake: where finished blocks are kept.
        where: the box.
        images: rows of ``gps_db``.
        pairs: verified rows of ``match_pairs`` that are not kept out of mapping.
        database: local path of the box's database with verified matches.
        scratch: local folder.
        options: settings of the room.
        log: gets lines of progress; it is called by one thread at a time.
    """

    lake: Lake
    where: BoxPartition
    images: pd.DataFrame
    pairs: pd.DataFrame
    database: Path
    scratch: Path
    options: Reconstruct
    log: Callable[[str], None]

    def map(self, groups: Sequence[Sequence[str]]) -> list[BlockRun]:
        """Cut components into blocks and map them all.

        Args:
            groups: image ids of each component.

        Returns:
            The blocks in the order of their component and first image, with those that were cut in two.
        """
        todo = [(number, block) for number, group in enumerate(groups) for block in self._cut(group)]
        self.log(f"mapping {len(todo):,} blocks of {len(groups):,} components")
        found: list[BlockRun] = []
        stop = threading.Event()
        with ThreadPoolExecutor(self.options.threads or os.cpu_count() or 1) as pool:
            waiting: set[Future[tuple[BlockRun, list[Block]]]] = set()
            try:
                waiting = {pool.submit(self._run, number, block, stop) for number, block in todo}
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for run, parts in (future.result() for future in done):
                        found.append(run)
                        waiting |= {pool.submit(self._run, run.component, part, stop) for part in parts}
                        self.log(_told(run, len(found), len(found) + len(waiting)))
            except BaseException:
                # An interrupted run waits for no block: its processes end now, and what is done is kept.
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return sorted(found, key=lambda run: (run.component, run.block.own, run.key))

    def key_of(self, block: Block) -> str:
        """Key under which the block's models are kept."""
        images, pairs = self._content(block)
        options = {"min_images": self.options.min_images, "seed": self.options.seed, "rules": _RULES}
        return block_key(images, pairs, options | {"given_poses": self.options.given_poses})

    def folder_of(self, key: str) -> str:
        """Folder of a kept block in the lake."""
        return self.lake.key("blocks", key, **self.where)

    def forget(self) -> None:
        """Remove all kept blocks of the box: they are part of its models now."""
        self.lake.remove_folder(self.lake.key("blocks", **self.where))

    def _cut(self, group: Sequence[str]) -> list[Block]:
        return cut(*self._graph(group), self.options.block_images, self.options.block_shared)

    def _graph(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray, list[tuple[str, str, int]], list[Any]]:
        rows = self.images.set_index("image_id").loc[sorted(ids)]
        positions = rows[["east_m", "north_m"]].to_numpy(float)
        inside = self._pairs_among(ids)
        edges = list(zip(inside.image_id_a, inside.image_id_b, inside.n_inliers.astype(int), strict=True))
        frames = [i if pd.isna(f) else int(f) for i, f in zip(rows.index, rows.frame_id, strict=True)]
        return list(rows.index), positions, edges, frames

    def _pairs_among(self, ids: Sequence[str]) -> pd.DataFrame:
        kept = set(ids)
        return pd.DataFrame(self.pairs[self.pairs.image_id_a.isin(kept) & self.pairs.image_id_b.isin(kept)])

    def _content(self, block: Block) -> tuple[list[dict[str, Any]], list[list[Any]]]:
        """What mapping sees of a block: rows of its images and its verified pairs, as JSON can hold them."""
        rows = pd.DataFrame(self.images[self.images.image_id.isin(block.image_ids)])
        rows = rows.sort_values("image_id").reindex(columns=_OF_IMAGES)
        inside = self._pairs_among(block.image_ids).sort_values(["image_id_a", "image_id_b"])
        pairs = pd.DataFrame(inside[["image_id_a", "image_id_b", "n_inliers", "geometry"]]).to_numpy().tolist()
        return json.loads(str(rows.to_json(orient="records", double_precision=15))), pairs

    def _run(self, component: int, block: Block, stop: threading.Event) -> tuple[BlockRun, list[Block]]:
        """Map a block or take its kept result; the parts to map in its place where it was too much."""
        key = self.key_of(block)
        run = self._kept(key, component, block)
        if run is None:
            run = self._mapped(key, component, block, stop)
        if run.status != "split":
            return run, []
        return run, self._parts(block)

    def _parts(self, block: Block) -> list[Block]:
        """The two halves of a block; none where it cannot be cut."""
        if len(block.image_ids) <= SMALLEST_CUT:
            return []
        own = set(block.own)
        found = halves(*self._graph(block.image_ids), self.options.block_shared)
        parts = [
            Block([i for i in part.own if i in own], sorted([*part.shared, *(i for i in part.own if i not in own)]))
            for part in found
        ]
        return parts if len(parts) > 1 else []

    def _kept(self, key: str, component: int, block: Block) -> BlockRun | None:
        """The result of an earlier run; a process that reached a limit counts only while the limit is no wider."""
        folder = self.folder_of(key)
        if not self.lake.exists(f"{folder}/{ANSWER}"):
            return None
        said = json.loads(self.lake.get_bytes(f"{folder}/{ANSWER}"))
        timeout_s, memory_mb = said["limits"]
        wider = timeout_s < self.options.block_timeout_s or memory_mb < self.options.block_memory_mb
        if said["ended"] in ("abort", "signal") or (said["ended"] and wider):
            return None
        return BlockRun(key, component, block, resumed=True, **{k: said[k] for k in _KEPT})

    def _mapped(self, key: str, component: int, block: Block, stop: threading.Event) -> BlockRun:
        """Map a block in a process of its own and keep what came of it."""
        scratch = self.scratch / key
        published = scratch / "published"
        said: dict[str, Any] = {"limits": [self.options.block_timeout_s, self.options.block_memory_mb]}
        said |= self._tried(block, published, scratch, stop)
        (published / ANSWER).write_text(json.dumps(said))
        self.lake.publish(published, self.folder_of(key))
        shutil.rmtree(scratch, ignore_errors=True)
        return BlockRun(key, component, block, **{k: said[k] for k in _KEPT})

    def _tried(self, block: Block, published: Path, scratch: Path, stop: threading.Event) -> dict[str, Any]:
        """What came of a block's process: models in ``published``, or why there are none."""
        spent = peak = 0.0
        killed_before = False
        while True:
            shutil.rmtree(scratch, ignore_errors=True)
            published.mkdir(parents=True)
            try:
                answer = self._step(block, published, scratch, stop)
            except StepEnded as error:
                if stop.is_set():
                    raise
                spent, peak = spent + error.cpu_seconds, max(peak, error.peak_mb)
                # Killed from outside it may have been in somebody's way; a second time it is the block.
                if error.by == "signal" and not killed_before:
                    self.log(f"the process of a block of {len(block.image_ids):,} images was killed; once more")
                    killed_before = True
                    continue
                status = "split" if self._parts(block) else "not_mapped"
                said: dict[str, Any] = {"status": status, "reason": _sentence(error), "models": [], "ended": error.by}
                said["given"] = []
            else:
                spent, peak = spent + answer.cpu_seconds, max(peak, answer.peak_mb)
                reason = None if answer["models"] else "no mapper found a model that holds together"
                status = "mapped" if answer["models"] else "not_mapped"
                said = {"status": status, "reason": reason, "models": answer["models"], "ended": None}
                said["given"] = answer["given"]
            return said | {"cpu_seconds": round(spent, 3), "peak_mb": round(peak, 1)}

    def _step(self, block: Block, published: Path, scratch: Path, stop: threading.Event) -> Any:
        images, pairs = self._content(block)
        return run_step(
            "map_block",
            {
                "database": str(self.database),
                "out": str(published),
                "images": [image | {"name": image_name(image["image_id"])} for image in images],
                "pairs": [[image_name(a), image_name(b), int(n), str(g)] for a, b, n, g in pairs],
                "min_images": self.options.min_images,
                "seed": self.options.seed,
                "given": self.options.given_poses,
            },
            scratch,
            log=self.log,
            timeout_s=self.options.block_timeout_s,
            memory_mb=self.options.block_memory_mb,
            stop=stop,
        )


def block_rows(runs: Sequence[BlockRun]) -> pd.DataFrame:
    """Rows of ``model_blocks``."""
    return TABLES["model_blocks"].frame([run.row for run in runs]).drop_duplicates("block")


def _sentence(error: StepEnded) -> str:
    """The first sentence of an error, without COLMAP's log."""
    return str(error).split(" Its log ends:")[0].rstrip(". ") + "."


def _told(run: BlockRun, n_done: int, n_all: int) -> str:
    what = {"mapped": f"{run.row['n_registered']:,} images registered", "split": "too much for its process, cut in two"}
    how = what.get(run.status, "not mapped") + (", from an earlier run" if run.resumed else "")
    return f"block {n_done:,} of {n_all:,}: {len(run.block.image_ids):,} images, {how}"
