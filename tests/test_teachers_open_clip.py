"""Teachers from open_clip: exactly its own blocks, with the activation that the weights want."""

from __future__ import annotations

import open_clip
import pytest
import timm
import torch

from sak_core.errors import TeacherUnavailable
from sak_core.teachers import TEACHERS, build_teacher
from sak_core.teachers.open_clip_models import _transformer
from sak_core.weights.positions import resample_positions
from sak_core.weights.teacher_weights import BuildOptions, seeded
from tests.towers import IMAGENET, exactly, normalise, outputs_of, pixels


@torch.no_grad()
def test_clip_gives_open_clips_blocks_with_quickgelu():
    """At the native size against open_clip itself; OpenAI's weights run QuickGELU, whatever the name asked for."""
    teacher = build_teacher("open_clip:ViT-B-32/openai", (224, 224), random_weights=True)
    upstream = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None).eval().visual
    upstream.load_state_dict(teacher.net.state_dict())
    seen = pixels(224, 224, 1)
    maps = outputs_of(upstream.transformer.resblocks[i] for i in (2, 5, 8, 11))
    upstream(normalise(seen, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    exactly(teacher(seen), [m[:, 1:].transpose(1, 2).reshape(1, 768, 7, 7) for m in maps])
    plain = open_clip.create_model("ViT-B-32", pretrained=None).eval().visual
    plain.load_state_dict(teacher.net.state_dict())
    other = plain.forward_intermediates(
        normalise(seen, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD), indices=[2]
    )
    assert not torch.allclose(other["image_intermediates"][0], teacher(seen)[0], atol=1e-3)


@torch.no_grad()
def test_clip_at_another_size_has_its_positions_resampled():
    from open_clip.transformer import VisionTransformer

    with seeded(0):
        tower = VisionTransformer(64, 16, 48, 3, 4, 4.0, output_dim=8).eval()
    native = {key: value.clone() for key, value in tower.state_dict().items()}
    facts = {"mean": IMAGENET[0], "std": IMAGENET[1], "interpolation": "bicubic", "licence": ""}
    teacher = _transformer("t", "tiny/x", tower, BuildOptions((80, 100), (0, 2), random_weights=True), facts)
    assert teacher.spec.input_size == (80, 96) and teacher.spec.grid == (5, 6)
    upstream = VisionTransformer((80, 96), 16, 48, 3, 4, 4.0, output_dim=8).eval()
    positions = resample_positions(native["positional_embedding"][None], (4, 4), (5, 6))[0]
    assert torch.equal(positions[0], native["positional_embedding"][0])  # the class token's stays
    upstream.load_state_dict({**native, "positional_embedding": positions})
    seen = pixels(80, 96)
    maps = outputs_of(upstream.transformer.resblocks[i] for i in (0, 2))
    upstream(normalise(seen, *IMAGENET))
    exactly(teacher(seen), [m[:, 1:].transpose(1, 2).reshape(2, 48, 5, 6) for m in maps])


def test_the_rows_weights_exist_and_want_the_activation_they_get():
    for name, row in TEACHERS.items():
        if row.library == "timm":
            assert row.model in timm.list_pretrained(), name
        elif row.library == "open_clip":
            arch, tag = row.model.split("/")
            wanted = open_clip.get_pretrained_cfg(arch, tag)
            assert wanted, name
            assert open_clip.get_model_config(arch).get("quick_gelu", False) == bool(wanted.get("quick_gelu"))


@torch.no_grad()
def test_siglip_gives_open_clips_blocks():
    import open_clip

    teacher = build_teacher("open_clip:ViT-B-16-SigLIP/webli", (224, 224), random_weights=True, levels=(0, 1))
    upstream = open_clip.create_model("ViT-B-16-SigLIP", pretrained=None).eval().visual
    upstream.trunk.load_state_dict(teacher.net.state_dict())
    maps = outputs_of(upstream.trunk.blocks[:2])
    seen = pixels(224, 224, 1)
    upstream(normalise(seen, (0.5,) * 3, (0.5,) * 3))
    exactly(teacher(seen), [m.transpose(1, 2).reshape(1, 768, 14, 14) for m in maps])


def test_a_size_that_a_tower_cannot_take_is_refused_with_the_one_that_it_can(monkeypatch):
    """LeViT's biases of attention have 224 px built in, where its last stage leaves a border uncovered."""
    tower = {"timm_model_name": "levit_128s", "timm_pool": "avg", "timm_proj": "linear", "image_size": 224}
    text = {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1}
    own = {"embed_dim": 8, "vision_cfg": tower, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "levit", own)
    refused = r"levit \(\w+\): it does not take 128x128 px .*; at 224x224 px block 2 .*; levels 0,1 cover it"
    with pytest.raises(TeacherUnavailable, match=refused):
        build_teacher("open_clip:levit", (96, 128), random_weights=True)
    teacher = build_teacher("open_clip:levit", (96, 128), random_weights=True, levels=(0, 1))
    assert teacher.spec.input_size == teacher.native_size == (224, 224)
    assert [level.shape[-2:] for level in teacher(pixels(96, 128))] == [(14, 14), (7, 7)]
