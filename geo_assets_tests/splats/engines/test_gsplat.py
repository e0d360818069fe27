"""The adapter of gsplat against a Python of our making, and its trainer on a CPU where torch is at hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geo_assets.errors import TrainingError
from geo_assets.settings import Splats
from geo_assets.splats.dataset import read_scene
from geo_assets.splats.engines import gsplat_adapter
from geo_assets.splats.engines.gsplat_adapter import SCRIPT, GsplatEngine, exposure_groups, prepare, read, start
from geo_assets.splats.engines.workplace import workplace
from geo_assets.splats.judge import judge, mean
from geo_assets.splats.ply import read_ply
from geo_assets_tests.splats.engines.look_alikes import program, request_of

PYTHON = """
import numpy as np
if args[0] == "-c":
    if not TORCH:
        sys.exit("ModuleNotFoundError: No module named 'torch'")
    print("something that an import says")
    print(json.dumps({"torch": "2.9.0", "cuda": CUDA, "gpu": "NVIDIA H200" if CUDA else None, "gsplat": "1.5.3"}))
    sys.exit(0)
assert args[0].endswith("gsplat_trainer.py")
job = pathlib.Path(args[1])
settings, scene = json.loads((job / "job.json").read_text()), dict(np.load(job / "scene.npz"))
print("ninja: building gsplat_cuda")
print("groups", scene["groups"].tolist())
print(json.dumps({"event": "start", "step": 0, "n": 90}))
print(json.dumps({"event": "eval", "step": 20, "n": 95, "psnr_db": 18.0, "ssim": 0.5}))
print(json.dumps({"event": "eval", "step": settings["steps"], "n": 100, "psnr_db": 21.0, "ssim": 0.7}))
print(json.dumps({"event": "done", "step": settings["steps"], "n": 100, "seconds": 1.0, "peak_gpu_mb": 812.5}))
parts = {k: v for k, v in scene.items() if k.startswith(("place.", "sky."))}
parts["place.means"] = parts["place.means"] * float(SCALE)
if RESULT:
    np.savez(job / "result.npz", **parts)
