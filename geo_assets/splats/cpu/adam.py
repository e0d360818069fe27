"""Adam (Kingma and Ba 2015) on the rows that a step has seen."""

from __future__ import annotations

import math

from geo_assets.splats.cpu.compiled import f32, kernel


@kernel
def adam(seen, rows, gradients, first, second, rates, step):
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
    beta_1, beta_2, one = f32(0.9), f32(0.999), f32(1)
    unbias_1 = f32(1 / (1 - 0.9**step))
    unbias_2 = f32(1 / (1 - 0.999**step))
    for n in seen:
        for d in range(rows.shape[1]):
            g = gradients[n, d]
            m = beta_1 * first[n, d] + (one - beta_1) * g
            v = beta_2 * second[n, d] + (one - beta_2) * g * g
            first[n, d], second[n, d] = m, v
            rows[n, d] -= rates[d] * (m * unbias_1) / (math.sqrt(v * unbias_2) + f32(1e-15))
