"""Augmentation of whole batches on tensors: mirroring with all labels, and changes of colour."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.miniature.scenes import SceneBatch, mirrored_places

# RGB to luma and two chroma axes (YIQ): hue is a rotation, saturation a scaling of the chroma plane.
_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_TO_RGB = torch.linalg.inv(_TO_YIQ)


@dataclass(frozen=True)
class ColorConfig:
    """Largest changes of colour: factors lie in 1 ± value, hue in ± value turns."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    gray_probability: float


STRONG = ColorConfig(brightness=0.4, contrast=0.4, saturation=0.8, hue=0.5, gray_probability=0.2)
MILD = ColorConfig(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.0, gray_probability=0.0)


def recolor(image: Tensor, config: ColorConfig, generator: torch.Generator) -> Tensor:
    """Change the colours of each image: uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [0, 1]."""
    b = len(image)

    def draw(strength: float) -> Tensor:
        return strength * (2 * torch.rand(b, generator=generator) - 1)

    brightness, contrast, saturation = (
        1 + draw(config.brightness),
        1 + draw(config.contrast),
        1 + draw(config.saturation),
    )
    saturation = saturation * (torch.rand(b, generator=generator) >= config.gray_probability)
    angle = 2 * math.pi * draw(config.hue)
    chroma = torch.zeros(b, 3, 3)
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * angle.cos()
    chroma[:, 1, 2], chroma[:, 2, 1] = -saturation * angle.sin(), saturation * angle.sin()
    matrix = (brightness * contrast)[:, None, None] * (_TO_RGB @ chroma @ _TO_YIQ)
    pixels = image.permute(0, 3, 1, 2).flatten(2).float() / 255
    mean = pixels.mean(dim=(1, 2)) * brightness * (1 - contrast)
    changed = torch.baddbmm(mean[:, None, None], matrix, pixels)
    return changed.clamp(0, 1).reshape(b, 3, *image.shape[1:3])


def mirror(batch: SceneBatch, generator: torch.Generator) -> SceneBatch:
    """Mirror each scene left to right with probability one half, with its maps, boxes and places."""
    flip = torch.rand(len(batch.image), generator=generator) < 0.5

    def flipped(tensor: Tensor) -> Tensor:
        return torch.where(flip.view(-1, *[1] * (tensor.ndim - 1)), tensor.flip(2), tensor)

    top, left, bottom, right = batch.boxes.unbind(-1)
    boxes = torch.where(flip[:, None, None], torch.stack([top, 1 - right, bottom, 1 - left], -1), batch.boxes)
    name, color, place = batch.objects.unbind(-1)
    mirrored = torch.tensor(mirrored_places())[place.clamp(min=0)]
    place = torch.where(flip[:, None] & (place >= 0), mirrored, place)
    return replace(
        batch,
        image=flipped(batch.image),
        semseg=flipped(batch.semseg),
        parts=flipped(batch.parts),
        instances=flipped(batch.instances),
        facets=flipped(batch.facets),
        boxes=boxes,
        objects=torch.stack([name, color, place], -1),
    )
