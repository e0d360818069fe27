"""A call in a process of its own, so that its memory and its processor time are its own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

from geo_assets.machine import peak_bytes

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Ran(Generic[T]):
    """What a call returned, its processor time with that of what it waited for [s], and the most memory [B] its process had."""

    result: T
    cpu_s: float
    peak_bytes: int

    @property
    def peak_gb(self) -> float:
        """The most memory [GB]."""
        return self.peak_bytes / 1e9


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Ran[T]:
    """Call a function of a module in a process of its own.

    Raises:
        BrokenProcessPool: the process died; what the function raises is raised here.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_ran, function, *args, **kwargs).result()


def _ran(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Ran[T]:
    before = cpu_seconds()
    result = function(*args, **kwargs)
    return Ran(result, cpu_seconds() - before, peak())


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended [s]."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak() -> int:
    """The most memory that this process had [B]."""
    # What getrusage says begins on Linux with what the parent held when it started this process.
    return memory("VmHWM") if sys.platform == "linux" else (peak_bytes() or (0, 0))[0]


def memory(name: str) -> int:
    """A line of Linux' status of this process [B]: ``VmRSS`` for what it holds, ``VmHWM`` for the most it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def use_cores(count: int) -> None:
    """Keep this process to so many of its cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
