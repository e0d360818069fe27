"""How far long work is, for people: count, rate and time left, every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Reports long work every few seconds: count, rate and time left, one line each.

    Args:
        log: where the line goes (``context.log.info``).
        what: noun for the things counted.
        total: how many there are.
        every_s: seconds between two lines.
    """

    def __init__(self, log: Callable[[str], None], what: str, total: int, every_s: float = 5.0) -> None:
        self._log, self._what, self._total, self._every_s = log, what, total, every_s
        self._began = self._said = time.monotonic()

    def __call__(self, done: int) -> None:
        """Say how far the work is, unless it was said a moment ago."""
        now = time.monotonic()
        if now - self._said < self._every_s:
            return
        self._said = now
        rate = done / (now - self._began)
        left = f", {(self._total - done) / rate:.0f} s left" if rate > 0 else ""
        self._log(f"{done:,} of {self._total:,} {self._what}, {rate:.1f} a second{left}")
