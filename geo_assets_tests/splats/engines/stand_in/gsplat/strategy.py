# pyright: reportMissingImports=false
"""Grows as the real strategy does: parameters are replaced by longer ones, and Adam's moments with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class MCMCStrategy:
    cap_max: int
    refine_start_iter: int
    refine_stop_iter: int
    refine_every: int

    def check_sanity(self, params, optimizers):
        assert set(params) == set(optimizers)

    def initialize_state(self):
        return {"binoms": torch.zeros(51, 51)}

    def step_post_backward(self, params, optimizers, state, step, info, lr):
        assert lr > 0 and state
        n = len(params["means"])
        due = self.refine_start_iter < step < self.refine_stop_iter and step % self.refine_every == 0
        more = min(self.cap_max, int(1.05 * n)) - n
        if not due or more <= 0:
            return
        chosen = torch.multinomial(torch.sigmoid(params["opacities"]), more, replacement=True)
        for name, optimizer in optimizers.items():
            old = params[name]
            new = torch.nn.Parameter(torch.cat([old, old[chosen]]))
            moments = optimizer.state.pop(old, {})
            for key in moments:
                if key != "step":
                    moments[key] = torch.cat([moments[key], torch.zeros_like(old[chosen])])
            optimizer.state[new] = moments
            optimizer.param_groups[0]["params"] = [new]
            params[name] = new
