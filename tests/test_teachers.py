"""Teachers whatever their library: weights from files, hostile ones among them, and names."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.advice import advised
from sak_common.names import UnknownName, part_name
from sak_core.errors import TeacherUnavailable
from sak_core.interfaces.teacher import TeacherSpec
from sak_core.teachers import build_teacher, check_teacher
from sak_core.weights.digests import state_digest
from sak_core.weights.teacher_weights import seeded
from tests.towers import exactly, pixels


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
    # the text tower, which a teacher leaves where it is, is a small one: the file is 240 MB less
    text = {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 1, "layers": 2}
    upstream = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, text_cfg=text)
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

    refused("missing: norm.weight", {k: v for k, v in state.items() if k != "norm.weight"})
    refused("left over: junk", {**state, "junk": torch.zeros(1)})
    refused(r"another shape: norm.weight \(3,\) instead of \(192,\)", {**state, "norm.weight": torch.zeros(3)})
    refused("NaN", {**state, "norm.weight": torch.full((192,), torch.nan)})


def test_no_file_is_refused(tmp_path):
    with pytest.raises(TeacherUnavailable, match="no weights file"):
        build_teacher("timm:vit_tiny_patch16_224", (64, 64), weights=tmp_path / "nowhere.pth")


OWN_OR_NONE = "no weights for .*--weights FILE.*--random-weights"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dinov2-small", OWN_OR_NONE),
        ("open_clip:ViT-B-32/openai", OWN_OR_NONE),
        ("sam", OWN_OR_NONE),
        ("hf:facebook/dinov2-small", r"no settings for .*config\.json"),
    ],
)
def test_without_a_hub_the_error_says_what_to_do(name, words, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("sak_core.teachers.sam.RELEASES", "http://127.0.0.1:9/")
    if name == "sam":
        monkeypatch.setattr("sak_core.teachers.sam.SAM_TYPES", {"vit_b": tiny_type()})
    with pytest.raises(TeacherUnavailable) as refused:
        build_teacher(name, (96, 96))
    assert re.search(words, advised(refused.value), re.DOTALL)


def tiny_type():
    from sak_core.teachers.sam import SAM_TYPES

    return replace(SAM_TYPES["vit_b"], width=8, depth=1, num_heads=1, levels=(0,))


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
    assert part_name("timm:resnet50.a1_in1k") == "timm-resnet50-a1_in1k", "a dot would end a module's name"


def test_the_spec_is_json():
    teacher = build_teacher("timm:resnet18", (64, 96), random_weights=True)
    told = json.loads(json.dumps(teacher.spec.to_dict()))
    assert told["grids"] == [[16, 24], [8, 12], [4, 6], [2, 3]] and told["weights"] == "random:0"
    assert set(told) == set(TeacherSpec.__dataclass_fields__)
    assert told["licence"] == "apache-2.0"
