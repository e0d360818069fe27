"""What an external program is handed and what it must hand back.

It gets a dataset of its own, made of links to the photos: no trainer can write beside the real ones, and nothing lies
in it that a trainer would pick up unasked (Brush resumes from any PLY that it finds, and reads ``args.txt``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from geo_assets.errors import SourceError, TrainingError
from geo_assets.splats.engine import Log, SplatRequest, SplatResult
from geo_assets.splats.engines.program import Ran, Reader, run
from geo_assets.splats.ply import read_ply

PHOTOS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
MODEL_FILES = ("cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin")
MOST_NONFINITE = 0.01
"""Above this share of Gaussians that are not numbers, a training has diverged; fewer are dropped."""


@dataclass(frozen=True)
class Workplace:
    """Folders of one run of a program.

    Args:
        folder: everything below is in it; it goes when the run is over.
        dataset: ``images/``, ``sparse/0/`` and, where there are any, ``masks/``, to be read.
        made: empty, for what the program writes.
        journal: the file that gets the program's output; it stays.
        started: a file that is as old as the run.
    """

    folder: Path
    dataset: Path
    made: Path
    journal: Path
    started: Path

    def run(
        self,
        engine: str,
        command: Sequence[str],
        request: SplatRequest,
        *,
        read: Reader,
        log: Log,
        timeout_s: float | None,
        more: Mapping[str, str] | None = None,
        hint: Callable[[str], str | None] | None = None,
    ) -> Ran:
        """Run a program here; what the arguments are, and what it raises, says :func:`.program.run`."""
        return run(
            engine,
            command,
            folder=self.folder,
            journal=self.journal,
            read=read,
            log=log,
            steps=request.steps,
            timeout_s=timeout_s,
            more=more,
            hint=hint,
        )

    def told(self, command: list[str]) -> tuple[str, ...]:
        """A command line for people: the folders of this run, which are gone by then, as ``dataset`` and ``out``."""
        names = {str(self.dataset): "dataset", str(self.made): "out", str(self.folder): "work"}
        told = command
        for path, name in names.items():
            told = [argument.replace(path, name) for argument in told]
        return tuple(told)


@contextlib.contextmanager
def workplace(
    request: SplatRequest,
    *,
    masks: bool = True,
    hold_back: frozenset[str] = frozenset(),
    also: tuple[str, ...] = (),
) -> Iterator[Workplace]:
    """Folders for a program, beside ``request.out_dir``.

    Args:
        request: what is to be trained.
        masks: whether the program gets the masks.
        hold_back: names of photos that it does not get, for programs that cannot leave them out themselves.
        also: names of files of the dataset that it gets beside photos, model and masks; a foreign program gets none,
            since some take any JSON for cameras.
    """
    request.out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="geo_assets_engine_", dir=request.out_dir.absolute().parent) as made:
        folder = Path(made)
        place = Workplace(
            folder, folder / "dataset", folder / "made", request.out_dir.absolute() / "engine.log", folder / "started"
        )
        place.made.mkdir()
        place.journal.unlink(missing_ok=True)
        _hand_over(request.dataset_dir, place.dataset, masks)
        for name in also:
            if (request.dataset_dir / name).is_file():
                _copy(request.dataset_dir / name, place.dataset / name)
        if hold_back:
            from geo_assets.splats.undistort import leave_out

            leave_out(place.dataset, set(hold_back))
        place.started.touch()
        yield place


def photo_names(dataset: Path) -> list[str]:
    """Names of a dataset's registered photos, sorted."""
    import pycolmap

    model = pycolmap.Reconstruction(dataset / "sparse" / "0")
    return sorted(model.images[i].name for i in model.reg_image_ids())


def held_out_names(dataset: Path, every: int) -> list[str]:
    """Names of the photos that are not trained on: each n-th by name, as the judge takes them."""
    return photo_names(dataset)[::every]


