"""Averaged weights, which often score better than the last ones (Polyak and Juditsky 1992)."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """The exponential moving average of a model's weights: e <- decay · e + (1 - decay) · w after every step.

    It starts from the initial weights; buffers are copied. `model` is the averaged model, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model` after a step."""
        averaged, weights = ([p.detach() for p in m.parameters()] for m in (self.model, model))
        torch._foreach_lerp_(averaged, weights, 1 - self.decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
