# pyright: reportMissingImports=false
"""Trains 3D Gaussians with gsplat on a GPU: ``python gsplat_trainer.py JOB``, in any Python with torch and gsplat.

JOB is a folder with ``job.json`` (settings, names of photos and masks) and ``scene.npz`` (cameras and the Gaussians to
start from); ``result.npz`` appears in it. Progress is printed as JSON, a line each. The scene is taken as it is: metres,
no normalisation. Gaussians of the place are managed by MCMC (Kheradmand et al. 2024), those of the sky keep their place
and number. This file imports nothing but torch, gsplat, numpy and Pillow, and no pickle is read or written.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SSIM_WEIGHT = 0.2
MEAN_RATE, MEAN_RATE_FALLS_TO = 1.6e-4, 0.01
RATES = {"scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "sh0": 2.5e-3, "shN": 2.5e-3 / 20}
"""Learning rates for 30,000 steps, those of gsplat's own example; the means' is in reaches of the scene."""
EXPOSURE_RATE, EXPOSURE_PULL = 2e-3, 2e-3
OPACITY_PULL, SCALE_PULL = 0.01, 0.01
"""MCMC lets Gaussians that nothing needs fade and shrink, and moves them elsewhere."""
REFINE_UNTIL = 0.83
PHOTOS_ON_GPU = 4 << 30
"""Photos stay on the GPU where all of them together take no more bytes than this."""
NAMES = ("means", "scales", "quats", "opacities", "sh0", "shN")
Tensors = dict[str, torch.Tensor]


class TrainingFailed(Exception):
    """Said in one sentence to whoever started this."""


def tell(**said: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps(said), flush=True)


def ssim_map(image: torch.Tensor, photo: torch.Tensor) -> torch.Tensor:
    """Structural similarity of two images [H, W, 3] at each pixel [H, W] (Wang et al. 2004, window of 11, sigma 1.5)."""
    offsets = torch.arange(11, dtype=image.dtype, device=image.device) - 5
    weights = torch.exp(-(offsets**2) / (2 * 1.5**2))
    weights = weights / weights.sum()
    x, y = image.permute(2, 0, 1), photo.permute(2, 0, 1)
    stack = torch.cat([x, y, x * x, y * y, x * y])[:, None]
    stack = F.conv2d(stack, weights.view(1, 1, 11, 1), padding=(5, 0))
    mx, my, xx, yy, xy = F.conv2d(stack, weights.view(1, 1, 1, 11), padding=(0, 5))[:, 0].chunk(5)
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean(0)


def loss_of(image: torch.Tensor, photo: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """0.8 L1 + 0.2 (1 - SSIM), means over the pixels that count."""
    if mask is None:
        return (1 - SSIM_WEIGHT) * (image - photo).abs().mean() + SSIM_WEIGHT * (1 - ssim_map(image, photo).mean())
    # What is masked is shown as the photo has it, so that it does not leak into the windows of its neighbours.
    image = torch.where(mask[..., None], image, photo)
    count = mask.sum().clamp(min=1)
    l1 = ((image - photo).abs().mean(-1) * mask).sum() / count
    ssim = (ssim_map(image, photo) * mask).sum() / count
    return (1 - SSIM_WEIGHT) * l1 + SSIM_WEIGHT * (1 - ssim)


class Photos:
    """Photos and masks by index, read once and kept as bytes."""

    def __init__(self, job: dict[str, Any], sizes: list[list[int]], device: torch.device) -> None:
        self.job, self.device = job, device
        fits = sum(4 * width * height for width, height in sizes) <= PHOTOS_ON_GPU
        self.home = device if fits else torch.device("cpu")
        self.photos: dict[int, torch.Tensor] = {}
        self.masks: dict[int, torch.Tensor | None] = {}

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if i not in self.photos:
            with Image.open(self.job["photos"][i]) as file:
                self.photos[i] = torch.from_numpy(np.array(file.convert("RGB"))).to(self.home)
            self.masks[i] = None
            if path := self.job["masks"][i]:
                with Image.open(path) as file:
                    self.masks[i] = torch.from_numpy(np.array(file.convert("L")) > 127).to(self.home)
        mask = self.masks[i]
        return self.photos[i].to(self.device).float() / 255, None if mask is None else mask.to(self.device)


class Exposure:
    """A gain and a bias for each colour of each group of photos, whose means are one and zero: the splat's own."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.values = torch.zeros((max(n, 1), 3, 2), device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.values], lr=EXPOSURE_RATE, eps=1e-15)

    def applied(self, image: torch.Tensor, group: int) -> torch.Tensor:
        """The image as the group's camera would have exposed it; a group below zero has none."""
        if group < 0:
            return image
        values = self.values - self.values.mean(0)
        return image * torch.exp(values[group, :, 0]) + values[group, :, 1]

    def pull(self) -> torch.Tensor:
        """What keeps the values small."""
        return EXPOSURE_PULL * (self.values**2).mean()


