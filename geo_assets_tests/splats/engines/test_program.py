"""The runner of foreign programs: output, limits, groups of processes, secrets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from geo_assets.errors import TrainingError
from geo_assets.splats.engines import program as module
from geo_assets.splats.engines.program import Said, ask, environment, find_program, run, version_in
from geo_assets_tests.splats.engines.look_alikes import program


def start(path: Path, tmp_path: Path, **changed: object) -> module.Ran:
    given = {"folder": tmp_path, "journal": tmp_path / "engine.log", "read": nothing, "log": print, "steps": 10}
    return run("it", [str(path)], **(given | changed))  # type: ignore[arg-type]


def nothing(line: str) -> Said | None:
    return None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


STUBBORN = """
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(60)"])
pathlib.Path("pids").write_text(f"{os.getpid()} {child.pid}")
print("step 3", flush=True)
time.sleep(60)
"""


def test_a_time_limit_ends_the_whole_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.3)
    with pytest.raises(
        TrainingError, match=r"(?s)it did not end within 1 s and was stopped after step 3 of 10.*step 3$"
    ):
        start(
            program(tmp_path / "p", STUBBORN), tmp_path, timeout_s=1, read=lambda line: Said(step=int(line.split()[1]))
        )
    for pid in (tmp_path / "pids").read_text().split():
        assert not alive(int(pid))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_ends_the_whole_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.3)

    def interrupted(line: str) -> Said | None:
        raise error

    with pytest.raises(error):
        start(program(tmp_path / "p", STUBBORN), tmp_path, read=interrupted)
    for pid in (tmp_path / "pids").read_text().split():
        assert not alive(int(pid))


def test_what_a_program_leaves_behind_goes_with_it(tmp_path: Path) -> None:
    body = """
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path("pid").write_text(str(child.pid))
    """
    began = time.monotonic()
    start(program(tmp_path / "p", body), tmp_path)
    assert time.monotonic() - began < 20
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_child_that_talks_on_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEFTOVERS_S", 0.5)
    body = """
    import subprocess
    subprocess.Popen(["yes"])
    """
    monkeypatch.setattr(module, "LARGEST_LOG", 1000)
    start(program(tmp_path / "p", body), tmp_path, timeout_s=60)
    assert 1000 < (tmp_path / "engine.log").stat().st_size < 1200
    assert (tmp_path / "engine.log").read_text().endswith("the rest is left out)\n")


def test_a_long_course_is_thinned_and_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    body = 'print("\\n".join(f"step {i}" for i in range(3000)))'
    said = iter(
        [Said(step=1, psnr_db=float("nan")), *(Said(step=i, psnr_db=20.0, loss=float("inf")) for i in range(3000))]
    )
    ran = start(program(tmp_path / "p", body), tmp_path, read=lambda line: next(said))
    assert ran.metrics == {"psnr_db": 20.0}
    assert 100 < len(ran.curve) <= 400 and ran.curve[-1]["step"] == 2998


def test_much_output_is_kept_and_little_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    body = 'sys.stdout.write("".join(f"step {i}\\n" for i in range(100_000)))'
    ran = start(
        program(tmp_path / "p", body), tmp_path, log=told.append, read=lambda line: Said(step=int(line.split()[1]))
    )
    assert ran.steps == 99_999
    assert len(told) < 20
    assert list(ran.tail)[-1] == "step 99999"
    assert len((tmp_path / "engine.log").read_text().splitlines()) == 100_001  # and the command line


def test_progress_bars_endless_lines_colours_and_bytes(tmp_path: Path) -> None:
    body = r"""
    out = sys.stdout.buffer
    out.write(b"10%\r20%\r\x1b[31mred\x1b[0m\n\xff\xfe\n" + b"x" * 10_000 + b"\nno newline at the end")
    """
    heard: list[str] = []
    start(program(tmp_path / "p", body), tmp_path, read=lambda line: heard.append(line))
    assert heard[:3] == ["10%", "20%", "red"]
    assert max(map(len, heard)) <= module.LONGEST_LINE
    assert heard[-1] == "no newline at the end"


def test_a_failure_shows_the_last_twenty_lines(tmp_path: Path) -> None:
    body = 'print("\\n".join(f"line {i:02d}" for i in range(30))); sys.exit(7)'
    with pytest.raises(TrainingError, match=r"(?s)it failed with exit code 7\. Try this\. .*:\nline 10\n.*line 29$"):
        start(program(tmp_path / "p", body), tmp_path, hint=lambda output: "Try this.")
    with pytest.raises(TrainingError, match=r"ended by signal SIGKILL\. Memory may have run out"):
        start(program(tmp_path / "p", "os.kill(os.getpid(), 9)"), tmp_path)
    with pytest.raises(TrainingError, match="could not be started"):
        start(tmp_path / "nowhere", tmp_path)


def test_warnings_are_told_but_not_a_thousand_times(tmp_path: Path) -> None:
    told: list[str] = []
    body = 'print("[WARN] odd\\n" * 1000 + "the reprojection error is 0.3 px")'
    ran = start(program(tmp_path / "p", body), tmp_path, log=told.append)
    assert ran.last_warning == "[WARN] odd"
    assert len(told) == module.MOST_WARNINGS + 1


def test_progress_is_told_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAY_EVERY_S", 0.0)
    told: list[str] = []
    said = Said(step=4, n_splats=1234, psnr_db=20.0, loss=0.5)
    ran = start(program(tmp_path / "p", 'print("x")'), tmp_path, log=told.append, read=lambda line: said)
    assert told == ["it: step 4 of 10, 1,234 Gaussians, loss 0.5, PSNR 20.00 dB"]
    assert ran.curve == [{"step": 4, "psnr_db": 20.0, "n_splats": 1234, "loss": 0.5}]


def test_secrets_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAPILLARY_TOKEN", "HF_token", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "GEO_ASSETS_LAKE__ROOT"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("SOME_URL", "https://user:s3cret@example.org/")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    start(program(tmp_path / "p", 'print("\\n".join(f"{k}={v}" for k, v in os.environ.items()))'), tmp_path)
    said = (tmp_path / "engine.log").read_text()
    assert "s3cret" not in said
    assert "CUDA_VISIBLE_DEVICES=1" in said
    assert environment({"RUST_LOG": "info"})["RUST_LOG"] == "info"


def test_programs_are_found_where_they_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = program(tmp_path / "bin" / "it", "")
    monkeypatch.setenv("PATH", str(on_path.parent))
    elsewhere = program(tmp_path / "old" / "it", "")
    assert find_program(("other", "it"), None) == on_path
    assert find_program(("it",), str(elsewhere)) == elsewhere
    assert find_program(("it",), tmp_path / "gone") is None  # what is configured is not replaced in silence
    assert find_program(("other",), elsewhere=[tmp_path / "gone", elsewhere]) == elsewhere


def test_questions_are_answered_once_and_in_time(tmp_path: Path) -> None:
    body = 'p = pathlib.Path(__file__).with_name("n"); n = int(p.read_text()) + 1 if p.exists() else 1; p.write_text(str(n)); print("v1.2.3", n)'
    asked = program(tmp_path / "p", body)
    assert ask(asked, "--version") == ask(asked, "--version") == "v1.2.3 1\n"
    assert version_in("brush-app 1.0.0") == "1.0.0"
    assert version_in("no") == "unknown"
    assert ask(program(tmp_path / "slow", "time.sleep(60)"), seconds=0.5) is None
    assert ask(program(tmp_path / "bad", "sys.exit(1)")) is None
    assert ask(tmp_path / "nowhere") is None


def test_a_killed_parent_does_not_keep_a_talking_program(tmp_path: Path) -> None:
    """Its output has nowhere to go then, which ends it."""
    path = program(tmp_path / "p", """
    pathlib.Path("pid").write_text(str(os.getpid()))
    while True:
        print("step 1", flush=True); time.sleep(0.05)
    """)  # fmt: skip
    code = f"""
from pathlib import Path
from geo_assets.splats.engines.program import run
here = Path({str(tmp_path)!r})
run("it", [{str(path)!r}], folder=here, journal=here / "engine.log", read=lambda line: None, log=print, steps=1)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    pid = int((tmp_path / "pid").read_text())
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)
