"""The adapter of Brush against look-alikes of 0.3 and 1.0, with the traps of both."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from geo_assets.errors import TrainingError
from geo_assets.geodesy import LocalFrame
from geo_assets.settings import Splats
from geo_assets.splats.engines.brush import BrushEngine, exports, read
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.ply import read_ply, write_ply
from geo_assets_tests.splats.engines.look_alikes import alone_on_path, brush, program, request_of
from geo_assets_tests.splats.scenes import blobs


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("version", ["0.3.0", "1.0.0"])
def test_old_and_new_brush_work(dataset: Path, tmp_path: Path, version: str) -> None:
    told: list[str] = []
    engine = BrushEngine(Splats(brush=brush(tmp_path / "brush", version)))
    before = files_of(dataset)
    result = engine.train(request_of(dataset, tmp_path, seed=7), told.append)
    assert (result.engine_version, result.steps_done, result.n_splats) == (version, 40, 3)
    assert result.metrics == {"psnr_db": 24.125, "ssim": 0.83}
    assert len(read_ply(result.ply_path)) == 3
    assert "Done training!" in (tmp_path / "out" / "engine.log").read_text()
    assert files_of(dataset) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["brush", "out"]  # no working folder is left
    command = " ".join(result.command)
    assert "brush dataset --total" in command and "--export-path out " in command and "--seed 7" in command
    assert "brush: 6 photos to train on, 3 held out" in told
    assert engine.about() == f"{version} ({tmp_path / 'brush'})"


def test_each_version_refuses_the_flag_of_the_other(tmp_path: Path) -> None:
    """The look-alikes are as strict as clap is, or the test above would prove nothing."""
    for version, foreign in (("0.3.0", "--total-train-iters"), ("1.0.0", "--total-steps")):
        path = brush(tmp_path / version, version)
        assert os.waitstatus_to_exitcode(os.system(f"{path} data {foreign} 5 2>/dev/null")) == 2


def test_a_failed_export_with_exit_code_0_is_an_error(dataset: Path, tmp_path: Path) -> None:
    engine = BrushEngine(Splats(brush=brush(tmp_path / "brush", "1.0.0", export_fails=True)))
    with pytest.raises(
        TrainingError, match=r"brush finished but wrote no PLY; its last warning: .*disk quota exceeded"
    ):
        engine.train(request_of(dataset, tmp_path), print)
    assert (tmp_path / "out" / "engine.log").exists()


def test_stray_files_of_the_dataset_are_not_handed_over(dataset: Path, tmp_path: Path) -> None:
    own = shutil.copytree(dataset, tmp_path / "own")
    write_ply(own / "init.ply", blobs(3))
    write_ply(own / "images" / "cloud.ply", blobs(3))
    (own / "args.txt").write_text("--total-train-iters 1")
    result = BrushEngine(Splats(brush=brush(tmp_path / "brush", "1.0.0"))).train(request_of(own, tmp_path), print)
    assert result.steps_done == 40  # the look-alike does one step where it resumes


def test_brush_that_stops_early(dataset: Path, tmp_path: Path) -> None:
    body = brush(tmp_path / "whole", "1.0.0").read_text().replace("int(value(STEPS))", "10")
    (tmp_path / "brush").write_text(body)
    (tmp_path / "brush").chmod(0o755)
    with pytest.raises(TrainingError, match="brush ended after step 10 of 40"):
        BrushEngine(Splats(brush=tmp_path / "brush")).train(request_of(dataset, tmp_path), print)


def test_no_gpu(dataset: Path, tmp_path: Path) -> None:
    body = brush(tmp_path / "whole", "1.0.0").read_text()
    text = 'dataset, steps = sys.exit("thread main panicked: no compatible wgpu adapter found"), 0'
    (tmp_path / "brush").write_text(body.replace("dataset, steps = pathlib.Path(args[0]), int(value(STEPS))", text))
    (tmp_path / "brush").chmod(0o755)
    with pytest.raises(TrainingError, match=r"Vulkan driver, or point VK_DRIVER_FILES"):
        BrushEngine(Splats(brush=tmp_path / "brush")).train(request_of(dataset, tmp_path), print)


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone_on_path(monkeypatch, tmp_path / "bin")
    assert (BrushEngine().available() or "").startswith(
        "engine 'brush' not found: looked for brush, brush-cli, brush_app on PATH, GEO_ASSETS_BRUSH and splats.brush"
    )
    legacy = brush(tmp_path / "bin" / ".brush" / "target" / "release" / "brush_app", "0.3.0")
    assert str(legacy) in BrushEngine().about()
    on_path = brush(tmp_path / "bin" / "brush-cli", "1.0.0")
    assert str(on_path) in BrushEngine().about()
    named = brush(tmp_path / "mine", "1.0.1")
    monkeypatch.setenv("GEO_ASSETS_BRUSH", str(named))
    assert BrushEngine().about() == f"1.0.1 ({named})"
    assert BrushEngine().available() is None
    paint = program(tmp_path / "paint", 'print("a paint program")')
    assert "neither --total-train-iters nor --total-steps" in (BrushEngine(Splats(brush=paint)).available() or "")


def test_masks_and_more_arguments(dataset: Path, tmp_path: Path) -> None:
    from PIL import Image

    own = shutil.copytree(dataset, tmp_path / "own")
    (own / "masks").mkdir()
    Image.new("L", (64, 48), 255).save(own / "masks" / "000.jpg.png")
    body = brush(tmp_path / "whole", "1.0.0").read_text().replace('"--seed"]', '"--seed", "--alpha-mode"]')
    (tmp_path / "brush").write_text(body + 'print("masks:", sorted(p.name for p in dataset.rglob("masks/*")))\n')
    (tmp_path / "brush").chmod(0o755)
    request = request_of(own, tmp_path, extra_args=("--alpha-mode", "masked"))
    for masks, said in ((True, "masks: ['000.jpg.png', '000.png']"), (False, "masks: []")):
        result = BrushEngine(Splats(brush=tmp_path / "brush", masks=masks)).train(request, print)
        assert (tmp_path / "out" / "engine.log").read_text().splitlines()[-1] == said
    assert result.command[-2:] == ("--alpha-mode", "masked")


def test_lines_and_names() -> None:
    said = read("[2026-08-17T10:00:00Z INFO  brush_cli] Refine iter 400, 15000 splats.")
    assert said and (said.step, said.n_splats) == (400, 15000)
    said = read("Eval iter 30000: PSNR 24.1, ssim 0.83")
    assert said and (said.step, said.psnr_db, said.ssim) == (30000, 24.1, 0.83)
    assert read("Starting up") is None


def test_padded_names(tmp_path: Path) -> None:
    for name in ("export_00400.ply", "export_30000.ply", "export_30000_lod1.ply", "init.ply"):
        (tmp_path / name).touch()
    assert sorted(exports(tmp_path)) == [400, 30000]


def test_a_normalised_scene_is_found_out(dataset: Path, tmp_path: Path) -> None:
    """The PLY of a program that scaled and moved the scene is well-formed; only our renderer sees what is wrong."""
    from geo_assets.splats.box import train_dataset

    moved: Gaussians = blobs().moved(np.eye(3), [40.0, 0, 0], 0.2)
    write_ply(tmp_path / "moved.ply", moved)
    body = brush(tmp_path / "whole", "1.0.0").read_text()
    body = body.replace(
        "write_ply(folder / name)", f"__import__('shutil').copyfile({str(tmp_path / 'moved.ply')!r}, folder / name)"
    )
    (tmp_path / "brush").write_text(body)
    (tmp_path / "brush").chmod(0o755)
    options = Splats(brush=tmp_path / "brush", steps=40, max_splats=300, sh_degree=0, threads=1, max_image_px=64)
    (tmp_path / "result").mkdir()
    with pytest.raises(TrainingError, match="does not line up"):
        train_dataset(
            dataset,
            tmp_path / "result",
            options,
            print,
            engine=BrushEngine(options),
            scratch_name=str(tmp_path),
            title="test",
            frame=LocalFrame(11.5, 48.1, 500),
        )
