"""Teachers from segment_anything: exactly its own blocks, on the cells of the view."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch.nn import functional as F

from sak_core.teachers import build_teacher
from sak_core.teachers.sam import MEAN, STD, fit_longer_side, sam_teacher
from sak_core.weights.digests import state_digest
from sak_core.weights.teacher_weights import BuildOptions, seeded
from tests.towers import exactly, outputs_of, pixels


def small_sam(**changes) -> ImageEncoderViT:
    """Windows that do not divide the grid, global blocks, relative positions: all that the large one has."""
    options = {
        "img_size": 128,
        "patch_size": 16,
        "embed_dim": 24,
        "depth": 4,
        "num_heads": 2,
        "out_chans": 8,
        "use_rel_pos": True,
        "window_size": 3,
        "global_attn_indexes": (1, 3),
        **changes,
    }
    with seeded(0):
        encoder = ImageEncoderViT(**options).eval()
        for name, parameter in encoder.named_parameters():
            if "pos" in name:  # zero at the start, where they would prove nothing
                torch.nn.init.normal_(parameter, std=0.5)
    return encoder


@torch.no_grad()
@pytest.mark.parametrize("size", [(128, 128), (72, 128), (128, 40), (60, 100)])
def test_sam_gives_its_blocks_on_the_views_cells(size):
    encoder = small_sam()
    teacher = sam_teacher("sam", "small", encoder, BuildOptions(size, (0, 1, 3), random_weights=True))
    height, width = teacher.spec.input_size
    assert max(height, width) == 128 and height % 16 == width % 16 == 0
    seen = pixels(*size)
    x = seen.permute(0, 3, 1, 2).float() / 255
    if (height, width) != size:
        x = F.interpolate(x, (height, width), mode="bicubic", align_corners=False)
    x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    canvas = torch.zeros(2, 3, 128, 128)
    canvas[:, :, :height, :width] = x
    maps = outputs_of(encoder.blocks[i] for i in (0, 1, 3))
    encoder(canvas)
    h, w = teacher.spec.grid
    assert (h, w) == (height // 16, width // 16)
    expected = [m[:, :h, :w].permute(0, 3, 1, 2) for m in maps]
    for hook in encoder.blocks:
        hook._forward_hooks.clear()
    exactly(teacher(seen), expected)


def test_sam_at_1024_px_on_the_longer_side():
    assert fit_longer_side((448, 576), 1024, 16) == (800, 1024)  # 50×64 cells
    assert fit_longer_side((384, 384), 1024, 16) == (1024, 1024)
    assert fit_longer_side((576, 448), 1024, 16) == (1024, 800)
    assert fit_longer_side((2048, 1), 1024, 16) == (1024, 16)
    assert fit_longer_side((512, 500), 1024, 16) == (1024, 1008)  # 1000 px is 62.5 cells: a tie goes up


def test_sam_normalises_as_sam_does():
    import inspect

    from segment_anything.modeling import Sam

    defaults = inspect.signature(Sam.__init__).parameters
    assert torch.allclose(torch.tensor(MEAN) * 255, torch.tensor(defaults["pixel_mean"].default))
    assert torch.allclose(torch.tensor(STD) * 255, torch.tensor(defaults["pixel_std"].default))


@pytest.mark.slow
@torch.no_grad()
def test_the_real_sam_encoder(tmp_path):
    """A whole SAM saved by segment_anything loads, and its blocks are the hooks' at 448×576."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    whole = sam_model_registry["vit_b"]().eval()
    torch.save(whole.state_dict(), tmp_path / "sam.pth")
    teacher = build_teacher("sam", (448, 576), levels=(2,), weights=tmp_path / "sam.pth")
    assert teacher.spec.grid == (50, 64) and teacher.spec.weights == state_digest(whole.image_encoder.state_dict())
    seen = pixels(448, 576, 1)
    x = F.interpolate(seen.permute(0, 3, 1, 2).float(), (800, 1024), mode="bicubic", align_corners=False)
    x = whole.preprocess(x)
    tokens = whole.image_encoder.patch_embed(x) + whole.image_encoder.pos_embed
    for block in whole.image_encoder.blocks[:3]:
        tokens = block(tokens)
    (ours,) = teacher(seen)
    torch.testing.assert_close(ours, tokens[:, :50].permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)
