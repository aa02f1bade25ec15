"""What tests of teachers share: pictures, an independent normalisation, a strict comparison."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def pixels(height: int, width: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


def normalise(seen: torch.Tensor, mean, std, size: tuple[int, int] | None = None) -> torch.Tensor:
    """As torchvision's ToTensor, Resize and Normalize do it."""
    x = seen.permute(0, 3, 1, 2).float() / 255
    if size:
        x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def outputs_of(blocks: Iterable[nn.Module]) -> list[torch.Tensor]:
    """What these blocks give from now on, in the order in which they run."""
    outputs: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda module, given, out: outputs.append(out))
    return outputs


def exactly(ours, theirs) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == other.shape
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
