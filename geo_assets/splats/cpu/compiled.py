"""How the kernels are compiled: once for a machine, cached on disk, in single precision.

A literal such as ``2`` or ``0.5`` in a kernel would turn float32 into float64, so constants are written
``f32(0.5)``; LLVM folds them.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any


def _use_writable_cache() -> None:
    """Point numba at a folder of this process where it could write neither beside the code nor in the home."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    beside = Path(__file__).parent
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    nearest = next((p for p in (home, *home.parents) if p.exists()), Path("/"))
    if not os.access(beside, os.W_OK) and not os.access(nearest, os.W_OK):
        # A private folder: cached machine code of a shared one could be anyone's.
        os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="geo_assets_numba_")


_use_writable_cache()
# Threads that wait for each other go to sleep. Spinning, as libgomp does otherwise, takes the core from the thread that
# is waited for as soon as another program runs: measured, a step then takes several times as long as on one thread.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numba  # noqa: E402  (reads both when it is imported)
import numpy as np  # noqa: E402
from numba.core import config  # noqa: E402

from geo_assets.machine import usable_cores  # noqa: E402

if os.environ.get("NUMBA_CACHE_DIR"):
    # Where numba was imported before us; it builds its config at run time.
    config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]  # pyright: ignore[reportAttributeAccessIssue]

f32 = np.float32
prange = numba.prange
MOST_THREADS = 4
"""More are not used unless they are asked for."""
FIRST_TRIAL_AFTER, LAST_TRIAL_AFTER, TRIAL_STEPS = 50, 800, 4
"""Steps between two trials, at first and when nothing changes, and the steps of each number of threads in one."""
_FAST: dict[str, Any] = {"fastmath": True, "error_model": "numpy", "cache": True}


def kernel(function: Any) -> Any:
    """Compile a function that runs on one thread or inside another kernel."""
    return numba.njit(**_FAST)(function)


def parallel_kernel(function: Any) -> Any:
    """Compile a function whose ``prange`` loop is shared by the threads; no two iterations write the same place."""
    return numba.njit(parallel=True, **_FAST)(function)


def use_threads(wanted: int) -> int:
    """Set how many threads the kernels use; 0 means up to four. Returns the number set."""
    most = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]  # built at run time
    count = max(1, min(wanted or MOST_THREADS, usable_cores(), most))
    numba.set_num_threads(count)
    return count


def threads_in_use() -> int:
    """How many threads the kernels use."""
    return int(numba.get_num_threads())


class Threads:
    """How many threads a long piece of work uses: as many as were asked for, or what is faster here and now.

    Threads help a step of some milliseconds only while a core is free for each of them: beside other programs the
    slowest one is waited for several times a step. So now and then a few steps are timed on one thread and on all, and
    the faster number is kept; nothing but the time depends on it.

    Args:
        wanted: number of threads; 0 to find out, up to four.
    """

    def __init__(self, wanted: int) -> None:
        most = use_threads(wanted)
        self._counts = (1, most) if wanted == 0 and most > 1 else (most,)
        self._wait, self._step = FIRST_TRIAL_AFTER, 0
        self._marks: list[float] = []
        self.chosen = most

    def next_step(self) -> None:
        """To be called before each step."""
        into_trial = self._step - self._wait
        self._step += 1
        if len(self._counts) == 1 or into_trial < 0:
            numba.set_num_threads(self.chosen)
            return
        which, steps = divmod(into_trial, TRIAL_STEPS)
        if steps == 0:
            self._marks.append(time.perf_counter())
        if which == len(self._counts):
            self._choose()
            which = self._counts.index(self.chosen)
        numba.set_num_threads(self._counts[which])

    def _choose(self) -> None:
        """Keep the faster number; the longer it has been the same, the later the next trial."""
        fastest = self._counts[int(np.argmin(np.diff(self._marks)))]
        self._wait = min(2 * self._wait, LAST_TRIAL_AFTER) if fastest == self.chosen else FIRST_TRIAL_AFTER
        self.chosen, self._marks, self._step = fastest, [], 1
