"""How the kernels are compiled: once for a machine, cached on disk, in single precision.

A literal such as ``2`` or ``0.5`` in a kernel would turn float32 into float64, so constants are written
``f32(0.5)``; LLVM folds them.
"""

from __future__ import annotations

import os
import tempfile
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

import numba  # noqa: E402  (reads NUMBA_CACHE_DIR when it is imported)
import numpy as np  # noqa: E402
from numba.core import config  # noqa: E402

if os.environ.get("NUMBA_CACHE_DIR"):
    # Where numba was imported before us; it builds its config at run time.
    config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]  # pyright: ignore[reportAttributeAccessIssue]

f32 = np.float32
prange = numba.prange
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
    count = max(1, min(wanted or 4, os.cpu_count() or 1, most))
    numba.set_num_threads(count)
    return count
