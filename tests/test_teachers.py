"""Teachers: exactly what the upstream libraries compute, on the grids that cover the view."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT
from torch.nn import functional as F

from sak_core.digests import state_digest
from sak_core.names import UnknownName, part_name
from sak_core.teachers import TEACHERS, build_teacher, check_teacher
from sak_core.teachers.base import (
    TeacherSpec,
    TeacherUnavailable,
    fit_to_patch,
    nearest_multiple,
)
from sak_core.teachers.open_clip_models import _transformer
from sak_core.teachers.positions import resample_positions
from sak_core.teachers.sam import MEAN, STD, fit_longer_side, sam_teacher
from sak_core.teachers.weights import BuildOptions, read_state, seeded

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pixels(height: int, width: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


def normalise(seen: torch.Tensor, mean, std) -> torch.Tensor:
    """As torchvision's ToTensor and Normalize do it."""
    x = seen.permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def exactly(ours, theirs) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32 and mine.shape == other.shape
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


# --- timm


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
    x = F.interpolate(
        seen.permute(0, 3, 1, 2).float() / 255, (98, 126), mode="bicubic", align_corners=False, antialias=True
    )
    x = (x - torch.tensor(IMAGENET[0]).view(1, 3, 1, 1)) / torch.tensor(IMAGENET[1]).view(1, 3, 1, 1)
    exactly(teacher(seen), upstream.get_intermediate_layers(x, n=[2, 5, 8, 11], reshape=True))


def test_384_px_is_27_cells_of_14():
    assert fit_to_patch((384, 384), 14) == (378, 378)
    assert fit_to_patch((448, 576), 14) == (448, 574)
    assert fit_to_patch((384, 384), 16) == (384, 384)
    assert nearest_multiple(3, 14) == 14
    assert nearest_multiple(21, 14) == 28  # a tie goes up


def test_dinov2_giant_taps_the_ends_of_its_quarters():
    from sak_core.teachers.weights import choose_levels

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
def test_asked_for_levels_are_given():
    teacher = build_teacher("timm:vit_tiny_patch16_224", (64, 64), levels=(0, 7), random_weights=True)
    every = build_teacher("timm:vit_tiny_patch16_224", (64, 64), levels=range(12), random_weights=True)
    seen = pixels(64, 64, 1)
    exactly(teacher(seen), [every(seen)[i] for i in (0, 7)])
    assert teacher.spec.levels == (0, 7) and len(teacher.spec.widths) == 2


# --- open_clip


@torch.no_grad()
def test_clip_gives_open_clips_blocks_with_quickgelu():
    """At the native size against open_clip itself; OpenAI's weights run QuickGELU, whatever the name asked for."""
    teacher = build_teacher("open_clip:ViT-B-32/openai", (224, 224), random_weights=True)
    upstream = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None).eval().visual
    upstream.load_state_dict(teacher.net.state_dict())
    seen = pixels(224, 224, 1)
    maps = []
    for i in (2, 5, 8, 11):
        upstream.transformer.resblocks[i].register_forward_hook(lambda m, a, out: maps.append(out))
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
    passport = {"mean": IMAGENET[0], "std": IMAGENET[1], "interpolation": "bicubic", "licence": ""}
    teacher = _transformer("t", "tiny/x", tower, BuildOptions((80, 100), (0, 2), random_weights=True), passport)
    assert teacher.spec.input_size == (80, 96) and teacher.spec.grid == (5, 6)
    upstream = VisionTransformer((80, 96), 16, 48, 3, 4, 4.0, output_dim=8).eval()
    positions = resample_positions(native["positional_embedding"][None], (4, 4), (5, 6))[0]
    assert torch.equal(positions[0], native["positional_embedding"][0])  # the class token's stays
    upstream.load_state_dict({**native, "positional_embedding": positions})
    seen = pixels(80, 96)
    maps = []
    for i in (0, 2):
        upstream.transformer.resblocks[i].register_forward_hook(lambda m, a, out: maps.append(out))
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


