"""Teachers whose features lie otherwise, or at other sizes: right, or refused when they are built, by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image

from cache import Store
from sak_core.errors import TeacherUnavailable
from sak_core.teachers import build_teacher
from sak_core.teachers.hf import hf_teacher
from sak_core.weights.teacher_weights import BuildOptions, seeded
from tests.conftest import refusal, sak
from tests.towers import IMAGENET, exactly, normalise, pixels

HALF = (0.5, 0.5, 0.5)
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "initializer_range": 0.1}
STAGES = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "image_size": 128}
SAM = transformers.SamVisionConfig(
    **VIT, mlp_dim=64, image_size=128, patch_size=16, output_channels=16, window_size=4, global_attn_indexes=[1, 3]
)
HIERA = transformers.Sam2HieraDetConfig(
    hidden_size=8,
    num_attention_heads=1,
    blocks_per_stage=[1, 1, 2, 1],
    embed_dim_per_stage=[8, 16, 32, 64],
    num_attention_heads_per_stage=[1, 2, 4, 8],
    window_size_per_stage=[8, 4, 14, 7],
    global_attention_blocks=[3],
    image_size=[128, 128],
    initializer_range=0.1,
)


def drawn(kind, config) -> torch.nn.Module:
    with seeded(0):
        return kind(config).eval()


def of_transformers(net: torch.nn.Module, size: tuple[int, int], **options):
    return hf_teacher("hf:x", "x", net, BuildOptions(size, random_weights=True, **options), HALF, HALF, "bicubic", "")


@torch.no_grad()
def test_channels_that_lie_last_become_maps():
    """SAM's, of its one square size, and SAM 2's at a view that is no square."""
    teacher = of_transformers(drawn(transformers.SamVisionModel, SAM), (96, 128))
    assert teacher.spec.input_size == (128, 128) and teacher.spec.grid == (8, 8) and teacher.spec.widths == (32,) * 4
    seen = pixels(128, 128)
    states = drawn(transformers.SamVisionModel, SAM)(normalise(seen, HALF, HALF), output_hidden_states=True)
    exactly(teacher(seen), [state.permute(0, 3, 1, 2) for state in states.hidden_states[1:]])

    teacher = of_transformers(drawn(transformers.Sam2HieraDetModel, HIERA), (96, 160))
    seen = pixels(96, 160)
    states = drawn(transformers.Sam2HieraDetModel, HIERA)(normalise(seen, HALF, HALF), output_hidden_states=True)
    maps = [state.permute(0, 3, 1, 2) for state in states.hidden_states[1:]]
    exactly(teacher(seen), [maps[level] for level in teacher.spec.levels])
    assert teacher.spec.level_grids()[-1] == (3, 5) and teacher.spec.widths[-1] == 64


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "config", "is_last"),
    [
        (transformers.SwinModel, transformers.SwinConfig(**STAGES, window_size=4), False),
        (transformers.Swinv2Model, transformers.Swinv2Config(**STAGES, window_size=4), False),
        (transformers.FocalNetModel, transformers.FocalNetConfig(embed_dim=8, image_size=128), False),
        (transformers.HieraModel, transformers.HieraConfig(embed_dim=8, num_heads=[1, 1, 2, 2]), True),
    ],
)
def test_stages_of_tokens_are_taken_as_the_library_lays_them_out(kind, config, is_last):
    """Also of Swin, which narrows its windows for good where it has once seen a small image, as a probe's."""
    size = (224, 224) if is_last else (128, 128)
    teacher = of_transformers(drawn(kind, config), size)
    seen = pixels(*size)
    states = drawn(kind, config)(normalise(seen, HALF, HALF), output_hidden_states=True).reshaped_hidden_states[1:]
    maps = [state.permute(0, 3, 1, 2) if is_last else state for state in states]
    assert teacher.spec.level_grids() == tuple(tuple(state.shape[2:]) for state in maps)
    exactly(teacher(seen), maps)