"""


def engine(tmp_path: Path, **changed: object) -> GsplatEngine:
    given = {"TORCH": True, "CUDA": True, "RESULT": True, "SCALE": 1.0}
    return GsplatEngine(Splats(gsplat_python=program(tmp_path / "python", PYTHON, **(given | changed))))


def test_a_training(dataset: Path, tmp_path: Path) -> None:
    gsplat = engine(tmp_path)
    assert gsplat.available() is None
    assert gsplat.about() == f"1.5.3 ({tmp_path / 'python'}, torch 2.9.0, NVIDIA H200)"
    result = gsplat.train(request_of(dataset, tmp_path, sh_degree=2, max_splats=3000), print)
    assert (result.steps_done, result.n_splats, result.peak_gpu_mb) == (40, 79, 812.5)
    assert result.metrics == {"psnr_db": 21.0, "ssim": 0.7}
    assert [point["step"] for point in result.curve] == [20, 40]
    assert result.sky_path == tmp_path / "out" / "sky.ply"
    assert len(read_ply(tmp_path / "out" / "sky.ply")) > 0
    place, scene = read_ply(result.ply_path), read_scene(dataset)
    assert place.degree == 2
    assert np.allclose(place.means, scene.points, atol=1e-4)  # metres of the box, not normalised


def test_sequences_share_an_exposure(dataset: Path, tmp_path: Path) -> None:
    own = shutil.copytree(dataset, tmp_path / "own")
    (own / "sequences.json").write_text(json.dumps({f"00{i}.jpg": f"s{i % 2}" for i in range(9)}))
    engine(tmp_path).train(request_of(own, tmp_path, exposure="sequence"), print)
    assert "groups [-1, 1, 0, 1, -1, 1, 0, 1, -1]" in (tmp_path / "out" / "engine.log").read_text()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"TORCH": False}, "cannot import torch or has no gsplat"),
        ({"CUDA": False}, "torch 2.9.0 of .* sees no CUDA GPU"),
    ],
)
def test_where_it_cannot_run(dataset: Path, tmp_path: Path, changed: dict, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        engine(tmp_path, **changed).train(request_of(dataset, tmp_path), print)
    assert "cannot be executed" in (GsplatEngine(Splats(gsplat_python=tmp_path / "gone")).available() or "")


@pytest.mark.parametrize(
    ("changed", "said"), [({"RESULT": False}, "left no result"), ({"SCALE": "nan"}, "gsplat diverged: 79 of 79")]
)
def test_results_that_are_none(dataset: Path, tmp_path: Path, changed: dict, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        engine(tmp_path, **changed).train(request_of(dataset, tmp_path), print)


def test_what_the_trainer_is_given(dataset: Path, tmp_path: Path) -> None:
    own = shutil.copytree(dataset, tmp_path / "own")
    (own / "masks").mkdir()
    Image.new("L", (64, 48), 0).save(own / "masks" / "002.jpg.png")
    (own / "sequences.json").write_text(json.dumps({f"00{i}.jpg": f"s{i % 2}" for i in range(9)}))
    fingerprints = []
    for seed in (0, 0, 1):
        request = request_of(own, tmp_path, seed=seed, exposure="sequence", scratch_dir=tmp_path, timeout_s=9.0)
        with workplace(request, also=("sequences.json",)) as place:
            prepare(place, place.folder, request)
            job = json.loads((place.folder / "job.json").read_text())
            with np.load(place.folder / "scene.npz", allow_pickle=False) as file:
                scene = {name: file[name] for name in file.files}
        fingerprints.append(job["fingerprint"])
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]  # the folder's name does not count, the job does
    assert [mask is not None for mask in job["masks"]] == [i == 2 for i in range(9)]
    assert job["checkpoint"] == str(tmp_path / "gsplat.npz") and job["seconds"] == 9.0 and job["rate_scale"] == 2.0
    assert np.flatnonzero(scene["held_out"]).tolist() == [0, 4, 8]
    camera = read_scene(own).views[1].camera
    assert np.allclose(scene["viewmats"][1, :3, 3], camera.translation)
    assert np.allclose(scene["intrinsics"][1], [[60, 0, 32], [0, 60, 24], [0, 0, 1]])
    assert scene["sizes"][1].tolist() == [64, 48]
    assert scene["groups"].tolist() == [-1, 1, 0, 1, -1, 1, 0, 1, -1]  # held-out photos have no exposure


def test_exposure_groups(dataset: Path) -> None:
    scene = read_scene(dataset)
    views = scene.trained(4)
    assert exposure_groups(scene, views, "off") == ({}, 0)
    assert exposure_groups(scene, views, "auto") == ({}, 0)  # all photos are equally bright
    groups, n = exposure_groups(scene, views, "image")
    assert n == 6 and set(groups) == {view.name for view in views}  # held-out photos have none


def test_no_more_gaussians_than_asked_for(dataset: Path, tmp_path: Path) -> None:
    scene = read_scene(dataset)
    ground, sky = start(scene, scene.trained(4), request_of(dataset, tmp_path, max_splats=50))
    assert len(ground) == 45 and len(sky) <= 5
    assert len(start(scene, scene.trained(4), request_of(dataset, tmp_path, max_splats=1000))[0]) == len(scene.points)


def test_lines() -> None:
    said = read('{"event": "step", "step": 100, "n": 12, "loss": 0.25}')
    assert said and (said.step, said.n_splats, said.loss, said.psnr_db) == (100, 12, 0.25, None)
    assert read("{'not': json}") is None and read("[1/5] c++ ...") is None and read('{"a": 1}') is None


def test_the_trainer_needs_nothing_of_ours() -> None:
    imports = [line for line in SCRIPT.read_text().splitlines() if line.strip().startswith(("import ", "from "))]
    names = {line.split()[1].split(".")[0] for line in imports}
    assert names - set(sys.stdlib_module_names) == {"numpy", "torch", "PIL", "gsplat"}
    assert "pickle=True" not in SCRIPT.read_text() and "torch.load" not in SCRIPT.read_text()


@pytest.fixture
def torch_engine(monkeypatch: pytest.MonkeyPatch) -> GsplatEngine:
    """The real trainer with a stand-in for gsplat's kernels, on a CPU."""
    python = os.environ.get("GEO_ASSETS_TEST_TORCH_PYTHON")
    if not python:
        pytest.skip("GEO_ASSETS_TEST_TORCH_PYTHON names no Python with torch: the trainer itself is not run")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "stand_in"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = GsplatEngine(Splats(gsplat_python=Path(python)))
    made.device = "cpu"
    return made


