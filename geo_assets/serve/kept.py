"""Answers kept in memory until the files that they were made of change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from geo_assets.lake import Lake

T = TypeVar("T")
QUICK_S = 0.15
"""A renewal that took no longer is waited for; while a longer one runs, the old answer is given."""

PATIENCE_S = 6.0
"""How long the first answer is waited for; of a lake of many boxes it takes minutes."""

SHARE = 0.1
"""Of the time is spent looking for changes, at most."""


class Kept(Generic[T]):
    """A value made of tables of the lake, made anew when one of their files changes.

    Args:
        lake: where the tables are.
        tables: gives the tables that the value is made of.
        make: makes the value; it may take minutes.
        meanwhile: makes quickly what is given while the first value is being made.
        pause_s: least time between two looks at the files [s].
    """

    def __init__(
        self,
        lake: Lake,
        tables: Callable[[], Iterable[str]],
        make: Callable[[], T],
        meanwhile: Callable[[], T],
        pause_s: float = 1.0,
    ) -> None:
        self._lake, self._tables, self._make, self._meanwhile, self._pause_s = lake, tables, make, meanwhile, pause_s
        self._lock = threading.Lock()
        self._values: list[T] = []
        self._stamps: list[str] = []
        self._fault: Exception | None = None
        self._looked_at = self._looked_s = self._made_s = 0.0

    @property
    def reading(self) -> bool:
        """Whether the first value is still being made."""
        return not self._values

    def get(self) -> T:
        """The value; it is waited for where that is quick, else what is known already is given.

        Raises:
            Exception: what kept the value from being made.
        """
        if self._due() and self._lock.acquire(blocking=False):
            thread = threading.Thread(target=self._renew, daemon=True)
            thread.start()
            if self._looked_s + self._made_s <= QUICK_S or self.reading:
                thread.join(PATIENCE_S)
        elif self.reading and self._lock.acquire(timeout=PATIENCE_S):  # somebody else asked first
            self._lock.release()
        if self._fault is not None:
            raise self._fault
        return self._values[0] if self._values else self._meanwhile()

    def _due(self) -> bool:
        return time.monotonic() - self._looked_at >= max(self._pause_s, self._looked_s / SHARE) or self.reading

    def _renew(self) -> None:
        try:
            began = time.monotonic()
            stamps = [self._lake.stamp(table) for table in sorted(set(self._tables()))]
            self._looked_at = time.monotonic()
            self._looked_s = self._looked_at - began
            if not self._values or stamps != self._stamps:
                value = self._make()
                self._made_s = time.monotonic() - self._looked_at
                self._values, self._stamps = [value], stamps
            self._fault = None
        except Exception as fault:
            self._fault = fault
        finally:
            self._lock.release()
