"""Small programs that behave as the real trainers are documented to, traps included, and a dataset to train on."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from geo_assets.splats.engine import SplatRequest
from geo_assets.splats.gaussians import Gaussians
from geo_assets_tests.splats.scenes import blobs, ring, scene_of, write_colmap

STARTS_WITH = """\
import json, os, pathlib, struct, sys, time
args = sys.argv[1:]

def value(flag, default=None):
    return args[args.index(flag) + 1] if flag in args else default

def write_ply(path, n=3, number=0.5):
    names = ["x", "y", "z", "scale_0", "scale_1", "scale_2", "opacity", "rot_0", "rot_1", "rot_2", "rot_3"]
    names += ["f_dc_0", "f_dc_1", "f_dc_2"]
    head = ["ply", "format binary_little_endian 1.0", "comment Exported from Brush", f"element vertex {n}"]
    head += [f"property float {name}" for name in names] + ["end_header", ""]
    data = struct.pack(f"<{len(names)}f", *[number] * len(names)) * n
    pathlib.Path(path).write_bytes("\\n".join(head).encode() + data)
"""

BRUSH = """\
NEW, OLD = "--total-train-iters", "--total-steps"
STEPS, FOREIGN = (NEW, OLD) if "1.0" in VERSION else (OLD, NEW)
KNOWN = [STEPS, "--max-splats", "--sh-degree", "--max-resolution", "--eval-split-every", "--eval-every",
         "--export-every", "--export-path", "--export-name", "--seed"]
if "--version" in args:
    print("brush-app", VERSION); sys.exit(0)
if "--help" in args:
    print("Brush - universal splats\\n\\nOptions:"); print("\\n".join(f"      {k} <N>" for k in KNOWN)); sys.exit(0)
for word in args:
    if word.startswith("--") and word not in KNOWN:
        print(f"error: unexpected argument '{word}' found", file=sys.stderr); sys.exit(2)
if "RUST_LOG" not in os.environ:
    sys.exit("no log without RUST_LOG")
dataset, steps = pathlib.Path(args[0]), int(value(STEPS))
photos = sorted((dataset / "images").iterdir())
held = photos[::int(value("--eval-split-every"))]
print(f"[2026-08-17T10:00:00Z INFO  brush_cli] Loaded dataset with {len(photos) - len(held)} training, {len(held)} eval views")
strays = sorted(dataset.rglob("*.ply"))
if strays or (dataset / "args.txt").exists():
    print("[INFO] Resuming from", strays)
    steps = 1
for step in range(0, steps + 1, max(1, steps // 4)):
    print(f"[INFO  brush_cli] Refine iter {step}, {1000 + step} splats.")
print(f"[INFO  brush_cli] Eval iter {steps}: PSNR 24.125, ssim 0.83")
folder = pathlib.Path(value("--export-path"))
if not folder.is_absolute():
    folder = dataset.parent / folder if "1.0" in VERSION else folder
if EXPORT_FAILS:
    print("[WARN  brush_cli] Failed to export PLY: disk quota exceeded")
else:
    name = value("--export-name").replace("{iter}", str(steps).zfill(len(value(STEPS))))
    folder.mkdir(parents=True, exist_ok=True)
    write_ply(folder / name)
print("[INFO  brush_cli] Done training! Took 1s.")
"""


def program(path: Path, body: str, **names: object) -> Path:
    """An executable Python script with some constants."""
    path.parent.mkdir(parents=True, exist_ok=True)
    constants = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    path.write_text(f"#!{sys.executable}\n{STARTS_WITH}{constants}{textwrap.dedent(body)}")
    path.chmod(0o755)
    return path


def brush(path: Path, version: str, *, export_fails: bool = False) -> Path:
    """A Brush of a version."""
    return program(path, BRUSH, VERSION=version, EXPORT_FAILS=export_fails)


def put_dataset(folder: Path, n: int = 9, splat: Gaussians | None = None) -> Path:
    """A COLMAP dataset of renders, with a sequence each second photo."""
    scene = scene_of(splat or blobs(), ring(n, turn=1.2))
    write_colmap(scene, folder / "sparse" / "0", folder / "images")
    return folder


def request_of(dataset: Path, folder: Path, **changed: object) -> SplatRequest:
    """A small training of a dataset into ``folder/out``."""
    (folder / "out").mkdir(exist_ok=True)
    given = {"steps": 40, "max_splats": 100, "holdout_every": 4, "max_image_px": 64}
    return SplatRequest(dataset, folder / "out", **(given | changed))  # type: ignore[arg-type]


def alone_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No trainer of this machine is found."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("GEO_ASSETS_BRUSH", raising=False)
