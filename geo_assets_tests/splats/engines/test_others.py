"""OpenSplat, Nerfstudio and a command of the user's own, against look-alikes that refuse what the real ones refuse."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from geo_assets.errors import ConfigError, TrainingError
from geo_assets.settings import Splats
from geo_assets.splats.engine import SplatResult
from geo_assets.splats.engines.command import PLACEHOLDERS, CommandEngine, read, words_of
from geo_assets.splats.engines.nerfstudio import NerfstudioEngine
from geo_assets.splats.engines.opensplat import OpenSplatEngine
from geo_assets.splats.engines.workplace import photo_names
from geo_assets.splats.ply import read_ply
from geo_assets_tests.splats.engines.look_alikes import alone_on_path, program, request_of

OPENSPLAT = """
usage = "Open Source 3D Gaussian Splats generator - 1.1.5 (abc)\\nUsage:\\n  --num-downscales arg\\n" + FRAME_FLAGS
if "--help" in args:
    print(usage); sys.exit(0)
if "--version" in args:
    print("1.1.5"); sys.exit(0)
if "--keep-crs" in FRAME_FLAGS and "--keep-crs" not in args:
    sys.exit("the scene would be moved")
if "--keep-crs" in args and "--keep-crs" not in FRAME_FLAGS or "--center" in args:
    sys.exit("Option '--keep-crs' does not exist")
assert value("--num-downscales") == "0" and value("--downscale-factor") == "1" and int(value("--sh-degree")) > 0
steps = int(value("-n"))
photos = sorted(p.name for p in (pathlib.Path(args[0]) / "images").iterdir())
assert "--val" in args and value("--val-image") in photos
pathlib.Path(value("-o")).with_name("photos.json").write_text(json.dumps(photos))
pathlib.Path("/".join([OUT, "photos.json"])).write_text(json.dumps(photos))
for step in range(10, steps + 1, 10):
    print(f"Step {step}: 0.{step}1 [{100 * step // steps}%]")
write_ply(value("-o"), 5)
print("Wrote", value("-o"))
print("/images/000.jpg validation PSNR: 21.5")
"""


@pytest.mark.parametrize("frame_flags", ["  --keep-crs", "  --center\n  --max-gaussians arg"])
def test_opensplat_keeps_the_frame_and_sees_no_held_out_photo(dataset: Path, tmp_path: Path, frame_flags: str) -> None:
    path = program(tmp_path / "opensplat", OPENSPLAT, FRAME_FLAGS=frame_flags, OUT=str(tmp_path))
    engine = OpenSplatEngine(Splats(opensplat=path))
    result = engine.train(request_of(dataset, tmp_path, steps=45, sh_degree=0), print)
    assert (result.steps_done, result.n_splats, result.engine_version) == (45, 5, "1.1.5")
    assert result.metrics["psnr_db"] == 21.5
    assert ("--max-gaussians" in result.command) == ("max-gaussians" in frame_flags)
    # 0, 4 and 8 are held out; 0 is the one that it withholds itself
    given = json.loads((tmp_path / "photos.json").read_text())
    assert given == [f"00{i}.jpg" for i in range(8) if i != 4]
    assert len(list((dataset / "images").iterdir())) == 9


def test_opensplat_that_cannot_keep_the_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone_on_path(monkeypatch, tmp_path / "bin")
    assert "not found: looked for opensplat on PATH" in (OpenSplatEngine().available() or "")
    old = program(tmp_path / "opensplat", OPENSPLAT, FRAME_FLAGS="", OUT="")
    assert "knows no --keep-crs and would move the scene" in (OpenSplatEngine(Splats(opensplat=old)).available() or "")


NS_TRAIN = """
assert args[0] == "splatfacto"
method, reader = args[:args.index("colmap")], args[args.index("colmap"):]
for flag, wanted in [("--orientation-method", "none"), ("--center-method", "none"), ("--auto-scale-poses", "False"),
                     ("--assume-colmap-world-coordinate-convention", "False")]:
    if flag not in reader or value(flag) != wanted:
        sys.exit(f"the frame would change: {flag}")
