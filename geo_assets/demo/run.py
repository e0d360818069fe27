"""``geo-assets demo``: the whole graph over the embedded world, with the time and memory it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from geo_assets.machine import peak_bytes
from geo_assets.settings import DEMO_CITY


def run_demo(make: Callable[[], Any], say: Callable[[str], None]) -> int:
    """Materialize everything that the demo city lacks and say where the results are.

    Args:
        make: builds the :class:`~geo_assets.materialize.Materializer`; called late, because loading takes seconds.
        say: receives the lines.

    Returns:
        The exit code: 0 when every partition is there.
    """
    began = time.monotonic()
    say("Demo city: 4 boxes around a crossing, served by the embedded imagery API. It needs some minutes.")
    materializer = make()
    outcome = materializer.run("*", [DEMO_CITY], only_missing=True)
    seconds = time.monotonic() - began
    say(f"\n{len(outcome.done)} runs in {seconds:.0f} s, at most {peak_memory_gb():.2f} GB of memory.")
    if outcome.failed:
        say("Not finished; run it again to resume. What failed:")
        for place, reason in outcome.failed.items():
            say(f"  {place}: {reason}")
        return 1
    lake = materializer.lake
    if lake.is_local:
        lake.rebuild_catalog()
    _say_results(lake, say)
    return 0


def peak_memory_gb() -> float:
    """The larger of this process's and its largest child's peak resident memory, added up [GB].

    The sum is an upper bound of what was resident at once, as long as one child runs at a time.
    """
    return sum(peak_bytes() or ()) / 1e9


def _say_results(lake: Any, say: Callable[[str], None]) -> None:
    with lake.connect("box_quality") as con:
        rows = con.execute(
            "select box, n_images, n_registered, gps_median_m, reprojection_px, psnr_db, sequence_psnr_db, gain_db "
            f"from box_quality where city = '{DEMO_CITY}' order by box"
        ).fetchall()
    say("\nbox      images  registered  GPS median  reprojection  held-out PSNR  exposed alike  gain")
    for box, images, registered, gps, pixels, psnr, exposed, gain in rows:
        say(
            f"{box}  {images:>7}  {registered:>10}  {gps:>8.2f} m  {pixels:>9.2f} px  {psnr:>10.1f} dB  {exposed or psnr:>10.1f} dB"
            f"  {gain:>4.1f} dB"
        )
    say(f"\nTables and files: {lake.root}")
    say(f"Queries:          duckdb {lake.root}/catalog.duckdb")
    say("The graph:        make dev, then http://127.0.0.1:3000")
    say("The splat:        .venv/bin/geo-assets show demo")