def test_the_trainer_learns_the_scene(torch_engine: GsplatEngine, dataset: Path, tmp_path: Path) -> None:
    request = request_of(dataset, tmp_path, steps=250, max_splats=150, exposure="image", sh_degree=1)
    result = torch_engine.train(request, print)
    scene = read_scene(dataset)
    trained, held_out = scene.trained(4), scene.held_out(4)
    before = mean(judge(start(scene, trained, request)[0], held_out, "holdout"), "psnr_db") or 0
    after = mean(judge(read_ply(result.ply_path), held_out, "holdout"), "psnr_db") or 0
    print(before, after, result.metrics)
    assert after > before + 4
    assert abs(after - result.metrics["psnr_db"]) < 1.5  # its renderer and ours agree on the frame
    assert 80 < result.n_splats <= 150
    assert result.steps_done == 250


def test_a_killed_trainer_goes_on(
    torch_engine: GsplatEngine, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gsplat_adapter, "CHECKPOINT_EVERY", 20)
    (tmp_path / "scratch").mkdir()
    request = request_of(dataset, tmp_path, steps=120, max_splats=120, scratch_dir=tmp_path / "scratch")
    whole = torch_engine.train(request, print)
    with workplace(request) as place:
        prepare(place, place.folder, request, device="cpu")
        python = torch_engine.options.gsplat_python
        child = subprocess.Popen([str(python), str(SCRIPT), str(place.folder)], stdout=subprocess.DEVNULL)
        while not (tmp_path / "scratch" / "gsplat.npz").exists():
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    resumed = torch_engine.train(request, print)
    said = (tmp_path / "out" / "engine.log").read_text()
    assert '"resumed": true' in said
    assert not (tmp_path / "scratch" / "gsplat.npz").exists()
    # On one thread of a CPU the same numbers come out, as if nothing had happened.
    assert resumed.metrics == pytest.approx(whole.metrics, abs=1e-3)


def test_the_trainer_stops_at_its_time_limit(torch_engine: GsplatEngine, dataset: Path, tmp_path: Path) -> None:
    result = torch_engine.train(request_of(dataset, tmp_path, steps=100_000, timeout_s=3.0), print)
    assert 0 < result.steps_done < 100_000
    assert len(read_ply(result.ply_path)) > 0


LOSS = """
import numpy as np, torch, sys
sys.path.insert(0, sys.argv[1])
from gsplat_trainer import loss_of, ssim_map
g = torch.Generator().manual_seed(0)
a, b = torch.rand(20, 24, 3, generator=g), torch.rand(20, 24, 3, generator=g)
assert abs(ssim_map(a, a).mean().item() - 1) < 1e-5
mask = torch.ones(20, 24, dtype=torch.bool); mask[:, :12] = False
image = a.clone().requires_grad_(True)
loss_of(image, b, mask).backward()
assert image.grad[:, :12].abs().max() == 0 and image.grad[:, 12:].abs().max() > 0
other = a.clone(); other[:, :12] = 0.123
assert abs(loss_of(a, b, mask) - loss_of(other, b, mask)) < 1e-6
assert abs(loss_of(a, b, torch.ones(20, 24, dtype=torch.bool)) - loss_of(a, b, None)) < 1e-6
print(repr(ssim_map(a, b).mean().item()))
np.save(sys.argv[2], torch.stack([a, b]).numpy())
"""


def test_masked_pixels_do_not_count(torch_engine: GsplatEngine, tmp_path: Path) -> None:
    command = [str(torch_engine.options.gsplat_python), "-c", LOSS, str(SCRIPT.parent), str(tmp_path / "a.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    from geo_assets.splats.cpu.loss import Loss

    image, photo = np.load(tmp_path / "a.npy")
    as_bytes = np.round(photo * 255).astype(np.uint8)
    assert float(done.stdout) == pytest.approx(Loss()(image, as_bytes)[1], abs=2e-3)