assert "--vis" in method and value("--vis") != "viewer", "a viewer opens a port"
data, steps = pathlib.Path(value("--data")), int(value("--max-num-iterations"))
held = (data / "val_list.txt").read_text().split()
trained = (data / "train_list.txt").read_text().split()
assert not set(held) & set(trained) and len(held) + len(trained) == len(list((data / "images").iterdir()))
masks = value("--masks-path")
if masks:
    for name in held + trained:
        assert (data / masks / pathlib.Path(name).with_suffix(".png")).exists(), name
(data / "images_2").mkdir()   # nerfstudio writes beside the photos
folder = pathlib.Path(value("--output-dir")) / value("--experiment-name") / "splatfacto" / value("--timestamp")
(folder / "nerfstudio_models").mkdir(parents=True)
(folder / "nerfstudio_models" / f"step-{steps - 1 - MISSING:09d}.ckpt").touch()
(folder / "config.yml").touch()
print("Step (% Done)       Train Iter (time)")
print(f"{steps // 2} (50.00%)   12.3 ms   1 s   4.05 M")
print("held out:", held, "masks:", masks)
"""
NS_EXPORT = """
assert args[0] == "gaussian-splat" and pathlib.Path(value("--load-config")).exists()
write_ply(pathlib.Path(value("--output-dir")) / "splat.ply", 4)
"""
NS_EVAL = """
pathlib.Path(value("--output-path")).write_text(json.dumps({"results": {"psnr": 22.5, "ssim": 0.75}}))
"""


def nerfstudio(folder: Path, missing: int = 0) -> NerfstudioEngine:
    trainer = program(folder / "ns-train", NS_TRAIN, MISSING=missing)
    program(folder / "ns-export", NS_EXPORT)
    program(folder / "ns-eval", NS_EVAL)
    return NerfstudioEngine(Splats(nerfstudio=trainer))


def train_nerfstudio(dataset: Path, tmp_path: Path, missing: int = 0) -> SplatResult:
    return nerfstudio(tmp_path / "env" / "bin", missing).train(request_of(dataset, tmp_path), print)


def test_nerfstudio_keeps_frame_and_split(dataset: Path, tmp_path: Path) -> None:
    result = train_nerfstudio(dataset, tmp_path)
    assert (result.steps_done, result.n_splats) == (40, 4)
    assert result.metrics == {"psnr_db": 22.5, "ssim": 0.75}
    said = (tmp_path / "out" / "engine.log").read_text()
    assert "held out: ['000.jpg', '004.jpg', '008.jpg'] masks: None" in said
    assert sorted(p.name for p in dataset.iterdir()) == ["images", "sparse"]


def test_nerfstudio_gets_a_mask_for_every_photo(dataset: Path, tmp_path: Path) -> None:
    own = shutil.copytree(dataset, tmp_path / "own")
    (own / "masks").mkdir()
    Image.new("L", (64, 48), 0).save(own / "masks" / "001.jpg.png")
    assert "--masks-path masks" in " ".join(train_nerfstudio(own, tmp_path).command)


def test_nerfstudio_that_stops_early_or_is_not_whole(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nerfstudio ended after step 39 of 40"):
        train_nerfstudio(dataset, tmp_path, missing=1)
    bin_ = tmp_path / "env" / "bin"
    (bin_ / "ns-export").unlink()
    assert "no ns-export beside it" in (NerfstudioEngine(Splats(nerfstudio=bin_ / "ns-train")).available() or "")


ANY = """
out = pathlib.Path(value("--out"))
print("args", json.dumps(args)); print("photos", sorted(p.name for p in (pathlib.Path(value("--data")) / "images").iterdir()))
print("iteration 30, loss=0.25, psnr: 19.5")
KIND()
"""


def own(tmp_path: Path, code: str = "write_ply(out)", more: str = "") -> CommandEngine:
    path = program(tmp_path / "my trainer", ANY.replace("KIND()", code))
    template = f"'{path}' --data {{dataset}} --out {{out_ply}} --n {{steps}} --title 'a b' {more}"
    return CommandEngine(Splats(command=template))


def test_a_command_of_your_own(dataset: Path, tmp_path: Path) -> None:
    more = "{max_splats}/{sh_degree}/{seed} $HOME `id` ; {masks}"
    result = own(tmp_path, more=more).train(request_of(dataset, tmp_path, seed=3), print)
    said = (tmp_path / "out" / "engine.log").read_text()
    args = json.loads(said.split("args ")[1].split("\n")[0])
    assert args[5:8] == ["40", "--title", "a b"]
    assert args[8:12] == ["100/1/3", "$HOME", "`id`", ";"]  # no shell
    assert args[12].endswith("/masks")
    assert "photos ['001.jpg', '002.jpg', '003.jpg', '005.jpg', '006.jpg', '007.jpg']" in said
    assert (result.steps_done, result.engine_version, result.metrics["psnr_db"]) == (30, "my trainer", 19.5)
    assert len(read_ply(result.ply_path)) == 3


def test_a_command_that_holds_out_itself_gets_all_photos(dataset: Path, tmp_path: Path) -> None:
    own(tmp_path, more="--every {holdout_every}").train(request_of(dataset, tmp_path), print)
    assert "'000.jpg'" in (tmp_path / "out" / "engine.log").read_text()


def test_a_shell_where_the_user_asks_for_one(dataset: Path, tmp_path: Path) -> None:
    path = program(tmp_path / "t", "write_ply('here.ply'); print('psnr nan')")
    engine = CommandEngine(Splats(command=f"sh -c '{path} && cp here.ply \"$2\"' sh {{dataset}} {{out_ply}}"))
    result = engine.train(request_of(dataset, tmp_path), print)
    assert (result.n_splats, result.steps_done, result.metrics) == (3, 40, {})
    assert result.command[-2:] == ("dataset", "out/splat.ply")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('WARNING: no room')", "wrote no PLY; its last warning: WARNING: no room"),
        ("write_ply(out, 0)", "without any Gaussian"),
        ("write_ply(out, 10, float('nan'))", "10 of 10 Gaussians are not made of finite numbers"),
        ("out.write_bytes(b'ply')", "cannot be read"),
        ("write_ply(out, 3); data = out.read_bytes(); out.write_bytes(data[:-4])", "cut short"),
        ("write_ply(out); os.utime(out, (1e9, 1e9))", "older than the run"),
        ("sys.exit(3)", "failed with exit code 3 after step 30 of 40"),
    ],
)
def test_what_comes_back_is_checked(dataset: Path, tmp_path: Path, code: str, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        own(tmp_path, code).train(request_of(dataset, tmp_path), print)
    assert not (tmp_path / "out" / "engine.ply").exists()


def test_a_few_bad_gaussians_are_no_failure(dataset: Path, tmp_path: Path) -> None:
    told: list[str] = []
    code = "write_ply(out, 1000); d = bytearray(out.read_bytes()); d[-4:] = struct.pack('<f', float('nan')); out.write_bytes(d)"
    own(tmp_path, code).train(request_of(dataset, tmp_path), told.append)
    assert "command: 1 of 1,000 Gaussians are not made of finite numbers and are dropped." in told


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "t {dataset} {out_ply} {speed}",
            r"unknown placeholder '\{speed\}'; known: \{dataset\}, \{out_ply\}, \{steps\}",
        ),
        ("t {dataset} {0}", r"unknown placeholder '\{0\}'"),
        ("t {dataset.parent} {out_ply}", r"unknown placeholder"),
        ("t {dataset}", r"lacks \{out_ply\}"),
        ("t {dataset} {out_ply} 'open", "cannot be read"),
        ("t {dataset} {out_ply", "cannot be read"),
    ],
)
def test_wrong_templates(template: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        words_of(template)


def test_command_texts(tmp_path: Path) -> None:
    reason = CommandEngine(Splats()).available() or ""
    assert reason.startswith("engine 'command' is not set up") and all(f"{{{p}}}" in reason for p in PLACEHOLDERS)
    gone = CommandEngine(Splats(command="nowhere-to-be-found {dataset} {out_ply}")).available() or ""
    assert "the program 'nowhere-to-be-found' of splats.command is not there" in gone
    said = read("Iteration: 500 | Loss: 1.5e-2 | SSIM 0.8")
    assert said and (said.step, said.loss, said.ssim) == (500, 0.015, 0.8)
    assert read("hello") is None


def test_time_limit_of_an_engine(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"command did not end within 1 s and was stopped after step 30 of 40"):
        own(tmp_path, "sys.stdout.flush(); time.sleep(60)").train(request_of(dataset, tmp_path, timeout_s=1.0), print)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("geo_assets")] == []


def test_photos_are_named_in_order(dataset: Path) -> None:
    assert photo_names(dataset) == [f"00{i}.jpg" for i in range(9)]
    assert os.environ.get("PATH")
