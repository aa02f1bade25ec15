"""Variations of the student, its losses and what trains: each is one key of a recipe, run through the command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pipeline.recipes.config import Recipe
from pipeline.recipes.tables import Loss, StudentOptions
from sak_core.losses.balance import BALANCES
from sak_core.losses.rows import DISTILLATION
from sak_core.student.decoder import ROUTERS
from sak_core.student.decoders import DECODERS
from sak_core.student.heads import HEADS
from sak_core.student.network import ADAPTERS
from sak_core.student.parts import TRAINS
from tests.conftest import logged, refusal, sak
from tests.fields import toml

VARIATIONS = {
    "token": {"student.router": "token"},
    "no router": {"student.router": "none"},
    "linear": {"student.head": "linear"},
    "dpt": {"student.head": "dpt"},
    "no adapter": {"student.adapter": "none"},
    "no stage1": {"stage1": "off"},
    "adapters": {"trains": "adapters"},
    "routers": {"trains": "routers"},
    "alpha 0": {"loss.alpha": 0.0},
    "two teachers": {"teachers": ["mini-dino", "mini-sam"]},
    "cos": {"loss.kind": "cos"},
    "l2": {"loss.kind": "l2"},
    "relational": {"loss.kind": "relational"},
    "cos and relational": {"loss.kind": "cos", "loss.relational": 2.0},
    "standardize": {"loss.balance": "standardize"},
    "phi-s": {"loss.balance": "phi-s"},
    "weights": {"loss.level_weights": {"mini-dino": [0.0, 1.0, 1.0, 2.0], "mini-sam": 0.5}},
    "dropping": {"loss.drop_teachers": 0.5},
    "checkpointing": {"student.checkpointing": True},
}
PLACE = 'test = { dataset = "rooms", split = "test", size = "96x96" }\n'
BASE = {
    "steps": 2,
    "batch_size": 8,
    "tasks": ["semseg"],
    "log_every": 1,
    "student.stem.depth": 4,
    "student.stem.weights": "",
}
SMALL = [part for key, value in BASE.items() for part in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def study(features: Path, module_folder: Path) -> Path:
    """A finished study of all variations of one arm."""
    path = module_folder / "all.toml"
    rows = "".join(f'[[variations]]\nname = "{name}"\nset = {toml(changes)}\n' for name, changes in VARIATIONS.items())
    path.write_text(f'recipe = "demo"\narms = ["sak"]\nbaseline = "sak"\nset = {toml(BASE)}\n{PLACE}{rows}')
    sak("ablate", path, "--out", features, "--runs", module_folder / "runs")
    return module_folder / "runs" / "all"


def weights(study: Path, name: str, stage: str = "finetune") -> dict[str, torch.Tensor]:
    return load_file(study / f"{name.replace(' ', '-')}-seed0-{stage}" / "last" / "model.safetensors")


def terms(study: Path, name: str, stage: str = "distill", step: int = 1) -> dict[str, float]:
    line = logged(study / f"{name.replace(' ', '-')}-seed0-{stage}")[step - 1]
    return {name: value for name, value in line.items() if "/" not in name}  # without cosines and router weights


def test_every_variation_is_trained_and_scored(study: Path) -> None:
    table = json.loads((study / "table.json").read_text())
    assert [row["arm"] for row in table["rows"]] == ["constant", "sak", *VARIATIONS]
    assert all(row["parameters"] for row in table["rows"][1:])


def test_stage_1_is_trained_once_where_it_is_the_same(study: Path) -> None:
    own = {path.name.removesuffix("-seed0-distill") for path in study.glob("*-distill")}
    shared = {"token", "no-router", "linear", "dpt", "no-stage1", "routers", "alpha-0"}
    assert own == {"sak", *(name.replace(" ", "-") for name in VARIATIONS)} - shared


def test_what_is_frozen_stays_and_the_rest_learns(study: Path) -> None:
    start = weights(study, "sak", "distill")
    end = weights(study, "routers")
    assert all(torch.equal(end[name], start[name]) for name in start if "running" not in name)
    own = weights(study, "adapters", "distill")
    end = weights(study, "adapters")
    stem = {name for name in own if name.startswith("stem.")}
    assert {name for name in own if torch.equal(end[name], own[name])} == stem


def test_losses_balance_and_weights_reach_the_step(study: Path) -> None:
    plain, halves = terms(study, "sak"), terms(study, "weights")
    level = "mini-dino_level1"
    assert terms(study, "cos")[level] != plain[level]
    assert 0 <= terms(study, "cos")[level] <= 2
    assert halves[level] == plain[level], "terms are shown without their weights"
    named = {name: value for name, value in plain.items() if "_level" in name}
    assert plain["loss"] == pytest.approx(sum(named.values()), rel=1e-5)
    factors = {"mini-dino": (0, 1, 1, 2), "mini-clip": (1, 1, 1, 1), "mini-sam": (0.5,) * 4}
    expected = sum(value * factors[name[:-7]][int(name[-1]) - 1] for name, value in named.items())
    assert halves["loss"] == pytest.approx(expected, rel=1e-5)
    # against features of variance 1 a student that predicts next to nothing has a squared error of about 1
    for balance in ("standardize", "phi-s"):
        assert terms(study, balance)["loss"] != plain["loss"]
    both, cosine = terms(study, "cos and relational"), terms(study, "cos")
    relational = terms(study, "relational")
    assert both["loss"] == pytest.approx(cosine["loss"] + 2 * relational["loss"], rel=1e-4)
    # whoever is dropped, a row's hardest teacher stays: the mean over what is left is not below the mean over all
    assert terms(study, "dropping")["loss"] >= plain["loss"] * 0.999
    assert terms(study, "dropping")["loss"] != plain["loss"]


def test_alpha_0_reads_no_teacher_and_two_teachers_are_two(study: Path) -> None:
    assert not [name for name in terms(study, "alpha 0", "finetune") if "_level" in name]
    assert {name[:-7] for name in terms(study, "two teachers") if "_level" in name} == {"mini-dino", "mini-sam"}


def test_checkpointing_changes_no_bit(study: Path) -> None:
    plain, recomputed = weights(study, "sak"), weights(study, "checkpointing")
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_no_stage_1_starts_from_the_stem(study: Path) -> None:
    assert json.loads((study / "no-stage1-seed0-finetune" / "results.json").read_text())["stage1"] is None


def test_lora_is_a_variation_too(features: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA rows come through peft")
    options = ["--out", features, *SMALL, "--set", "student.adapter=lora"]
    sak("distill", "demo", "--run", tmp_path / "a", *options, "--set", "trains=adapters")
    trained = load_file(tmp_path / "a" / "last" / "model.safetensors")
    assert sum(".lora_A." in name for name in trained) == 4 * 3
    learned = [name for name in trained if ".lora_B." in name and trained[name].any()]
    assert len(learned) == 4 * 3, "B starts at zero"
    untrained = {name: tensor for name, tensor in trained.items() if "base_layer" in name}
    sak("distill", "demo", "--run", tmp_path / "b", *SMALL, "--out", features, "--set", "trains=adapters")
    other = load_file(tmp_path / "b" / "last" / "model.safetensors")
    for name, tensor in untrained.items():
        assert torch.equal(tensor, other[name.replace("base_layer.", "")]), "a frozen stem is the seed's own"


@pytest.mark.slow
def test_the_stems_weights_come_from_a_file(features: Path, tmp_path: Path) -> None:
    vit = timm.create_model("vit_tiny_patch16_384", img_size=64, num_classes=10)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'teachers = ["mini-sam"]\nsteps = 1\nbatch_size = 2\ntrains = "adapters"\n'
        f'student = {{ stem = {{ name = "vit_tiny_patch16_384", weights = "{tmp_path}/vit.safetensors" }} }}\n'
        '[distill]\ndata = { dataset = "rooms", split = "unlabelled" }\n'
    )
    sak("distill", recipe, "--out", features, "--run", tmp_path / "run")
    trained = load_file(tmp_path / "run" / "last" / "model.safetensors")
    resampled = timm.layers.resample_abs_pos_embed(vit.pos_embed, [6, 6], num_prefix_tokens=1, antialias=False)
    torch.testing.assert_close(trained["stem.vit.pos_embed"], resampled)
    assert torch.equal(trained["stem.vit.blocks.3.mlp.fc1.weight"], vit.state_dict()["blocks.3.mlp.fc1.weight"])

    def refused(weights: str) -> str:
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
        where = ["--out", features, "--run", tmp_path / "no", "--set", f"student.stem.weights={weights}"]
        return refusal("distill", recipe, *where, env=offline)

    assert "the hub did not give them" in refused("hub") and ".npz" in refused("hub")
    assert "nowhere.pth" in refused("nowhere.pth")


def test_the_choices_are_those_of_the_core() -> None:
    def choices(model: type, field: str) -> set[str]:
        return set(model.model_fields[field].annotation.__args__)

    assert choices(StudentOptions, "router") == set(ROUTERS)
    assert choices(StudentOptions, "head") == set(HEADS)
    assert choices(StudentOptions, "decoder") == {"none", *DECODERS}
    for name, sizes in DECODERS.items():  # one recipe has both tables, and an arm takes its own
        assert getattr(StudentOptions(), name).model_dump() == {
            key: value for key, value in asdict(sizes()).items() if key != "kind"
        }
    assert choices(StudentOptions, "adapter") == set(ADAPTERS)
    assert choices(Recipe, "trains") == set(TRAINS)
    assert choices(Loss, "kind") == set(DISTILLATION)
    assert choices(Loss, "balance") == set(BALANCES)


@pytest.mark.parametrize(
    ("assignment", "hint"),
    [
        ("student.router=more", "unknown student.router 'more'; did you mean mor"),
        ("student.head=dtp", "did you mean dpt"),
        ("loss.kind=cos+l2", "did you mean"),
        ("loss.balance=phis", "did you mean phi-s"),
        ("trains=router", "did you mean routers"),
        ('loss.level_weights={"mini-dion"=1.0}', "unknown teacher 'mini-dion'; did you mean mini-dino"),
        ('loss.level_weights={"mini-dino"=[1.0, 2.0]}', "2 weights, but the cache has 4 levels"),
        ("trains=routers", "belongs to stage 2"),
        ("loss.drop_teachers=1.5", "drop_teachers"),
    ],
)
def test_wrong_values_are_answered_with_right_ones(features: Path, tmp_path: Path, assignment: str, hint: str) -> None:
    from pipeline.errors import UserError
    from pipeline.recipes.config import load_recipe, parse_set
    from pipeline.runs import Places
    from pipeline.training.distill import distill

    with pytest.raises(UserError) as caught:
        recipe = load_recipe("demo", "distill", {**BASE, **parse_set([assignment])})
        distill(recipe, tmp_path / "run", Places(features, tmp_path))
    assert hint in str(caught.value)
