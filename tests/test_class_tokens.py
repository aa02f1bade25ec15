"""Class tokens, from the teacher's network through the cache into the loss."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from cache.loading.loader import Loader
from cache.store import Store, find_stores
from pipeline.errors import UserError
from pipeline.extraction.running import request_of
from pipeline.recipes.arms import build_model
from pipeline.recipes.config import load_recipe, parse_set
from pipeline.runs import Places
from pipeline.training.distill import distill
from pipeline.training.targets import Targets
from sak_core.student.network import StudentNetwork
from sak_core.student.stem import normalize
from sak_core.teachers import build_teacher
from tests.conftest import TINY, answer, cache_split, logged, sak
from tests.towers import exactly, normalise, outputs_of, pixels

VIT = "timm:test_vit"
NAME = "timm-test_vit"
"""timm's small test network, with a class token."""
ASKS = f'teachers=["{NAME}", "mini-sam"]', f"loss.class_tokens={{{NAME} = 2.0}}"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of unlabelled and labelled rooms with a ViT's prefix tokens and a miniature teacher that has none."""
    folder = tmp_path_factory.mktemp("prefix")
    for split in ("unlabelled", "train"):
        done = cache_split(
            folder, split, "--teacher", f"{VIT},mini-sam", "--random-weights", "--prefix", "--grid", "3x3"
        )
        assert "mini-sam has no class or register tokens" in done.stderr
    return folder


@torch.no_grad()
def test_timm_gives_its_own_prefix_tokens() -> None:
    teacher = build_teacher("dinov2-reg-small", (96, 96), random_weights=True, prefix=True, levels=(0, 1))
    assert teacher.num_prefix == 5 and teacher.has_class_token, "a class token and four registers"
    outputs = outputs_of(teacher.net.blocks)
    found = teacher(pixels(96, 96))
    tokens = outputs[:2]
    exactly(found[2:], [t[:, :5].transpose(1, 2)[:, :, None] for t in tokens])
    exactly(found[:2], [t[:, 5:].transpose(1, 2).reshape(2, -1, *teacher.spec.grid) for t in tokens])


def test_the_cache_holds_them_beside_pooled_maps(features: Path) -> None:
    store = Store.open(find_stores(features, "rooms", "unlabelled")[0].path)
    teacher = build_teacher(VIT, (96, 96), random_weights=True, prefix=True)
    with torch.inference_mode():
        expected = teacher(torch.from_numpy(np.stack([store.pixels[i, 1] for i in range(16)])))[4:]
    for level, tokens in enumerate(expected):
        read = store.features(NAME, level, prefix=True)
        assert read.row_shape == (1, 64) and store.features(NAME, level).row_shape == (3, 3, 64)
        found = np.stack([read[i, 1] for i in range(16)])
        np.testing.assert_allclose(found, tokens[:, :, 0].transpose(1, 2).numpy(), rtol=1e-4, atol=1e-5)
    verified = answer("verify", store.path, "--live", "3")
    assert verified["problems"] == [] and verified["live"][NAME]["problems"] == []


@pytest.mark.parametrize("arm", ["sak", "many-to-one"])
def test_the_loss_is_the_weighted_cosine_of_class_tokens(features: Path, arm: str) -> None:
    recipe = load_recipe("demo", "distill", parse_set([*ASKS, f"arm={arm}", "loss.kind=cos", "batch_size=8"]))
    store = Store.open(find_stores(features, "rooms", "unlabelled")[0].path)
    model = build_model(recipe, store, ())
    assert isinstance(model, StudentNetwork)
    targets = Targets(recipe, store, recipe.teachers)
    loader = Loader(store, recipe.teachers, prefixes=[NAME], batch_size=8, num_views=1)
    batch = next(iter(loader)).to("cpu")
    output = model(normalize(batch.pixels))
    loss, terms = targets(output, batch, None)
    tokens = model.stem(normalize(batch.pixels))
    maps = [value for name, value in terms.items() if "_level" in name]
    classes = [terms[f"{NAME}_class{level}"] for level in range(1, 5)]
    assert len(maps) == 8 and len(terms) == 12
    torch.testing.assert_close(loss, sum(maps) + 2 * sum(classes))
    for level, (linear, block) in enumerate(zip(model.class_aligners[NAME], model.levels, strict=True)):
        if arm == "sak":
            path = model.paths[NAME]
            r = path.adapters[0](tokens[0])
            for number in range(block + 1):
                r = path.adapters[number + 1](r + tokens[number + 1])
            norm = path.norms[level]
        else:
            r, norm = tokens[block + 1], model.projector_norms[NAME][level]
        ours = linear(norm(r)[:, 0])
        expected = 1 - F.cosine_similarity(ours, batch.prefixes[NAME][level][:, 0]).mean()
        torch.testing.assert_close(classes[level], expected)