@torch.no_grad()
def test_a_masked_autoencoder_sees_every_patch_in_its_place():
    """As a plain ViT with its weights: nothing masked, nothing shuffled."""
    config = transformers.ViTMAEConfig(**VIT, image_size=64, patch_size=16, intermediate_size=64)
    net = drawn(transformers.ViTMAEModel, config)
    teacher = of_transformers(net, (64, 96))
    plain = transformers.ViTModel(
        transformers.ViTConfig(**VIT, image_size=64, patch_size=16, intermediate_size=64), add_pooling_layer=False
    ).eval()
    plain.load_state_dict({key.replace("decoder.", ""): value for key, value in net.state_dict().items()})
    seen = pixels(64, 96)
    states = plain(normalise(seen, HALF, HALF), output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
    exactly(teacher(seen), [state[:, 1:].transpose(1, 2).reshape(2, 32, 4, 6) for state in states[1:]])


TOKENS = {**VIT, "intermediate_size": 64, "patch_size": 16}


class Shuffled(transformers.Dinov2Model):
    """A network that takes its patches in another order each time."""

    def forward(self, pixel_values, **options):
        order = torch.randperm(pixel_values.shape[-1])
        return super().forward(pixel_values[..., order], **options)


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        (transformers.YolosModel, transformers.YolosConfig(**TOKENS, image_size=[64, 96]), "tokens behind them"),
        (
            transformers.PixtralVisionModel,
            transformers.PixtralVisionConfig(**TOKENS, image_size=64),
            "mixes the images",
        ),
        (transformers.SegGptModel, transformers.SegGptConfig(**TOKENS, image_size=[64, 64]), "on images alone.*prompt"),
        (transformers.VideoMAEModel, transformers.VideoMAEConfig(**TOKENS, image_size=64), "on images alone"),
        (transformers.PvtModel, transformers.PvtConfig(image_size=64), "not the tokens of its"),
        (
            transformers.LevitModel,
            transformers.LevitConfig(hidden_sizes=[16, 32, 48], depths=[1, 1, 1], key_dim=[8, 8, 8]),
            "not the tokens of its",
        ),
        (
            transformers.SamVisionModel,
            transformers.SamVisionConfig(**{**SAM.to_dict(), "hidden_size": 8}),
            "which axis",
        ),
        (Shuffled, transformers.Dinov2Config(**VIT, image_size=56, patch_size=14), "random"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(kind, config, reason):
    with pytest.raises(TeacherUnavailable, match=rf"\({kind.__name__}\).*{reason}"):
        of_transformers(drawn(kind, config), (64, 96))


@torch.no_grad()
def test_the_deepest_cells_cover_the_view_to_its_border():
    """ConvNeXt names 4 px, its stem's: of 100 px its deepest cells would see 96. Only what is tapped counts."""
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], initializer_range=0.1)
    teacher = of_transformers(drawn(transformers.ConvNextModel, config), (100, 130))
    assert teacher.spec.input_size == (96, 128) and teacher.spec.level_grids()[-1] == (3, 4)
    seen = pixels(96, 128)
    states = drawn(transformers.ConvNextModel, config)(normalise(seen, HALF, HALF), output_hidden_states=True)
    exactly(teacher(seen), states.hidden_states[1:])
    shallow = of_transformers(drawn(transformers.ConvNextModel, config), (100, 130), levels=(0, 1))
    assert shallow.spec.input_size == (104, 128) and shallow.spec.level_grids() == ((26, 32), (13, 16))


def test_a_network_of_one_size_that_its_cells_do_not_divide_is_refused():
    config = transformers.Aimv2VisionConfig(**TOKENS, image_size=70)
    with pytest.raises(TeacherUnavailable, match=r"70x70 px block 0 gives 4x4 cells of 16x16 px: they lie on 64x64 px"):
        of_transformers(drawn(transformers.Aimv2VisionModel, config), (96, 96))


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "size", "grids"),
    [
        ("mobilevitv2_050", (128, 192), ((32, 48), (16, 24), (8, 12), (4, 6))),  # wants even numbers of cells
        ("hiera_tiny_224", (224, 224), ((56, 56), (28, 28), (14, 14), (7, 7))),
    ],
)
def test_a_timm_network_that_cannot_takes_the_view_at_a_size_that_it_can(model, size, grids):
    teacher = build_teacher(f"timm:{model}", (96, 160), random_weights=True)
    assert teacher.spec.input_size == size and teacher.spec.level_grids() == grids
    with seeded(0):
        upstream = timm.create_model(model, num_classes=0).eval()
    seen = pixels(*size, 1)
    x = normalise(seen, teacher.spec.mean, teacher.spec.std)
    expected = upstream.forward_intermediates(x, indices=list(teacher.spec.levels), norm=False, intermediates_only=True)
    exactly(teacher(seen), expected)


def test_a_probe_leaves_a_network_as_it_was():
    """Batch statistics among it: a network is in training mode when it is made."""
    with seeded(0):
        upstream = timm.create_model("resnet18", num_classes=0)
    teacher = build_teacher("timm:resnet18", (64, 64), random_weights=True)
    for name, value in teacher.net.state_dict().items():
        assert torch.equal(value, upstream.state_dict()[name]), name


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("levit_128s", r"224x224 px block 2 gives 4x4 cells of 64x64 px: they lie on 256x256 px.*levels 0,1 cover it"),
        ("inception_v3", r"block 1 gives .* cells of 4x4 px"),
    ],
)
def test_features_that_do_not_cover_the_view_are_refused(model, reason):
    with pytest.raises(TeacherUnavailable, match=reason):
        build_teacher(f"timm:{model}", (96, 128), random_weights=True)


def folder_of(config, folder: Path) -> Path:
    config.save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "image_mean": IMAGENET[0], "image_std": IMAGENET[1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@torch.no_grad()
def test_from_the_command_line(tmp_path: Path):
    """SAM's channels are stored last, as a store's always are; tokens behind the cells are refused in a sentence."""
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for index in range(2):
        Image.fromarray(generator.integers(0, 256, (128, 128, 3), np.uint8)).save(tmp_path / f"images/{index}.png")
    options = ["--dataset", "folder", "--root", tmp_path / "images", "--split", "val", "--size", "128", "--json"]
    options += ["--random-weights", "--threads", "1", "--decoders", "0", "--codec", "fp32", "--out", tmp_path]
    name = f"hf:{folder_of(SAM, tmp_path / 'sam')}"
    store = Store.open(json.loads(sak("cache", "--teacher", name, *options).stdout)["store"])
    net = drawn(transformers.SamVisionModel, SAM)
    seen = torch.from_numpy(np.stack([store.pixels[i, 0] for i in range(2)]))
    states = net(normalise(seen, *IMAGENET), output_hidden_states=True).hidden_states[1:]
    (teacher,) = store.teachers
    for level, state in enumerate(states):
        read = np.stack([store.features(teacher, level)[i, 0] for i in range(2)])
        np.testing.assert_allclose(read, state.numpy(), rtol=1e-4, atol=1e-5)
    yolos = transformers.YolosConfig(**TOKENS, image_size=[64, 96])
    said = refusal("cache", "--teacher", f"hf:{folder_of(yolos, tmp_path / 'yolos')}", *options)
    assert "YolosModel" in said and "tokens behind them" in said
