"""Weights as people's files hold them: under wrappers and prefixes, beside others, named wherever they are used."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from sak_core.errors import TeacherUnavailable
from sak_core.miniature.network import shipped_weights
from sak_core.student.initial_weights import load_vit
from sak_core.student.stem import Stem, StemConfig
from sak_core.teachers import build_teacher
from sak_core.weights.digests import state_digest
from sak_core.weights.teacher_weights import seeded
from sak_core.weights.tensor_files import RefusedFile, State, read_tensors
from tests.conftest import answer, refusal, sak
from tests.test_teachers_hf import hf_folder

NAME = "test_vit"


@pytest.fixture(scope="module")
def state() -> State:
    with seeded(3):
        return dict(timm.create_model(NAME, num_classes=0).state_dict())


def under(prefix: str, state: State, shift: float = 0.0) -> State:
    return {prefix + name: value + shift if value.is_floating_point() else value for name, value in state.items()}


def in_a_block(mark: str, state: State) -> State:
    """As torch names what it wraps within a network."""
    return {name.replace("blocks.1.", f"blocks.1.{mark}"): value for name, value in state.items()}


FLAT: dict[str, tuple[Callable[[State], State], str]] = {
    "plain": (lambda s: s, ""),
    "DataParallel": (lambda s: under("module.", s), "module"),
    "torch.compile": (lambda s: under("_orig_mod.", s), "_orig_mod"),
    "compiled block": (lambda s: in_a_block("_orig_mod.", s), "without _orig_mod."),
    "FSDP": (
        lambda s: under("_fsdp_wrapped_module.", in_a_block("_fsdp_wrapped_module.", s)),
        "_fsdp_wrapped_module without _fsdp_wrapped_module.",
    ),
    "Lightning": (lambda s: {**under("model.", s), "criterion.weight": torch.ones(3)}, "model"),
    "DINO, flat": (
        lambda s: {**under("teacher.backbone.", s), "teacher.dino_head.last.weight": torch.ones(2)},
        "teacher.backbone",
    ),
    "averaged": (lambda s: {**under("module.", s), "n_averaged": torch.tensor(3)}, "module"),
    "classifier": (lambda s: {**under("net.", s), "net.head.weight": torch.ones(2, 2)}, "net"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("make", "where"), FLAT.values(), ids=FLAT)
def test_one_prefix_that_makes_all_names_fit_is_taken(
    make: Callable[[State], State], where: str, suffix: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save(make(state), path) if suffix == ".pth" else save_file(make(state), path)
    teacher = build_teacher(f"timm:{NAME}", (64, 64), weights=path)
    assert teacher.spec.weights == state_digest(state) and teacher.weights_from == where


WRAPPED: dict[str, tuple[Callable[[State], object], str]] = {
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3}, "state_dict"),
    "model, with the script's arguments": (
        lambda s: {
            "model": s,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
            "args": argparse.Namespace(lr=1),
        },
        "model",
    ),
    "Lightning": (lambda s: {"state_dict": under("model.", s), "callbacks": {}}, "state_dict.model"),
    "DINOv2": (
        lambda s: {"teacher": {**under("backbone.", s), "dino_head.mlp.0.weight": torch.ones(2)}},
        "teacher.backbone",
    ),
    "averaged alone": (lambda s: {"model_ema": s, "decay": 0.99}, "model_ema"),
    "two deep": (lambda s: {"checkpoint": {"net": {"weights": s}}}, "checkpoint.net.weights"),
}


@pytest.mark.parametrize(("make", "where"), WRAPPED.values(), ids=WRAPPED)
def test_one_wrapper_is_taken(make: Callable[[State], object], where: str, state: State, tmp_path: Path) -> None:
    torch.save(make(state), tmp_path / "w.pth")
    teacher = build_teacher(f"timm:{NAME}", (64, 64), weights=tmp_path / "w.pth")
    assert teacher.spec.weights == state_digest(state) and teacher.weights_from == where


SEVERAL: dict[str, tuple[Callable[[State, State], object], str, str]] = {
    "timm's EMA": (lambda a, b: {"state_dict": a, "state_dict_ema": b}, "state_dict", "state_dict_ema"),
    "DeiT's EMA": (lambda a, b: {"model": a, "model_ema": b}, "model", "model_ema"),
    "beside the names themselves": (lambda a, b: {**a, "ema": b}, "its own names", "ema"),
    "DINO": (
        lambda a, b: {"student": under("module.backbone.", a), "teacher": under("module.backbone.", b)},
        "student.module.backbone",
        "teacher",
    ),
    "flat": (lambda a, b: {**under("encoder_q.", a), **under("encoder_k.", b)}, "encoder_q", "encoder_k."),
}


@pytest.mark.parametrize(("make", "first", "second"), SEVERAL.values(), ids=SEVERAL)
def test_several_that_fit_are_refused_until_one_is_chosen(
    make: Callable[[State, State], object], first: str, second: str, state: State, tmp_path: Path
) -> None:
    path, other = tmp_path / "w.pth", under("", state, 0.5)
    torch.save(make(state, other), path)
    with pytest.raises(TeacherUnavailable, match=f"fits .* in 2 places: {first}.*{second.rstrip('.')}.*{path}::"):
        build_teacher(f"timm:{NAME}", (64, 64), weights=path)
    chosen = build_teacher(f"timm:{NAME}", (64, 64), weights=Path(f"{path}::{second}"))
    assert chosen.spec.weights == state_digest(other)
    with pytest.raises(TeacherUnavailable, match="holds nothing under 'stat'"):
        build_teacher(f"timm:{NAME}", (64, 64), weights=Path(f"{path}::stat"))


def test_a_file_whose_name_holds_the_mark_is_itself(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "state_dict_ema": under("", state, 0.5)}, tmp_path / "a::b.pth")
    with pytest.raises(TeacherUnavailable, match="2 places"):
        build_teacher(f"timm:{NAME}", (64, 64), weights=tmp_path / "a::b.pth")
    chosen = build_teacher(f"timm:{NAME}", (64, 64), weights=tmp_path / "a::b.pth::state_dict")
    assert chosen.spec.weights == state_digest(state)


def test_what_does_not_fit_is_said_in_prefixes(state: State, tmp_path: Path) -> None:
    def refused(content: State, words: str) -> None:
        save_file(content, tmp_path / "w.safetensors")
        with pytest.raises(TeacherUnavailable, match=words):
            build_teacher(f"timm:{NAME}", (64, 64), weights=tmp_path / "w.safetensors")

    lacking = {name: value for name, value in state.items() if name != "norm.weight"}
    refused(under("module.", lacking), "fit the network under 'module': missing: norm.weight$")
    refused({**under("a.", state), "a.junk": torch.ones(1)}, "under 'a': left over: junk$")
    wrong = {**state, "norm.weight": torch.ones(3)}
    refused(under("a.", wrong), r"under 'a': of another shape: norm.weight \(3,\)")
    other = {f"layer{i}.conv.weight": torch.ones(2) for i in range(4)}
    refused(other, "no wrapper or prefix .* begin with layer0, layer1, layer2, layer3, the network's with blocks, cls")
    refused(under("module.", {**state, "norm.weight": torch.full_like(state["norm.weight"], torch.nan)}), "NaN")


def test_hostile_nesting_is_read_in_bounds(tmp_path: Path) -> None:
    """A mapping within itself, and one whose copies double at every step, are looked into once."""
    loop: dict[str, object] = {"w": torch.ones(2)}
    loop["again"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    assert read_tensors(tmp_path / "loop.pth").keys() == {"w"}
    doubling: dict[str, object] = {"w": torch.ones(2)}
    for _ in range(60):
        doubling = {"a": doubling, "b": doubling}
    torch.save(doubling, tmp_path / "doubling.pth")
    with pytest.raises(RefusedFile, match="no named tensors"):
        read_tensors(tmp_path / "doubling.pth")


def test_files_that_are_read_for_their_names_are_unwrapped(state: State, tmp_path: Path) -> None:
    for number, content in enumerate(
        [under("module.", state), {"teacher": state}, {"model": under("_orig_mod.", state)}]
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        assert read_tensors(tmp_path / f"{number}.pth").keys() == state.keys()
    save_file(under("module.", state), tmp_path / "w.safetensors")
    assert read_tensors(tmp_path / "w.safetensors").keys() == state.keys()
    for twins in ({"model": state, "model_ema": {**state}}, {"a": state, "b": {**state}}, {**state, "ema": state}):
        torch.save(twins, tmp_path / "w.pth")
        with pytest.raises(RefusedFile, match="several state dicts"):
            read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize("prefix", ["module.", "model.vision_tower."])
def test_transformers_networks_are_found_under_a_prefix(prefix: str, tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    with seeded(1):
        upstream = Dinov2Model(config)
    folder, path = hf_folder(tmp_path / "m", upstream), tmp_path / "w.pth"
    torch.save({"state_dict": under(prefix, upstream.state_dict()), "epoch": 1}, path)
    teacher = build_teacher(f"hf:{folder}", (28, 28), weights=path)
    assert teacher.spec.weights == state_digest(upstream.state_dict())
    assert teacher.weights_from == f"state_dict.{prefix}".rstrip(".")
    torch.save({"teacher": upstream.state_dict(), "student": upstream.state_dict()}, path)
    with pytest.raises(TeacherUnavailable, match="2 places: teacher, student"):
        build_teacher(f"hf:{folder}", (28, 28), weights=path)
    torch.save({f"x.{name}": value for name, value in upstream.state_dict().items() if "mask" in name}, path)
    with pytest.raises(TeacherUnavailable, match="does not fit Dinov2Model: no wrapper or prefix"):
        build_teacher(f"hf:{folder}", (28, 28), weights=path)


def test_a_stem_takes_weights_under_a_prefix_and_says_so(state: State, tmp_path: Path) -> None:
    stem = Stem(StemConfig("vit_tiny_patch16_384", (64, 64)))
    vit = timm.create_model("vit_tiny_patch16_384", img_size=64, num_classes=0)
    torch.save({"student": {}, "teacher": under("backbone.", vit.state_dict())}, tmp_path / "w.pth")
    assert load_vit(stem, tmp_path / "w.pth") == "teacher.backbone"
    assert torch.equal(stem.vit.blocks[3].attn.qkv.weight, vit.blocks[3].attn.qkv.weight)
    torch.save({"model": vit.state_dict(), "model_ema": under("", vit.state_dict(), 1.0)}, tmp_path / "w.pth")
    with pytest.raises(RefusedFile, match="fits the stem vit_tiny_patch16_384 in 2 places: model, model_ema"):
        load_vit(stem, tmp_path / "w.pth")
    assert load_vit(stem, f"{tmp_path / 'w.pth'}::model") == "model"


def test_the_store_names_where_weights_came_from_and_their_digest_decides(tmp_path: Path) -> None:
    """Through the command line: an ambiguous file is refused by plan and cache, the choice is said and stored; the same
    tensors from another file finish the store, others do not."""
    own = load_file(shipped_weights("mini-dino"))
    path, plain = tmp_path / "both.pth", tmp_path / "plain.safetensors"
    torch.save({"teacher": under("module.", own), "student": under("module.", own, 0.25)}, path)
    save_file(own, plain)
    common = ("--teacher", "mini-dino", "--split", "unlabelled", "--limit", "4", "--threads", "1", "--decoders", "0")
    out = ("--out", tmp_path / "features")
    for command in (("cache",), ("cache", "--dry-run"), ("plan",)):
        said = refusal(*command, *common, *out, "--views", "1", "--weights", path)
        assert "in 2 places: teacher.module, student.module" in said, command
    assert not (tmp_path / "features").exists()
    done = sak("cache", *common, *out, "--views", "1", "--weights", f"{path}::teacher", "--json")
    assert "under 'teacher.module'" in done.stderr
    store = json.loads(done.stdout)["store"]
    provenance = answer("info", store)["teachers"]["mini-dino"]["provenance"]
    assert provenance["notes"] == {"weights_from": "teacher.module"}
    assert provenance["teacher"]["weights"] == state_digest(own)
    assert "in their file under 'teacher.module'" in sak("info", store).stdout
    assert "teacher.weights" in refusal("cache", *common, *out, "--views", "2", "--weights", f"{path}::student")
    sak("cache", *common, *out, "--views", "2", "--weights", plain)
    assert sak("verify", store, "--live", "2", "--weights", plain, check=False).returncode == 0
    after = answer("info", store)["teachers"]["mini-dino"]["provenance"]
    assert after == provenance, "what was written first stays"


def test_plan_and_dry_run_look_at_the_file_as_the_run_will(tmp_path: Path) -> None:
    common = ("--teacher", "mini-dino", "--split", "unlabelled", "--limit", "4", "--views", "1", "--decoders", "0")
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    for name, words in (("none.pth", "no weights"), ("w.safetensors", "does not fit")):
        for command in (("cache",), ("cache", "--dry-run"), ("plan",)):
            said = refusal(*command, *common, "--out", tmp_path, "--weights", tmp_path / name)
            assert words in said and str(tmp_path / name) in said