@pytest.mark.parametrize("kind", ["standardize", "phi-s"])
def test_a_balance_brings_class_tokens_to_one_scale(features: Path, kind: str) -> None:
    """Over the samples of the store every channel has mean 0 and variance 1, and errors keep their relative size."""
    recipe = load_recipe("demo", "distill", parse_set([*ASKS, f"loss.balance={kind}", "loss.kind=l2", "batch_size=8"]))
    store = Store.open(find_stores(features, "rooms", "unlabelled")[0].path)
    targets = Targets(recipe, store, recipe.teachers)
    count = store.spec.num_samples
    loader = Loader(store, recipe.teachers, prefixes=[NAME], batch_size=count, num_views=1, shuffle=False)
    (batch,) = [batch.to("cpu") for batch in loader]
    raw = [tokens[:, 0] for tokens in batch.prefixes[NAME]]
    balanced = [tokens[:, :, 0, 0] for tokens in targets.balanced_class_tokens(batch)[NAME]]
    for plain, tokens in zip(raw, balanced, strict=True):
        torch.testing.assert_close(tokens.mean(0), torch.zeros(64), atol=2e-3, rtol=0)
        variance = tokens.var(0, correction=0)
        if kind == "standardize":
            torch.testing.assert_close(variance, torch.ones(64), atol=2e-3, rtol=0)
        else:
            torch.testing.assert_close(variance.mean(), torch.tensor(1.0), atol=2e-3, rtol=0)
            ratio = torch.pdist(tokens) / torch.pdist(plain)
            torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), atol=0, rtol=2e-3)
    model = build_model(recipe, store, ())
    output = model(normalize(batch.pixels))
    _, terms = targets(output, batch, None)
    for level, (ours, theirs) in enumerate(zip(output.class_tokens[NAME], balanced, strict=True), 1):
        torch.testing.assert_close(terms[f"{NAME}_class{level}"], F.mse_loss(ours, theirs))


def test_registers_are_no_class_token(tmp_path: Path) -> None:
    network = "timm:vit_wee_patch16_reg1_gap_256"
    done = cache_split(tmp_path, "unlabelled", "--teacher", network, "--random-weights", "--prefix", "--grid", "3x3")
    assert f"{network} has no class token: --prefix keeps its 1 registers" in done.stderr
    name = "timm-vit_wee_patch16_reg1_gap_256"
    recipe = load_recipe("demo", "distill", parse_set([f'teachers=["{name}"]', f"loss.class_tokens={{{name} = 1.0}}"]))
    with pytest.raises(UserError, match=f"{name}'s network has registers and no class token; leave {name} out"):
        distill(recipe, tmp_path / "run", Places(tmp_path, tmp_path))
    (store,) = find_stores(tmp_path, "rooms", "unlabelled")
    assert request_of(store.teacher(name).provenance).prefix is True


@pytest.mark.slow
def test_both_stages_train_from_it_and_the_live_teacher_agrees(features: Path, tmp_path: Path) -> None:
    asked = [option for text in ASKS for option in ("--set", text)]
    common = ["--out", features, *TINY, *asked, "--set", "tasks=['depth']", "--set", "log_every=1"]
    sak("distill", "demo", *common, "--run", tmp_path / "one")
    state = load_file(next((tmp_path / "one").glob("last*/model.safetensors")))
    assert any(name.startswith(f"class_aligners.{NAME}.3") for name in state)
    terms = logged(tmp_path / "one")[0]
    assert any(key.endswith(f"{NAME}_class4") and math.isfinite(value) for key, value in terms.items())
    sak("distill", "demo", *common, "--run", tmp_path / "live", "--set", "source=live")
    live = load_file(next((tmp_path / "live").glob("last*/model.safetensors")))
    torch.testing.assert_close(live, state, rtol=1e-2, atol=1e-3)
    tune = ["finetune", "demo", *common, "--set", "validation.split=train", "--from", tmp_path / "one"]
    sak(*tune, "--run", tmp_path / "two")
    assert f"{NAME}_class1" in (tmp_path / "two" / "metrics.jsonl").read_text()
    sak(*tune, "--run", tmp_path / "without", "--set", "loss.class_tokens={}")
    assert f"{NAME}_class1" not in (tmp_path / "without" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (("loss.class_tokens={mini-sam = 1.0}",), "no class tokens of mini-sam. Cache mini-sam with --prefix"),
        (("loss.class_tokens={mini-dino = 1.0}",), "no teacher|unknown teacher"),
        ((f"loss.class_tokens={{{NAME} = [1.0, 2.0]}}",), "2 weights, but the cache has 4 levels"),
        ((ASKS[1], "loss.kind=relational"), "one token has no relations"),
    ],
)
def test_what_cannot_be_is_said(features: Path, tmp_path: Path, changes: tuple[str, ...], reason: str) -> None:
    recipe = load_recipe("demo", "distill", parse_set([ASKS[0], *changes, "batch_size=8"]))
    with pytest.raises(UserError, match=reason):
        distill(recipe, tmp_path / "run", Places(features, tmp_path))


@torch.no_grad()
def test_open_clip_and_transformers_give_their_class_tokens(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    from sak_core.teachers.hf import hf_teacher
    from sak_core.weights.teacher_weights import BuildOptions

    clip = build_teacher("open_clip:ViT-B-32", (64, 64), random_weights=True, prefix=True, levels=(0, 1))
    outputs = outputs_of(clip.net.transformer.resblocks)
    found = clip(pixels(64, 64))
    exactly(
        found,
        [
            *(t[:, 1:].transpose(1, 2).reshape(2, -1, 2, 2) for t in outputs),
            *(t[:, :1, :].transpose(1, 2)[:, :, None] for t in outputs),
        ],
    )
    config = Dinov2Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14)
    net = Dinov2Model(config)
    options = BuildOptions((56, 56), random_weights=True, prefix=True)
    teacher = hf_teacher("x", "x", net, options, (0.5,) * 3, (0.5,) * 3, "bicubic", "")
    seen = pixels(56, 56)
    states = net(normalise(seen, (0.5,) * 3, (0.5,) * 3), output_hidden_states=True).hidden_states[1:]
    assert teacher.num_prefix == 1 and teacher.has_class_token
    exactly(teacher(seen)[3:], [state[:, :1].transpose(1, 2)[:, :, None] for state in states])