def put_masks_by_stem(dataset: Path, folder: Path) -> bool:
    """Masks as ``folder/<stem>.png``, white where a photo has none; False, and no folder, where none has one."""
    given = dataset / "masks"
    if not given.is_dir() or not any(given.rglob("*.png")):
        return False
    for name in photo_names(dataset):
        mask, target = given / f"{name}.png", (folder / name).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        if mask.exists():
            _link(mask, target)
            continue
        with Image.open(dataset / "images" / name) as photo:
            Image.new("L", photo.size, 255).save(target)
    return True


def accept(
    engine: str, ply: Path | None, place: Workplace, request: SplatRequest, ran: Ran, log: Log
) -> tuple[Path, int]:
    """Check the PLY of a program that says it is done, and keep it as ``engine.ply`` in ``request.out_dir``.

    Returns:
        Where it is, and how many Gaussians it holds.

    Raises:
        TrainingError: there is none, it is older than the run, unreadable, empty, or not made of numbers.
    """
    if ply is None or not ply.is_file():
        raise TrainingError(
            f"{engine} finished but wrote no PLY; its last warning: {ran.last_warning}. See engine.log.",
            steps=ran.steps,
        )
    if ply.stat().st_mtime_ns < place.started.stat().st_mtime_ns:
        raise TrainingError(
            f"{engine} left a PLY that is older than the run: {ply.name} is not its result. See engine.log."
        )
    try:
        gaussians = read_ply(ply)
    except (SourceError, OSError, ValueError) as error:
        raise TrainingError(
            f"{engine} wrote a PLY that cannot be read: {error} Its last warning: {ran.last_warning}."
        ) from None
    n = len(gaussians)
    if n == 0:
        raise TrainingError(
            f"{engine} wrote a PLY without any Gaussian; its last warning: {ran.last_warning}. See engine.log."
        )
    bad = int((~np.isfinite(gaussians.rows).all(axis=1)).sum())
    if bad > MOST_NONFINITE * n:
        raise TrainingError(
            f"{engine} diverged: {bad:,} of {n:,} Gaussians are not made of finite numbers. Lower its learning rates with splats.extra_args, or splats.steps.",
            n_nonfinite=bad,
        )
    if bad:
        log(f"{engine}: {bad:,} of {n:,} Gaussians are not made of finite numbers and are dropped.")
    kept = request.out_dir / "engine.ply"
    shutil.move(ply, kept)
    return kept, n


def check_steps(engine: str, done: int, wanted: int, ran: Ran) -> None:
    """A program that says how far it came must have come to the end.

    Raises:
        TrainingError: it did not.
    """
    if done < wanted:
        raise TrainingError(
            f"{engine} ended after step {done:,} of {wanted:,} without saying why; its last warning: {ran.last_warning}. See engine.log.",
            steps=done,
        )


def result(
    engine: str, version: str, ply: Path, n_splats: int, steps: int, ran: Ran, command: tuple[str, ...]
) -> SplatResult:
    """The result of a program that ran and whose PLY was accepted."""
    return SplatResult(
        ply_path=ply,
        engine=engine,
        engine_version=version,
        seconds=ran.seconds,
        steps_done=steps,
        n_splats=n_splats,
        peak_gpu_mb=ran.last.peak_gpu_mb,
        command=command,
        metrics=ran.metrics,
        curve=tuple(ran.curve),
    )


def _hand_over(source: Path, target: Path, masks: bool) -> None:
    """Link what belongs to a dataset, and nothing else."""
    for path in _files(source / "images"):
        if path.suffix.lower() in PHOTOS:
            _link(path, target / path.relative_to(source))
    for name in MODEL_FILES:
        if (path := source / "sparse" / "0" / name).exists():
            _copy(path, target / "sparse" / "0" / name)
    for path in _files(source / "masks") if masks else ():
        if path.suffix.lower() != ".png":
            continue
        place = target / path.relative_to(source)
        _link(path, place)
        # Some trainers look for 123.jpg.png, older ones (Brush up to 0.2) for 123.png alone.
        photo = place.with_suffix("")
        if photo.suffix.lower() in PHOTOS - {".png"}:
            _link(path, photo.with_suffix(".png"))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def _link(source: Path, target: Path) -> None:
    """A second name of a file, which costs nothing; a copy where the file system has no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