class Trainer:
    """Everything that the next step depends on."""

    def __init__(self, folder: Path) -> None:
        from gsplat import rasterization
        from gsplat.strategy import MCMCStrategy

        self.rasterization = rasterization
        self.folder, self.began = folder, time.monotonic()
        self.job = json.loads((folder / "job.json").read_text())
        self.device = torch.device(self.job["device"])
        with np.load(folder / "scene.npz", allow_pickle=False) as file:
            scene = {name: file[name] for name in file.files}
        self.viewmats = torch.from_numpy(scene["viewmats"]).float().to(self.device)
        self.intrinsics = torch.from_numpy(scene["intrinsics"]).float().to(self.device)
        self.sizes = scene["sizes"].tolist()
        self.groups = scene["groups"].tolist()
        self.train = np.flatnonzero(~scene["held_out"]).tolist()
        self.judged = np.flatnonzero(scene["held_out"]).tolist()
        self.reach = float(scene["reach"])
        self.steps, self.seed = int(self.job["steps"]), int(self.job["seed"])
        self.degree = int(self.job["sh_degree"])
        torch.manual_seed(self.seed)
        self.rng = np.random.default_rng(self.seed)
        self.photos = Photos(self.job, self.sizes, self.device)
        self.place = self._parameters(scene, "place")
        self.sky = self._parameters(scene, "sky")
        self.place_optimizers = self._optimizers(self.place, NAMES)
        # The sky's places are part of what it is; only its looks are learnt.
        self.sky_optimizers = self._optimizers(self.sky, NAMES[1:])
        self.exposure = Exposure(int(scene["n_groups"]), self.device)
        refine_every = max(10, min(100, self.steps // 60))
        self.strategy = MCMCStrategy(
            cap_max=max(1, int(self.job["max_splats"]) - len(self.sky["means"])),
            refine_start_iter=min(500, self.steps // 20),
            refine_stop_iter=int(self.steps * REFINE_UNTIL),
            refine_every=refine_every,
        )
        self.strategy.check_sanity(self.place, self.place_optimizers)
        self.strategy_state = self.strategy.initialize_state()
        self.step, self.deck, self.before = 0, [], 0.0

    def run(self) -> None:
        """Train to the end, or to the time limit, and write the result."""
        resumed = self._resume()
        tell(event="start", step=self.step, n=self.count, photos=len(self.train), resumed=resumed)
        loss, told = torch.zeros(()), time.monotonic()
        while self.step < self.steps and self.progress() < 1:
            loss = self._step()
            if self.step % 100 == 0 or time.monotonic() > told + 5:
                value, told = loss.item(), time.monotonic()
                if not math.isfinite(value):
                    largest = self.place["scales"].detach().max().exp().item()
                    raise TrainingFailed(
                        f"training became non-finite at step {self.step} (largest scale {largest:.3g} m); lower splats.learning_rate_scale"
                    )
                tell(event="step", step=self.step, n=self.count, loss=value)
            if self.step % self.job["eval_every"] == 0 and self.step < self.steps:
                self._judge()
            if self.step % self.job["checkpoint_every"] == 0 and self.step < self.steps:
                self._save()
        self._judge()
        write_arrays(self.folder / "result.npz", {f"{part}.{k}": v for part, k, v in self._arrays()})
        checkpoint = self.job["checkpoint"]
        if checkpoint:
            Path(checkpoint).unlink(missing_ok=True)
        on_gpu = self.device.type == "cuda"
        peak = round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1) if on_gpu else None
        tell(event="done", step=self.step, n=self.count, seconds=round(self.seconds, 2), peak_gpu_mb=peak)

    @property
    def count(self) -> int:
        """Gaussians of place and sky."""
        return len(self.place["means"]) + len(self.sky["means"])

    @property
    def seconds(self) -> float:
        """What training has taken, all runs of it together."""
        return self.before + time.monotonic() - self.began

    def progress(self) -> float:
        """Share of the training that is done, by steps or by time, whichever is further."""
        limit = self.job["seconds"]
        return max(self.step / self.steps, 0.0 if limit is None else (time.monotonic() - self.began) / limit)

    def _step(self) -> torch.Tensor:
        rate = self._set_rates()
        if not self.deck:
            self.deck = self.rng.permutation(self.train).tolist()
        i = self.deck.pop()
        photo, mask = self.photos[i]
        image = self._render(i, torch.rand(3, device=self.device))
        loss = loss_of(self.exposure.applied(image, self.groups[i]), photo, mask)
        total = loss + self.exposure.pull()
        total = total + OPACITY_PULL * torch.sigmoid(self.place["opacities"]).mean()
        total = total + SCALE_PULL * torch.exp(self.place["scales"]).mean() / self.reach
        total.backward()
        for optimizer in [*self.place_optimizers.values(), *self.sky_optimizers.values(), self.exposure.optimizer]:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.strategy.step_post_backward(
                self.place, self.place_optimizers, self.strategy_state, self.step, {}, lr=rate
            )
        self.step += 1
        return loss.detach()

    def _set_rates(self) -> float:
        """Set the learning rates of this step; returns that of the means."""
        scale = float(self.job["rate_scale"])
        rate = MEAN_RATE * self.reach * scale * MEAN_RATE_FALLS_TO ** self.progress()
        for optimizers in (self.place_optimizers, self.sky_optimizers):
            for name, optimizer in optimizers.items():
                optimizer.param_groups[0]["lr"] = rate if name == "means" else RATES[name] * scale
        return rate

    def _render(self, i: int, background: torch.Tensor) -> torch.Tensor:
        """The scene as photo ``i`` shows it [H, W, 3], not clamped."""
        both = {name: torch.cat([self.place[name], self.sky[name]]) for name in NAMES}
        # One degree more at a time: first the colours, then how they change with the direction.
        every = max(1, min(1000, self.steps // (2 * (self.degree + 1))))
        width, height = self.sizes[i]
        image, _, _ = self.rasterization(
            means=both["means"],
            quats=both["quats"],
            scales=torch.exp(both["scales"]),
            opacities=torch.sigmoid(both["opacities"]),
            colors=torch.cat([both["sh0"], both["shN"]], dim=1),
            viewmats=self.viewmats[i : i + 1],
            Ks=self.intrinsics[i : i + 1],
            width=width,
            height=height,
            sh_degree=min(self.step // every, self.degree),
            packed=False,
            backgrounds=background[None],
            rasterize_mode="classic",
        )
        return image[0]

    @torch.no_grad()
    def _judge(self) -> None:
        """PSNR and SSIM of the held-out photos, on black, without exposure."""
        scores = []
        for i in self.judged:
            photo, mask = self.photos[i]
            image = self._render(i, torch.zeros(3, device=self.device)).clamp(0, 1)
            counts = torch.ones(photo.shape[:2], device=self.device) if mask is None else mask.float()
            total = counts.sum().clamp(min=1)
            error = (((image - photo) ** 2).mean(-1) * counts).sum() / total
            ssim = (ssim_map(image, photo) * counts).sum() / total
            scores.append((-10 * math.log10(max(error.item(), 1e-10)), ssim.item()))
        if scores:
            psnr, ssim = np.mean(scores, axis=0)
            tell(event="eval", step=self.step, n=self.count, psnr_db=float(psnr), ssim=float(ssim))

    def _parameters(self, scene: dict[str, np.ndarray], part: str) -> Tensors:
        made = {name: torch.from_numpy(scene[f"{part}.{name}"]).float().to(self.device) for name in NAMES}
        learnt = {name: torch.nn.Parameter(value.contiguous()) for name, value in made.items()}
        if part == "sky":
            learnt["means"].requires_grad_(False)
        return torch.nn.ParameterDict(learnt)  # type: ignore[return-value]

    def _optimizers(self, parameters: Tensors, names: tuple[str, ...]) -> dict[str, torch.optim.Optimizer]:
        return {name: torch.optim.Adam([parameters[name]], lr=1e-3, eps=1e-15) for name in names}

    def _arrays(self) -> list[tuple[str, str, np.ndarray]]:
        parts = (("place", self.place), ("sky", self.sky))
        return [(part, k, values[k].detach().cpu().numpy()) for part, values in parts for k in NAMES]

    def _save(self) -> None:
        """Everything that the next step depends on, as arrays, in a file that appears whole."""
        if not self.job["checkpoint"]:
            return
        arrays = {f"{part}.{k}": v for part, k, v in self._arrays()}
        for part, optimizers in (("place", self.place_optimizers), ("sky", self.sky_optimizers)):
            for name, optimizer in optimizers.items():
                for key, value in optimizer.state[optimizer.param_groups[0]["params"][0]].items():
                    arrays[f"adam.{part}.{name}.{key}"] = torch.as_tensor(value).cpu().numpy()
        for key, value in self.exposure.optimizer.state[self.exposure.values].items():
            arrays[f"adam.exposure.{key}"] = torch.as_tensor(value).cpu().numpy()
        arrays["exposure"] = self.exposure.values.detach().cpu().numpy()
        arrays["torch"] = torch.get_rng_state().numpy()
        if self.device.type == "cuda":
            arrays["cuda"] = torch.cuda.get_rng_state(self.device).cpu().numpy()
        state = {"step": self.step, "deck": self.deck, "rng": self.rng.bit_generator.state, "seconds": self.seconds}
        arrays["state"] = np.array(json.dumps(state))
        arrays["fingerprint"] = np.array(self.job["fingerprint"])
        write_arrays(Path(self.job["checkpoint"]), arrays)

    def _resume(self) -> bool:
        """Go on from a checkpoint of the same job; anything else is left alone and overwritten in time."""
        path = Path(self.job["checkpoint"] or "")
        if not path.is_file():
            return False
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["fingerprint"]) != self.job["fingerprint"]:
                    return False
                arrays = {name: file[name] for name in file.files}
            state = json.loads(str(arrays["state"]))
        except (OSError, ValueError, KeyError, EOFError):
            return False

        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(arrays[name]).to(self.device)

        for part in ("place", "sky"):
            values = self.place if part == "place" else self.sky
            for name in NAMES:
                values[name] = torch.nn.Parameter(
                    tensor(f"{part}.{name}"), requires_grad=(part, name) != ("sky", "means")
                )
        self.place_optimizers = self._optimizers(self.place, NAMES)
        self.sky_optimizers = self._optimizers(self.sky, NAMES[1:])
        with torch.no_grad():
            self.exposure.values.copy_(tensor("exposure"))
        owners: dict[str, tuple[torch.optim.Optimizer, torch.Tensor]] = {
            "exposure": (self.exposure.optimizer, self.exposure.values)
        }
        owners |= {f"place.{name}": (o, self.place[name]) for name, o in self.place_optimizers.items()}
        owners |= {f"sky.{name}": (o, self.sky[name]) for name, o in self.sky_optimizers.items()}
        for name in arrays:
            if name.startswith("adam."):
                owner, key = name[len("adam.") :].rsplit(".", 1)
                optimizer, parameter = owners[owner]
                # Adam counts its steps on the CPU.
                optimizer.state[parameter][key] = torch.from_numpy(arrays[name]) if key == "step" else tensor(name)
        torch.set_rng_state(torch.from_numpy(arrays["torch"]))
        if "cuda" in arrays and self.device.type == "cuda":
            torch.cuda.set_rng_state(torch.from_numpy(arrays["cuda"]), self.device)
        self.rng.bit_generator.state = state["rng"]
        self.step, self.deck, self.before = state["step"], state["deck"], state["seconds"]
        return True


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays so that a reader sees all of them or none."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as sink:
            np.savez(sink, **arrays)  # type: ignore[arg-type]
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        Trainer(Path(sys.argv[1])).run()
    except TrainingFailed as error:
        sys.exit(f"Error: {error}")
