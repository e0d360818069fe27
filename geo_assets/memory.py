"""How much memory was taken until now."""

from __future__ import annotations

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
