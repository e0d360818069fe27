"""What this process may use of the machine, and what it has taken."""

from __future__ import annotations

import os
import sys


def peak_bytes() -> tuple[int, int] | None:
    """Most resident memory of this process, and of the largest of its children that have ended; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1 << 10
    own, largest = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own * unit, largest * unit


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
