"""Adam (Kingma and Ba 2015) on the rows that a step has seen."""

from __future__ import annotations

import math

import numpy as np

from geo_assets.splats.cpu.compiled import f32, kernel, parallel_kernel, prange, threads_in_use
from geo_assets.splats.gaussians import Floats

WORTH_SHARING = 200_000
"""Numbers to move from which threads gain more than it takes to start them."""


def adam(
    seen: np.ndarray, rows: Floats, gradients: Floats, first: Floats, second: Floats, rates: Floats, step: int
) -> None:
    """Move rows against their gradient; what a step did not see keeps its moments.

    Args:
        seen: rows to move [V].
        rows: parameters [N, D], changed.
        gradients: [N, D].
        first: mean of the gradients [N, D], changed.
        second: mean of their squares [N, D], changed.
        rates: learning rate of each column [D]; a column of rate 0 is left alone.
        step: number of the step, from 1.
    """
    threads = threads_in_use() if len(seen) * rows.shape[1] >= WORTH_SHARING else 1
    seen = np.sort(seen)  # memory is read in order
    # Without bias: the moments start at zero.
    unbias_1, unbias_2 = f32(1 / (1 - 0.9**step)), f32(1 / (1 - 0.999**step))
    if threads == 1:
        move(seen, rows, gradients, first, second, rates, unbias_1, unbias_2)
    else:
        move_shared(threads, seen, rows, gradients, first, second, rates, unbias_1, unbias_2)


@kernel
def move(seen, rows, gradients, first, second, rates, unbias_1, unbias_2):
    """One step of :func:`adam`."""
    beta_1, beta_2, one = f32(0.9), f32(0.999), f32(1)
    for n in seen:
        row, g, m, v = rows[n], gradients[n], first[n], second[n]
        # Two loops: of few arrays LLVM can rule out that they overlap, and makes vectors of them.
        for d in range(row.shape[0]):
            m[d] = beta_1 * m[d] + (one - beta_1) * g[d]
            v[d] = beta_2 * v[d] + (one - beta_2) * g[d] * g[d]
        for d in range(row.shape[0]):
            row[d] -= rates[d] * (m[d] * unbias_1) / (math.sqrt(v[d] * unbias_2) + f32(1e-15))


@parallel_kernel
def move_shared(hands, seen, rows, gradients, first, second, rates, unbias_1, unbias_2):
    """The same by several threads, each with its share of the rows."""
    for hand in prange(hands):
        share = seen[hand * seen.shape[0] // hands : (hand + 1) * seen.shape[0] // hands]
        move(share, rows, gradients, first, second, rates, unbias_1, unbias_2)
