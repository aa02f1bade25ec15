"""Teacher dropping: a sample that one teacher has learned least from is not drowned by the easier ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sak_core.noise import NoiseSource, draw_uniform


@dataclass(frozen=True)
class TeacherDropping:
    """Drops teachers a sample, in the manner of UNIC (Sariyildiz et al. 2024, arXiv 2408.05088, section 3.3).

    Attributes:
        probability: of dropping each teacher but the one whose loss is largest for the sample.
        noise: where to draw from.
    """

    probability: float
    noise: NoiseSource = None

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"a teacher is dropped with a probability in [0, 1], not {self.probability}")

    def kept(self, losses: Tensor) -> Tensor:
        """Losses (B, teachers) to 1 where a teacher counts for a sample and 0 where it is dropped, same
        shape, no gradient.
        """
        losses = losses.detach()
        kept = draw_uniform(self.noise, "teacher dropping", losses) >= self.probability
        hardest = torch.zeros_like(kept).scatter_(1, losses.argmax(dim=1, keepdim=True), True)
        return (kept | hardest).to(losses.dtype)
