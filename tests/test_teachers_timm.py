"""Teachers from timm: exactly its own blocks and stages, on the grids that cover the view."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from sak_core.interfaces.teacher import (
    fit_to_patch,
    nearest_multiple,
)
from sak_core.teachers import TEACHERS, build_teacher
from sak_core.weights.teacher_weights import seeded
from tests.towers import IMAGENET, OPENAI, exactly, normalise, outputs_of, pixels


@torch.no_grad()
def test_a_timm_transformer_gives_timms_blocks():
    teacher = build_teacher("timm:vit_tiny_patch16_224", (224, 224), random_weights=True, seed=3)
    with seeded(3):
        upstream = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    seen = pixels(224, 224, 1)
    x = normalise(seen, (0.5,) * 3, (0.5,) * 3)
    exactly(teacher(seen), upstream.get_intermediate_layers(x, n=[2, 5, 8, 11], reshape=True))
    assert teacher.spec.weights == "random:3" and teacher.spec.is_random
    assert teacher.spec.mean == (0.5, 0.5, 0.5)  # AugReg's own, not ImageNet's
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", ["dinov2-small", "dinov2-reg-small"])
def test_dinov2_runs_on_the_nearest_multiple_of_14(name):
    """Against timm's own network of that size, its position embedding resampled bicubically without antialias."""
    model = TEACHERS[name].model
    teacher = build_teacher(name, (96, 130), random_weights=True)
    assert teacher.spec.input_size == (98, 126) and teacher.spec.grid == (7, 9)
    with seeded(0):
        native = timm.create_model(model, num_classes=0)
    upstream = timm.create_model(model, num_classes=0, img_size=(98, 126)).eval()
    state = native.state_dict()
    num_prefix = state["pos_embed"].shape[1] - 37 * 37
    grid = state["pos_embed"][:, num_prefix:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (7, 9), mode="bicubic", align_corners=False, antialias=False)
    grid = grid.flatten(2).transpose(1, 2)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :num_prefix], grid], dim=1)
    upstream.load_state_dict(state)
    seen = pixels(96, 130, 1)
    x = normalise(seen, *IMAGENET, (98, 126))
    exactly(teacher(seen), upstream.get_intermediate_layers(x, n=[2, 5, 8, 11], reshape=True))


def test_384_px_is_27_cells_of_14():
    assert fit_to_patch((384, 384), 14) == (378, 378)
    assert fit_to_patch((448, 576), 14) == (448, 574)
    assert fit_to_patch((384, 384), 16) == (384, 384)
    assert nearest_multiple(3, 14) == 14
    assert nearest_multiple(21, 14) == 28  # a tie goes up


def test_dinov2_giant_taps_the_ends_of_its_quarters():
    from sak_core.weights.teacher_weights import choose_levels

    assert choose_levels("t", None, 40) == (9, 19, 29, 39)
    assert choose_levels("t", None, 24) == (5, 11, 17, 23)
    assert choose_levels("t", None, 12) == (2, 5, 8, 11)
    assert choose_levels("t", None, 3) == (0, 1, 2)
    for wrong in ((), (3, 2), (1, 1), (0, 12), (-1, 2)):
        with pytest.raises(ValueError, match=r"0\.\.11"):
            choose_levels("t", wrong, 12)


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "widths"), [("resnet18", (64, 128, 256, 512)), ("efficientnet_b0", (24, 40, 112, 320))]
)
def test_a_cnn_has_levels_of_different_strides_and_widths(model, widths):
    teacher = build_teacher(f"timm:{model}", (100, 130), random_weights=True)
    assert teacher.spec.input_size == (96, 128) and teacher.spec.widths == widths
    assert teacher.spec.level_grids() == ((24, 32), (12, 16), (6, 8), (3, 4))
    with seeded(0):
        upstream = timm.create_model(model, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    seen = pixels(96, 128, 1)
    # the same network under other seeds' draws: copy the state
    upstream.load_state_dict(teacher.net.state_dict(), strict=False)
    exactly(teacher(seen), upstream(normalise(seen, *IMAGENET)))


@torch.no_grad()
def test_dinov3_gives_timms_blocks():
    teacher = build_teacher("timm:vit_small_patch16_dinov3", (64, 96), random_weights=True, levels=(0, 2))
    with seeded(0):
        upstream = timm.create_model("vit_small_patch16_dinov3", num_classes=0, dynamic_img_size=True).eval()
    seen = pixels(64, 96, 1)
    x = normalise(seen, *IMAGENET)
    exactly(teacher(seen), upstream.forward_intermediates(x, indices=[0, 2], norm=False, intermediates_only=True))


@torch.no_grad()
def test_c_radio_gives_timms_blocks_at_any_size():
    """Of the NaFlex form, which resamples RADIO's positions as RADIO does."""
    name = "naflexvit_base_patch16_radio_v3"
    teacher = build_teacher("c-radio", (64, 130), random_weights=True, levels=(0, 1))
    with seeded(0):
        upstream = timm.create_model(name, num_classes=0).eval()
    maps = outputs_of(upstream.blocks[:2])
    seen = pixels(64, 130, 1)
    upstream(normalise(seen, *OPENAI, (64, 128)))
    exactly(teacher(seen), [m[:, -32:].transpose(1, 2).reshape(1, 768, 4, 8) for m in maps])
