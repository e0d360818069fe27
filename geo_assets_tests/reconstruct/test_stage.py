from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from geo_assets.errors import ReconstructionError
from geo_assets.reconstruct import stage
from geo_assets.reconstruct.stage import StepEnded, run_step


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


def test_a_child_that_holds_too_much_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hungry = f"exec {sys.executable} -c 'x = bytes(1) * 300_000_000; import time; time.sleep(60)'"
    instead_of_python(monkeypatch, tmp_path, hungry)
    with pytest.raises(StepEnded, match="more than the 100 MB") as raised:
        run_step("match", {}, tmp_path, memory_mb=100)
    assert raised.value.by == "memory" and raised.value.peak_mb > 100


def test_what_the_child_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    instead_of_python(monkeypatch, tmp_path, f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(StepEnded) as raised:
        run_step("match", {}, tmp_path, timeout_s=0.2)
    assert raised.value.by == "timeout"
    pid = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}")
    deadline = time.monotonic() + 5
    while pid.exists() and "Z" not in (pid / "stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "script, by", [("kill -KILL $$", "signal"), ("kill -SEGV $$", "abort"), ("exit 3", "abort")], ids=str
)
def test_an_end_says_who_was_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, by: str):
    instead_of_python(monkeypatch, tmp_path, script)
    with pytest.raises(StepEnded) as raised:
        run_step("match", {}, tmp_path)
    assert raised.value.by == by


def test_another_thread_may_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    instead_of_python(monkeypatch, tmp_path, "exec sleep 60")
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(StepEnded):
        run_step("match", {}, tmp_path, stop=stop)


def test_an_answer_says_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    work = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.3: pass"
    instead_of_python(monkeypatch, tmp_path, f"{sys.executable} -c '{work}'; echo '{{\"result\": {{}}}}' > \"$5\"")
    answer = run_step("match", {}, tmp_path)
    assert answer == {} and answer.cpu_seconds >= 0.3


def test_milestones_of_the_log_are_told_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage, "_TELL_EVERY_S", 0.6)
    monkeypatch.setattr(stage, "_TICK_S", 0.05)
    line = (
        "I20261121 10:39:24.834601 140050119695232 incremental_pipeline.cc:620] Registering image #7 (num_reg_frames="
    )
    script = f'for i in $(seq 1 20); do echo "{line}$i)" >&2; sleep 0.1; done; echo \'{{"result": {{}}}}\' > "$5"'
    instead_of_python(monkeypatch, tmp_path, script)
    said: list[str] = []
    run_step("match", {}, tmp_path, log=said.append)
    assert 1 <= len(said) <= 8 and all(text.startswith("Registering image #7 (num_reg_frames=") for text in said)


def test_only_milestones_are_told():
    head = "I20261121 10:39:24.834601 140050119695232 global_mapper.cc:553] "
    assert stage.milestone(head + "=== Running rotation averaging ===") == "Running rotation averaging"
    assert stage.milestone(head + "Processed file [3/29]") == "Processed file [3/29]"
    assert stage.milestone(head + "Global bundle adjustment") == "Global bundle adjustment"
    assert stage.milestone(head + "Loading rigs...") is None
    assert stage.milestone("terminate called") is None
