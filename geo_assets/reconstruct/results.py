"""What matching found for each pair of a box: taken over where it is known, matched where it is not.

What a pair yields depends on its two images and on the settings alone, so a result is taken over wherever it
lies: in what the box published before, in what a killed run left, in what a box beside it published.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import pandas as pd

from geo_assets.errors import ReconstructionError
from geo_assets.grid import touching
from geo_assets.lake import Lake
from geo_assets.reconstruct.databases import (
    PAIR_BASE,
    copy_images,
    copy_pairs,
    empty_like,
    image_ids,
    pair_id,
    pair_rows,
)
from geo_assets.reconstruct.features import DATABASE, image_name
from geo_assets.reconstruct.stage import StepAnswer, run_step
from geo_assets.settings import Reconstruct

FEATURES_FILE = "features.json"
"""Beside each published database of matches: of which features and by which rules its results are."""

MATCH_CHUNK = 200
"""Pairs matched between two lines of progress."""

SAVE_EVERY_S = 60.0
"""A run that is killed loses about so much of its work [s]."""

_PARTIAL = "matches_partial"
_RULES = 1  # counted up when matching changes, so that older results are left aside
_PATIENCE_S = 3600.0

Pairs = dict[int, tuple[str, str]]
"""Both image ids of each pair by its number."""


class PairResults:
    """The database of a box's matches while it is made; a context manager around scratch files.

    Args:
        lake: holds the database of ``gps_db`` under ``files/features``.
        city: name of the city.
        box: name of the box.
        cameras: rows of ``gps_db`` with keypoints.
        options: settings of the room.
        log: gets lines of progress.

    Raises:
        ReconstructionError: the database of ``gps_db`` is missing, damaged, held by another program, or another's.
    """

    def __init__(
        self, lake: Lake, city: str, box: str, cameras: pd.DataFrame, options: Reconstruct, log: Callable[[str], None]
    ) -> None:
        self._lake, self._city, self._box, self._options, self._log = lake, city, box, options, log
        self._numbers = {str(i): int(n) for i, n in zip(cameras.image_id, cameras.colmap_image_id, strict=True)}
        self._identities = _identities(cameras)
        self._rules = hashlib.sha256(f"{_RULES} {options.seed}".encode()).hexdigest()[:16]
        self._known: set[int] = set()
        self._reused: set[int] = set()
        self._local: dict[str, Path] = {}
        self._stack = contextlib.ExitStack()
        self.n_matched = 0
        """Pairs matched by this run."""
        self.n_resumed = 0
        """Pairs that an earlier run of this box had matched before it was killed."""
        self.cpu_seconds, self.peak_mb = 0.0, 0.0

    def __enter__(self) -> PairResults:
        try:
            self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="geo_assets_matches_")))
            self.published = self._scratch / "published"
            self.published.mkdir()
            self.database = self.published / DATABASE
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()

    def _begin(self) -> None:
        where = f"{self._box}|{self._city}"
        try:
            self.features = self._copy_of(self._lake.key("features", DATABASE, city=self._city, box=self._box))
            empty_like(self.features, self.database)
            copy_images(self.features, self.database)
            there = image_ids(self.database)
        except (sqlite3.DatabaseError, FileNotFoundError) as error:
            _refuse_a_full_disk(error)
            if "locked" in str(error):
                raise ReconstructionError(
                    f"The database of gps_db of {where} is held by another program (a COLMAP window?). "
                    "Close it there and run match_pairs again."
                ) from error
            raise ReconstructionError(
                f"The database of gps_db of {where} cannot be read ({error}). Run gps_db of this box again."
            ) from error
        missing = [i for i, number in self._numbers.items() if there.get(image_name(i)) != number]
        if missing:
            raise ReconstructionError(
                f"The database of gps_db of {where} lacks {len(missing):,} images of the table, {missing[0]} among "
                "them. Run gps_db of this box again."
            )

    def alike(self, n_per_image: int) -> list[tuple[str, str]]:
        """The ids of the most similar images of each image, as pairs.

        Raises:
            ReconstructionError: COLMAP failed.
        """
        work = self._work_on(self._numbers.values())
        asked = {"database": str(work), "n_per_image": n_per_image, "seed": self._options.seed}
        said = run_step("propose_by_vocabulary", asked, self._scratch, log=self._log)
        self._count(said)
        ids = {image_name(image): image for image in self._numbers}
        return [(ids[a], ids[b]) for a, b in said["pairs"] if a in ids and b in ids]

    def settle(self, pairs: pd.DataFrame) -> None:
        """Bring the result of each pair (``image_id_a``, ``image_id_b``) into the database.

        Raises:
            ReconstructionError: COLMAP failed; what was matched before is kept for the next run.
        """
        ids = zip(pairs.image_id_a, pairs.image_id_b, strict=True)
        left: Pairs = {number: pair for pair in ids if (number := self._number(*pair)) not in self._known}
        for key, name in self._sources():
            if not left:
                return
            taken = self._taken_from(key, name, left)
            if key.startswith("files/" + _PARTIAL):
                self.n_resumed += len(taken)
            else:
                self._reused |= taken
            self._known |= taken
            left = {number: pair for number, pair in left.items() if number not in taken}
        if left:
            self._match(left)

    def reused(self, pairs: pd.DataFrame) -> list[bool]:
        """For each pair whether its result is of an earlier run or another box.

        What this box's own killed run left counts as its own work.
        """
        return [self._number(a, b) in self._reused for a, b in zip(pairs.image_id_a, pairs.image_id_b, strict=True)]

    def found(self) -> Iterator[tuple[str, str, int, int, str]]:
        """Both ids of each pair in the database, putative matches, inliers, geometry."""
        ids = {number: image for image, number in self._numbers.items()}
        for number, n_matches, n_inliers, geometry in pair_rows(self.database):
            yield ids[number // PAIR_BASE], ids[number % PAIR_BASE], n_matches, n_inliers, geometry

    def publish(self) -> None:
        """Put the folder of the database in its place; what was kept in case of a kill is no longer needed."""
        self._describe(self.published, self._identities)
        self._lake.publish(self.published, self._lake.key("matches", city=self._city, box=self._box))
        self._lake.remove_folder(self._partial())

    # -- taking over ----------------------------------------------------------------------------------------

    def _sources(self) -> Iterator[tuple[str, str]]:
        """Folders that may hold results, and what to call them: this box's, its killed runs', its neighbours'."""
        yield self._lake.key("matches", city=self._city, box=self._box), "the last run"
        for name in self._lake.names(self._partial()):
            if name.isdigit():
                yield f"{self._partial()}/{name}", "a run that was cut short"
        for box in touching(self._box):
            if box != self._box:
                yield self._lake.key("matches", city=self._city, box=box), box

    def _taken_from(self, key: str, name: str, left: Pairs) -> set[int]:
        """Results of a folder for pairs whose two images are the same there, under the same rules."""
        if not self._lake.exists(f"{key}/{FEATURES_FILE}"):
            return set()
        try:
            said = json.loads(self._lake.get_bytes(f"{key}/{FEATURES_FILE}"))
            if said["rules"] != self._rules:
                return set()
            same = {image for image, identity in self._identities.items() if said["images"].get(image) == identity}
            wanted = [number for number, (a, b) in left.items() if a in same and b in same]
            if not wanted:
                return set()
            return copy_pairs(self._copy_of(f"{key}/{DATABASE}"), self.database, wanted)
        except (sqlite3.DatabaseError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _refuse_a_full_disk(error)
            # It only saves work: whatever is wrong with it, the pairs can be matched.
            self._log(f"the results of {name} cannot be taken over ({error}); their pairs are matched anew")
            return set()

    def _copy_of(self, key: str) -> Path:
        """A local path of a file, fetched once."""
        if key not in self._local:
            self._local[key] = self._stack.enter_context(self._lake.local(key))
        return self._local[key]

    # -- matching -------------------------------------------------------------------------------------------

    def _match(self, left: Pairs) -> None:
        """Match pairs in child processes of about a minute each, and keep what each has finished."""
        work = self._work_on({self._numbers[image] for pair in left.values() for image in pair})
        listed = self._scratch / "pairs.work.txt"
        # Neighbours in the list share an image, whose features COLMAP then reads once.
        waiting = sorted(left, key=lambda number: left[number])
        done = 0
        while done < len(waiting):
            names = (" ".join(map(image_name, left[number])) for number in waiting[done:])
            listed.write_text("".join(name + "\n" for name in names))
            said = run_step(
                "match",
                {
                    "database": str(work),
                    "pairs": str(listed),
                    "threads": self._options.threads or -1,
                    "seed": self._options.seed,
                    "device": self._options.device,
                    "chunk": MATCH_CHUNK,
                    "seconds": SAVE_EVERY_S,
                    "done": done,
                    "total": len(waiting),
                },
                self._scratch,
                log=self._log,
                timeout_s=SAVE_EVERY_S + _PATIENCE_S,
            )
            finished = waiting[done : done + said["n_done"]]
            self._keep(work, left, finished)
            self._known |= copy_pairs(work, self.database, finished)
            done += len(finished)
            self.n_matched += len(finished)
            self._count(said)

    def _work_on(self, images: Iterable[int]) -> Path:
        """A fresh database with the descriptors of these images."""
        work = self._scratch / "work.db"
        for path in self._scratch.glob("work.db*"):
            path.unlink()
        empty_like(self.features, work)
        copy_images(self.features, work, images)
        return work

    def _count(self, said: StepAnswer) -> None:
        self.cpu_seconds += said.cpu_seconds
        self.peak_mb = max(self.peak_mb, said.peak_mb)

    def _keep(self, work: Path, pairs: Pairs, finished: list[int]) -> None:
        """Put finished pairs where the next run finds them, should this one be killed."""
        batch = self._scratch / "batch"
        shutil.rmtree(batch, ignore_errors=True)
        batch.mkdir()
        empty_like(work, batch / DATABASE)
        copy_pairs(work, batch / DATABASE, finished)
        self._describe(batch, {image for number in finished for image in pairs[number]})
        taken = [int(name) for name in self._lake.names(self._partial()) if name.isdigit()]
        self._lake.publish(batch, f"{self._partial()}/{max(taken, default=-1) + 1:06d}")

    def _describe(self, folder: Path, images: Container[str]) -> None:
        """Say beside a database of which features and by which rules its results are."""
        said = {"rules": self._rules, "images": {i: v for i, v in self._identities.items() if i in images}}
        (folder / FEATURES_FILE).write_text(json.dumps(said, indent=0, sort_keys=True))

    def _partial(self) -> str:
        return self._lake.key(_PARTIAL, city=self._city, box=self._box)

    def _number(self, a: str, b: str) -> int:
        return pair_id(self._numbers[a], self._numbers[b])


def _refuse_a_full_disk(error: Exception) -> None:
    if "disk is full" in str(error):
        raise ReconstructionError(
            f"The disk for temporary files ({tempfile.gettempdir()}) is full. Free some space, or name another folder in TMPDIR."
        ) from error


def _identities(cameras: pd.DataFrame) -> dict[str, str]:
    """What must be the same for a result to be taken over: the number, the features, the kind of camera.

    An image whose features have no key is matched each time.
    """
    keyed = cameras[cameras.feature_key.notna()]
    focal = keyed.known_focal.fillna(False).astype(bool).map({True: "known focal", False: "guessed focal"})
    said = keyed.colmap_image_id.astype(str) + " " + keyed.feature_key + " " + keyed.camera_model.astype(str)
    return dict(zip(keyed.image_id.astype(str), (said + " " + focal).astype(str), strict=True))
