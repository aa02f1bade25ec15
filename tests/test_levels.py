"""Teachers of one, two and five levels beside one of four: cached, matched by depth, distilled, tuned, scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cache.store import find_stores
from pipeline.errors import UserError
from pipeline.recipes.arms import build_model, matches_of
from pipeline.recipes.config import load_recipe, parse_set
from tests.conftest import TINY, logged, refusal, sak

CNN = "timm-test_resnet"
TEACHERS = f"teachers=['mini-dino', 'mini-sam', 'mini-clip', '{CNN}']"
COMMON = ["--set", TEACHERS, "--set", "tasks=['depth', 'semseg']", *TINY, "--set", "log_every=1"]
MATCHES = {"mini-dino": [3], "mini-sam": [1, 2], CNN: [0, 1, 2, 2, 3]}
"""By depth: a stem of 6 blocks is tapped after 1, 3, 4 and 6 of them."""


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small caches, of the last block of mini-dino, the two in the middle of mini-sam, all four blocks of
    mini-clip and all five stages of a CNN."""
    folder = tmp_path_factory.mktemp("levels")
    asked = [("mini-dino", "3"), ("mini-sam", "1,2"), ("mini-clip", ""), ("timm:test_resnet", "0,1,2,3,4")]
    for split, samples, views in (("unlabelled", "16", "2"), ("train", "16", "2"), ("val", "4", "1")):
        for name, chosen in asked:
            sak(
                "cache", "--split", split, "--limit", samples, "--views", views, "--teacher", name, "--levels", chosen,
                "--threads", "1", "--decoders", "0", "--out", folder,
                *(["--random-weights"] if name.startswith("timm") else []),
            )  # fmt: skip
    return folder


def recipe_of(stage: str, *changes: str):
    return load_recipe("demo", stage, parse_set([TEACHERS, "data.split=unlabelled", *changes]))


@pytest.mark.slow
def test_both_stages_and_every_arm_take_them(levels: Path, tmp_path: Path) -> None:
    done = sak("distill", "demo", "--out", levels, "--run", tmp_path / "one", *COMMON)
    for name, matched in MATCHES.items():
        pairs = ", ".join(f"{theirs} with {ours}" for theirs, ours in enumerate(matched))
        assert f"{name}: its levels are compared with the student's" in done.stderr and pairs in done.stderr
    assert "mini-clip: its levels" not in done.stderr, "as many: each with its own"
    first = logged(tmp_path / "one")[0]
    for name, count in (("mini-dino", 1), ("mini-sam", 2), ("mini-clip", 4), (CNN, 5)):
        assert [f"{name}_level{n}" in first for n in range(1, 7)] == [n <= count for n in range(1, 7)]
    assert json.loads((tmp_path / "one" / "model.json").read_text())["student"]["matches"] == MATCHES
    sak("finetune", "demo", "--out", levels, "--from", tmp_path / "one", "--run", tmp_path / "two", *COMMON)
    sak("export", tmp_path / "two", tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["student"]["matches"] == MATCHES
    for arm in ("many-to-one", "teachers", "teacher:mini-dino", f"teacher:{CNN}"):
        stages = ["--set", f"arm={arm}"]
        begun: list[str | Path] = []
        if arm == "many-to-one":
            sak("distill", "demo", "--out", levels, "--run", tmp_path / "many", *COMMON, *stages)
            begun = ["--from", tmp_path / "many"]
        sak("finetune", "demo", "--out", levels, *begun, "--run", tmp_path / arm.replace(":", "-"), *COMMON, *stages)


def test_where_levels_lie_is_known_of_blocks_that_were_chosen(levels: Path) -> None:
    """The second and third of four blocks lie at 1/2 and 3/4, though they are all that is cached."""
    recipe = recipe_of("distill")
    (store,) = find_stores(levels, "rooms", "unlabelled")
    assert {name: list(own) for name, own in matches_of(recipe, store).items()} == MATCHES
    assert store.teacher("mini-sam").provenance["notes"] == {"num_blocks": 4}
    assert "notes" not in store.teacher("mini-clip").provenance, "of a teacher's own levels nothing is to be said"
    deeper = matches_of(recipe_of("distill", "student.levels=[1, 4, 5]"), store)
    assert deeper == {"mini-dino": (2,), "mini-sam": (0, 1), "mini-clip": (0, 0, 1, 2), CNN: (0, 0, 1, 1, 2)}
    assert matches_of(recipe_of("distill", "arm=teachers"), store) == {}


def test_a_recipe_says_which(levels: Path, tmp_path: Path) -> None:
    chosen = ["loss.match_levels.mini-dino=[0]", "loss.match_levels.mini-clip=[3, 3, 3, 3]"]
    (store,) = find_stores(levels, "rooms", "unlabelled")
    recipe = recipe_of("distill", *chosen)
    model = build_model(recipe, store, ())
    assert model.matches["mini-dino"] == (0,) and model.matches["mini-clip"] == (3,) * 4
    assert model.matches["mini-sam"] == tuple(MATCHES["mini-sam"]), "of the others the nearest in depth"
    for wrong, words in (
        ("loss.match_levels.mini-dino=[4]", r"loss.match_levels.mini-dino = \[4\]: one of the student's levels 0..3"),
        ("loss.match_levels.mini-sam=[1]", "for each of the 2 levels in the cache"),
        ("loss.match_levels.mini-sma=[1]", "unknown teacher 'mini-sma'; did you mean mini-sam"),
    ):
        with pytest.raises(UserError, match=words):
            matches_of(recipe_of("distill", wrong), store)
    own = [option for text in chosen for option in ("--set", text)]
    sak("distill", "demo", "--out", levels, "--run", tmp_path / "one", *COMMON, *own)
    tune = ["finetune", "demo", "--out", levels, "--from", tmp_path / "one", *COMMON]
    assert "compared the levels of mini-" in refusal(*tune, "--run", tmp_path / "other")
    sak(*tune, "--run", tmp_path / "two", *own)


@pytest.mark.slow
def test_two_processes_train_paths_of_which_some_norms_wait(levels: Path, tmp_path: Path) -> None:
    """Norms of levels that no level of a teacher is compared with get no gradient in stage 1; training goes on."""
    sak("distill", "demo", "--out", levels, "--run", tmp_path / "one", *COMMON, "--devices", "2")
    state = load_file(next((tmp_path / "one").glob("last*/model.safetensors")))
    assert bool((state["paths.mini-dino.norms.0.weight"] == 1).all())
    assert not bool((state["paths.mini-dino.norms.3.weight"] == 1).all())
