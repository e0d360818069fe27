"""The embedded engine: 3D Gaussian splatting on the CPU, always available."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version

from geo_assets.settings import Splats
from geo_assets.splats.engine import ON_CPU, Log, SplatRequest, SplatResult


class CpuEngine:
    """Trains with the kernels of :mod:`geo_assets.splats.cpu`."""

    name = "cpu"
    effort = ON_CPU
    starts_from_earlier = True

    def __init__(self, options: Splats | None = None) -> None:
        """Nothing of the settings matters here; a request says it all."""

    def available(self) -> str | None:
        """Always."""
        return None

    def train(self, request: SplatRequest, log: Log) -> SplatResult:
        """See :class:`geo_assets.splats.engine.SplatEngine`."""
        from geo_assets.splats.cpu.training import train
        from geo_assets.splats.dataset import read_scene
        from geo_assets.splats.ply import write_ply

        began = time.monotonic()
        trained = train(read_scene(request.dataset_dir), request, log)
        path = request.out_dir / "splat.ply"
        write_ply(path, trained.gaussians)
        sky_path = request.out_dir / "sky.ply" if len(trained.sky) else None
        if sky_path:
            write_ply(sky_path, trained.sky)
        last = trained.curve[-1] if trained.curve else {}
        return SplatResult(
            ply_path=path,
            engine=self.name,
            engine_version=_version(),
            seconds=time.monotonic() - began,
            steps_done=trained.steps_done,
            n_splats=len(trained.gaussians),
            sky_path=sky_path,
            metrics={k: last[k] for k in ("loss", "psnr_db") if k in last},
            curve=tuple(trained.curve),
        )


def _version() -> str:
    try:
        return version("geo-assets")
    except PackageNotFoundError:
        return "source"
