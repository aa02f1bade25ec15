"""Teachers from segment_anything: the image encoders.

The encoder takes 1024×1024 px. A view is resized so that its longer side is 1024 px and the other the nearest
multiple of the patch, normalised, and padded with zeros at bottom and right; of the 64×64 cells only the
view's are kept (448×576 px: 50×64).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sak_common.names import find
from sak_core.errors import TeacherUnavailable
from sak_core.interfaces.teacher import Size, Teacher, TeacherSpec, freeze, nearest_multiple
from sak_core.weights.teacher_weights import (
    BuildOptions,
    choose_levels,
    hub,
    identity,
    load_weights,
    seeded,
)

MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)


@dataclass(frozen=True)
class SamType:
    """One of segment_anything's encoders.

    Attributes:
        levels: its blocks with global attention.
        file: its release, whose name ends in the first digits of its SHA-256.
    """

    width: int
    depth: int
    num_heads: int
    levels: tuple[int, ...]
    file: str


SAM_TYPES = {
    "vit_b": SamType(768, 12, 12, (2, 5, 8, 11), "sam_vit_b_01ec64.pth"),
    "vit_l": SamType(1024, 24, 16, (5, 11, 17, 23), "sam_vit_l_0b3195.pth"),
    "vit_h": SamType(1280, 32, 16, (7, 15, 23, 31), "sam_vit_h_4b8939.pth"),
}
"""As segment_anything.build_sam has them."""

RELEASES = "https://dl.fbaipublicfiles.com/segment_anything/"


class SamTeacher(Teacher):
    """A segment_anything image encoder: the blocks' outputs on the view's cells, without neck.

    Args:
        spec: its input_size is the view's, before padding to encoder.img_size.
    """

    def __init__(self, spec: TeacherSpec, encoder: nn.Module) -> None:
        super().__init__(spec)
        self.encoder: Any = encoder

    def features(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, *spec.input_size) to one map (B, C, h, w) a level.

        One image at a time: the attention over 4096 cells of one takes about 4 GB, and keeps a device busy.
        """
        maps = [self._features(image) for image in torch.chunk(images, len(images))]
        return [torch.cat(level) for level in zip(*maps, strict=True)]

    def _features(self, image: Tensor) -> list[Tensor]:
        canvas = int(self.encoder.img_size)
        height, width = image.shape[-2:]
        x = self.encoder.patch_embed(F.pad(image, (0, canvas - width, 0, canvas - height)))
        if self.encoder.pos_embed is not None:
            x = x + self.encoder.pos_embed
        h, w = self.spec.grid
        levels = []
        for i, block in enumerate(self.encoder.blocks[: self.spec.levels[-1] + 1]):
            x = block(x)
            if i in self.spec.levels:
                levels.append(x[:, :h, :w].permute(0, 3, 1, 2).contiguous())
        return levels


def build_sam(name: str, model: str, options: BuildOptions, licence: str = "") -> Teacher:
    """Build a teacher from a segment_anything encoder.

    Args:
        name: the teacher's.
        model: "vit_b", "vit_l" or "vit_h".

    Raises:
        UnknownName: another model.
        TeacherUnavailable: the release or the file does not give the weights.
    """
    from segment_anything.modeling import ImageEncoderViT

    row = find("SAM type", model, SAM_TYPES)
    with seeded(options.seed):
        encoder = ImageEncoderViT(
            img_size=1024,
            patch_size=16,
            embed_dim=row.width,
            depth=row.depth,
            num_heads=row.num_heads,
            out_chans=256,
            norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=row.levels,
        )
    weights_from = ""
    if not options.random_weights:
        weights_from = load_weights(encoder, options.weights or _download(name, row.file))
    teacher = sam_teacher(name, model, encoder, options, licence or "Apache-2.0")
    teacher.weights_from = weights_from
    return teacher


def sam_teacher(name: str, model: str, encoder: Any, options: BuildOptions, licence: str = "Apache-2.0") -> Teacher:
    """A teacher of an image encoder that has its weights; its canvas is encoder.img_size px square."""
    levels = choose_levels(name, options.levels, len(encoder.blocks))
    patch = int(encoder.patch_embed.proj.stride[0])
    input_size = fit_longer_side(options.size, int(encoder.img_size), patch)
    spec = TeacherSpec(
        name=name,
        library="segment_anything",
        model=model,
        weights=identity(encoder, options),
        mean=MEAN,
        std=STD,
        interpolation="bicubic",
        patch=patch,
        input_size=input_size,
        grid=(input_size[0] // patch, input_size[1] // patch),
        widths=(int(encoder.patch_embed.proj.out_channels),) * len(levels),
        levels=levels,
        licence=licence,
    )
    teacher = SamTeacher(spec, encoder)
    teacher.native_size = (int(encoder.img_size), int(encoder.img_size))
    teacher.num_blocks = len(encoder.blocks)
    return freeze(teacher)


def fit_longer_side(size: Size, longer: int, patch: int) -> Size:
    """`size` scaled to `longer` px on its longer side, the other at the nearest multiple of `patch`.

    >>> fit_longer_side((448, 576), 1024, 16)
    (800, 1024)
    """
    if size[0] >= size[1]:
        return longer, _nearest(size[1] * longer, size[0], patch)
    return _nearest(size[0] * longer, size[1], patch), longer


def _nearest(numerator: int, denominator: int, patch: int) -> int:
    """The multiple of `patch` nearest to numerator / denominator, exactly; a tie goes up."""
    return nearest_multiple(numerator, patch * denominator) // denominator


def _download(name: str, file: str) -> Path:
    """The release's file, from torch hub's cache or fetched into it; its digest is checked."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    wanted = file.removesuffix(".pth").rpartition("_")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with hub(name):
            torch.hub.download_url_to_file(RELEASES + file, str(path), hash_prefix=wanted)
        return path
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(wanted):
        raise TeacherUnavailable(f"{path} is damaged: its SHA-256 starts with {digest[:6]}, not {wanted}; delete it")
    return path
