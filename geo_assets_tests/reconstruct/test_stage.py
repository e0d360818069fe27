from __future__ import annotations

import sys
from pathlib import Path

import pytest

from geo_assets.errors import ReconstructionError
from geo_assets.reconstruct import stage
from geo_assets.reconstruct.stage import run_step


def instead_of_python(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Let the child run a shell script, so that each way to end can be seen."""
    path = folder / "child"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(stage.sys, "executable", str(path))


def test_unknown_steps_are_refused(tmp_path: Path):
    with pytest.raises(ReconstructionError, match="not a step"):
        run_step("_checkpoint", {}, tmp_path)


def test_an_abort_becomes_an_error_with_the_end_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    instead_of_python(monkeypatch, tmp_path, "echo 'ALIKED requires ONNX' >&2; kill -ABRT $$")
    with pytest.raises(ReconstructionError, match=r"(?s)signal SIGABRT.*ALIKED requires ONNX"):
        run_step("match", {}, tmp_path)


def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    instead_of_python(monkeypatch, tmp_path, "exec sleep 60")
    with pytest.raises(ReconstructionError, match="did not end within 0"):
        run_step("match", {}, tmp_path, timeout_s=0.2)


def test_progress_goes_to_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    instead_of_python(monkeypatch, tmp_path, 'echo "matched 1 of 2"; echo "{\\"result\\": {\\"n\\": 2}}" > "$5"')
    said: list[str] = []
    assert run_step("match", {}, tmp_path, log=said.append) == {"n": 2}
    assert said == ["matched 1 of 2"]


def test_an_interrupted_parent_leaves_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    instead_of_python(monkeypatch, tmp_path, f"echo $$ > {tmp_path}/pid; echo started; exec sleep 60")

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_step("match", {}, tmp_path, log=interrupt)
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()


def test_an_exception_in_the_child_names_its_cause(tmp_path: Path):
    arguments = {"database": str(tmp_path / "no" / "database.db"), "pairs": str(tmp_path / "none"), "threads": 1}
    with pytest.raises(ReconstructionError, match=r"(?s)ended with code 1.*none"):
        run_step("match", arguments | {"seed": 0}, tmp_path)


def test_the_parent_does_not_import_colmap():
    code = (
        "import sys, geo_assets.reconstruct.models, geo_assets.reconstruct.stage; sys.exit('pycolmap' in sys.modules)"
    )
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
