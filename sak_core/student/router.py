"""Mixture-of-Representations routers: how much of the stem and of each path a task takes at a level (SAK
paper, section 3.3).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sak_core.noise import NoiseSource, draw_normal
from sak_core.student.init import init_linear


class Router(nn.Module):
    """The published router: one weight an expert, for the whole image.

    Linear C to C/2, LayerNorm, GELU, Linear C/2 to 2·E on the stem's tokens, averaged over them: first half
    the logits, second half the raw noise. In training the logits get N(0, 1) · (softplus(raw) + 0.01), drawn
    for every expert *and position* (noisy gating, Shazeer et al. 2017, arXiv 1701.06538). Softmax over
    experts.

    Args:
        width: channels C.
        num_experts: stem and paths, E.
    """

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.hidden = init_linear(nn.Linear(width, width // 2))
        self.norm = nn.LayerNorm(width // 2, eps=1e-5)
        self.gates = init_linear(nn.Linear(width // 2, 2 * num_experts))

    def forward(self, stem: Tensor, noise: NoiseSource = None, name: str = "") -> Tensor:
        """The stem's tokens (B, n, C) to weights that sum to 1 over E: (B, E, n), or (B, E, 1) where all
        tokens share them.

        Args:
            noise: where training draws from.
            name: tells this router's draws from others' of the same step.
        """
        hidden = self.pool(F.gelu(self.norm(self.hidden(stem))))
        logits, raw = self.gates(hidden).transpose(1, 2).chunk(2, dim=1)
        if self.training:
            spread = (F.softplus(raw) + 0.01).expand(-1, -1, stem.shape[1])
            logits = torch.addcmul(logits, draw_normal(noise, name, spread), spread)
        return F.softmax(logits, dim=1)

    def pool(self, hidden: Tensor) -> Tensor:
        """(B, n, C/2) to (B, 1, C/2). The last layer is linear, so it may act on the mean instead of being
        averaged.
        """
        return hidden.mean(dim=1, keepdim=True)


class TokenRouter(Router):
    """The same network without the average: every token weighs the experts for itself.

    Routing a token instead of an image is what sparse mixtures for vision do (Riquelme et al. 2021, arXiv
    2106.05974); here the weights stay soft.
    """

    def pool(self, hidden: Tensor) -> Tensor:
        """(B, n, C/2), as it is."""
        return hidden


def mix(experts: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Experts, (B, n, C) each, and weights (B, E, n) or (B, E, 1) to their weighted sum (B, n, C)."""
    mixed = experts[0] * weights[:, 0, :, None]
    for index, expert in enumerate(experts[1:], start=1):
        mixed = torch.addcmul(mixed, expert, weights[:, index, :, None])
    return mixed