# --- segment_anything


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
    maps = []
    for i in (0, 1, 3):
        encoder.blocks[i].register_forward_hook(lambda m, a, out: maps.append(out))
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


# --- transformers


@torch.no_grad()
def test_a_transformers_model_from_a_folder(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14)
    with seeded(0):
        upstream = Dinov2Model(config).eval()
    upstream.save_pretrained(tmp_path)
    processor = {"image_processor_type": "BitImageProcessor", "image_mean": IMAGENET[0], "image_std": IMAGENET[1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, "resample": 3}))
    teacher = build_teacher(f"hf:{tmp_path}", (70, 83))
    assert teacher.spec.grid == (5, 6) and teacher.spec.levels == (0, 1, 2, 3)
    assert teacher.spec.weights == state_digest(upstream.state_dict())
    seen = pixels(70, 84)
    same = build_teacher(f"hf:{tmp_path}", (70, 84))
    states = upstream(normalise(seen, *IMAGENET), output_hidden_states=True).hidden_states
    exactly(same(seen), [s[:, 1:].transpose(1, 2).reshape(2, 32, 5, 6) for s in states[1:]])


# --- weights


def test_files_saved_by_timm_load(tmp_path):
    torch.manual_seed(5)
    upstream = timm.create_model("vit_tiny_patch16_224")  # with its classifier
    save_file(upstream.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": upstream.state_dict()}, tmp_path / "w.pth")
    made = [
        build_teacher("timm:vit_tiny_patch16_224", (64, 96), weights=tmp_path / name)
        for name in ("w.safetensors", "w.pth")
    ]
    tower = {key: value for key, value in upstream.state_dict().items() if not key.startswith("head.")}
    assert made[0].spec.weights == made[1].spec.weights == state_digest(tower)
    assert torch.equal(made[0].net.blocks[3].attn.qkv.weight, upstream.blocks[3].attn.qkv.weight)


@torch.no_grad()
def test_dinov2s_own_release_loads(tmp_path):
    """facebookresearch's files have a mask token and other names; position embeddings of 37×37 cells."""
    with seeded(4):
        upstream = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    release = {"mask_token": torch.zeros(1, 384), **upstream.state_dict()}
    torch.save(release, tmp_path / "dinov2_vits14_pretrain.pth")
    teacher = build_teacher("dinov2-small", (70, 70), weights=tmp_path / "dinov2_vits14_pretrain.pth")
    drawn = build_teacher("dinov2-small", (70, 70), random_weights=True, seed=4)
    assert teacher.spec.weights == state_digest(upstream.state_dict())
    exactly(teacher(pixels(70, 70, 1)), drawn(pixels(70, 70, 1)))


def test_files_saved_by_open_clip_load(tmp_path):
    torch.manual_seed(1)
    upstream = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
    torch.save({"state_dict": {f"module.{k}": v for k, v in upstream.state_dict().items()}}, tmp_path / "w.pt")
    teacher = build_teacher("open_clip:ViT-B-32/openai", (224, 224), weights=tmp_path / "w.pt")
    assert teacher.spec.weights == state_digest(upstream.visual.state_dict())


def test_the_digest_does_not_depend_on_the_size_or_the_file():
    sizes = ((224, 224), (64, 96))
    made = {build_teacher("timm:vit_tiny_patch16_224", s, random_weights=True).spec.weights for s in sizes}
    assert made == {"random:0"}
    state = {"b": torch.arange(4.0), "a": torch.ones(2, 3, dtype=torch.bfloat16), "n": torch.tensor(3)}
    backwards = dict(reversed(state.items()))
    assert state_digest(state) == state_digest(backwards)
    changed = [
        {**state, "b": torch.arange(4.0) + 1e-6},
        {**state, "b": torch.arange(4.0).reshape(2, 2)},
        {**state, "b": torch.arange(4, dtype=torch.float64)},
        {**state, "n": torch.tensor(4)},
        {"c": state["b"], "a": state["a"], "n": state["n"]},
    ]
    assert len({state_digest(s) for s in [state, *changed]}) == 6


def test_wrong_files_are_refused_with_the_keys_named(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()

    def refused(words: str, changed: dict) -> None:
        save_file(changed, tmp_path / "w.safetensors")
        with pytest.raises(TeacherUnavailable, match=words):
            build_teacher("timm:vit_tiny_patch16_224", (64, 64), weights=tmp_path / "w.safetensors")

    refused("misses norm.weight", {k: v for k, v in state.items() if k != "norm.weight"})
    refused("does not know junk", {**state, "junk": torch.zeros(1)})
    refused(r"other shapes for norm.weight \(file \(3,\)", {**state, "norm.weight": torch.zeros(3)})
    refused("NaN", {**state, "norm.weight": torch.full((192,), torch.nan)})


class Hostile:
    """Pickles to a call."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_code_in_files_is_never_run(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"norm.weight": Hostile(marker)}, tmp_path / "w.pth")
    with pytest.raises(TeacherUnavailable, match="cannot be read as weights"):
        read_state(tmp_path / "w.pth")
    assert not marker.exists()
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + b"{" * 40)
    with pytest.raises(TeacherUnavailable, match="no whole safetensors file: it announces a header"):
        read_state(tmp_path / "cut.safetensors")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "script.pt")
    with pytest.raises(TeacherUnavailable, match="TorchScript"):
        read_state(tmp_path / "script.pt")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(TeacherUnavailable, match="list"):
        read_state(tmp_path / "list.pth")
    with pytest.raises(TeacherUnavailable, match="no weights file"):
        read_state(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("name", ["dinov2-small", "open_clip:ViT-B-32/openai", "sam", "hf:facebook/dinov2-small"])
def test_without_weights_the_error_says_how_to_get_them(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("sak_core.teachers.sam.RELEASES", "http://127.0.0.1:9/")
    if name == "sam":
        monkeypatch.setattr("sak_core.teachers.sam.SAM_TYPES", {"vit_b": tiny_type()})
    with pytest.raises(TeacherUnavailable, match=r"(?s)--weights FILE.*--random-weights"):
        build_teacher(name, (96, 96))


def tiny_type():
    from sak_core.teachers.sam import SAM_TYPES

    return replace(SAM_TYPES["vit_b"], width=8, depth=1, num_heads=1, levels=(0,))


# --- names


def test_unknown_names_are_answered_with_the_nearest():
    for wrong, words in (
        ("dinvo2", "dinov2"),
        ("timm:resnet51", "resnet50"),
        ("timm:resnet50.nope", "unknown timm weights"),
        ("open_clip:ViT-B-33/openai", "ViT-B-32"),
        ("open_clip:ViT-B-32/opanai", "openai"),
        ("sam:vit_x", "vit_b"),
        ("tim:resnet50", "timm"),
        ("timm:", "names no model"),
    ):
        with pytest.raises(UnknownName, match=words):
            build_teacher(wrong, (64, 64), random_weights=not wrong.endswith("opanai"))
    with pytest.raises(UnknownName, match="clip"):
        check_teacher("clp")
    with pytest.raises(ValueError, match="not both"):
        build_teacher("dinov2", (64, 64), weights=Path("x"), random_weights=True)


def test_names_can_be_folders():
    assert part_name("open_clip:ViT-B-32/laion2b_s34b_b79k") == "open_clip-ViT-B-32-laion2b_s34b_b79k"
    assert part_name("mini-dino") == "mini-dino"


def test_the_passport_is_json():
    teacher = build_teacher("timm:resnet18", (64, 96), random_weights=True)
    told = json.loads(json.dumps(teacher.spec.to_dict()))
    assert told["grids"] == [[16, 24], [8, 12], [4, 6], [2, 3]] and told["weights"] == "random:0"
    assert set(told) == set(TeacherSpec.__dataclass_fields__)
    assert told["licence"] == "apache-2.0"
