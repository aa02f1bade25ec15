"""Recipes: layers, overrides, and errors that name the right key."""

from __future__ import annotations

import json
from inspect import isclass
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline.errors import UserError
from pipeline.recipes.config import MOVED, Recipe, load_recipe, load_study, parse_set, recipe_json, recipe_names
from pipeline.recipes.stores import parse_size
from pipeline.recipes.tables import Schedule
from pipeline.runs import read_recipe
from pipeline.training.loop import learning_rate
from tests.conftest import refusal


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_reads_in_some_stage(name: str) -> None:
    stages = 0
    for stage in ("distill", "finetune"):
        try:
            assert load_recipe(name, stage).stage == stage
            stages += 1
        except UserError as error:
            assert "has no" in str(error)
    assert stages


def test_a_stage_table_lies_over_common_keys_and_set_over_both() -> None:
    plain = load_recipe("demo", "distill")
    changed = load_recipe("demo", "distill", parse_set(["optimizer.lr=1e-4", "arm=many-to-one"]))
    assert changed.optimizer.lr == 1e-4
    assert changed.arm == "many-to-one"
    assert changed.optimizer.weight_decay == plain.optimizer.weight_decay
    assert load_recipe("demo", "finetune").data.split == "train"
    assert plain.data.split == "unlabelled"


@pytest.mark.parametrize(
    ("assignment", "hint"),
    [
        ("optimizer.lrr=1", "did you mean lr?"),
        ("batchsize=4", "did you mean batch_size"),
        ("student.stem.widht=4", "did you mean width or weights?"),
        ("loss=cos", "loss is loss.kind now"),
        ("shuffle_rows=8", "shuffle_rows is loader.buffer_rows now"),
        ("steps=-1", "steps"),
        ("steps=many", "steps"),
        ("optimizer.lr", "KEY=VALUE"),
    ],
)
def test_wrong_keys_and_values_are_named(assignment: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint.replace("?", r"\?")):
        load_recipe("demo", "distill", parse_set([assignment]))


def test_unknown_recipe_and_missing_file() -> None:
    with pytest.raises(UserError, match="did you mean demo"):
        load_recipe("demmo", "distill")
    with pytest.raises(UserError, match=r"no recipe file nowhere\.toml"):
        load_recipe("nowhere.toml", "distill")


def test_broken_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("steps = = 3")
    with pytest.raises(UserError, match=r"mine\.toml: not valid TOML"):
        load_recipe(str(path), "distill")


@pytest.mark.parametrize("text", ["", "96x", "0", "axb", "1x2x3"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UserError, match="expected S or HxW"):
        parse_size(text)


def test_schedules_meet_their_published_ends() -> None:
    cosine = Schedule(kind="cosine", warmup_steps=10, final_lr=1.25e-6)
    assert learning_rate(cosine, 1e-3, 0, 110) == pytest.approx(1.25e-7)
    assert learning_rate(cosine, 1e-3, 10, 110) == pytest.approx(1e-3)
    assert learning_rate(cosine, 1e-3, 60, 110) == pytest.approx((1e-3 + 1.25e-6) / 2)
    assert learning_rate(cosine, 1e-3, 110, 110) == pytest.approx(1.25e-6)
    polynomial = Schedule(kind="polynomial")
    assert learning_rate(polynomial, 2e-5, 20_000, 40_000) == pytest.approx(2e-5 * 0.5**0.9)


def test_a_list_written_as_one_value_or_one_table_is_told_its_brackets(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    head = 'recipe = "demo"\narms = {arms}\ntest = {{ dataset = "rooms", split = "test" }}\n'
    path.write_text(head.format(arms='["sak"]') + '[variations.token]\nset = { "student.router" = "token" }\n')
    with pytest.raises(UserError, match=r"variations: a list is expected: write \[\[variations\]\] over each"):
        load_study(str(path))
    path.write_text(head.format(arms='"sak"'))
    with pytest.raises(UserError, match=r"arms: a list is expected: write \[\.\.\.\] \(got 'sak'\)"):
        load_study(str(path))


def test_a_recipe_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes("# Prüfung\n[distill]\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.toml: not valid TOML: .*utf-8"):
        load_recipe(str(path), "distill")


def test_a_recipe_may_begin_with_the_mark_that_editors_on_windows_write(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    text = 'recipe = "demo"\narms = ["sak"]\ntest = { dataset = "rooms", split = "test" }\n'
    path.write_text(text, encoding="utf-8-sig")
    assert load_study(str(path)).arms == ("sak",)


def tables() -> dict[str, type[BaseModel]]:
    """A recipe's tables, by name."""
    kinds = {name: field.annotation for name, field in Recipe.model_fields.items()}
    options = {name: [kind, *getattr(kind, "__args__", ())] for name, kind in kinds.items()}
    return {
        name: one for name, kinds in options.items() for one in kinds if isclass(one) and issubclass(one, BaseModel)
    }


def test_keys_that_moved_are_told_where_they_stand() -> None:
    for key, now in MOVED.items():
        table, _, name = now.partition(".")
        assert name in tables()[table].model_fields
        with pytest.raises(UserError, match=f"{key} is {now} now"):
            load_recipe("demo", "distill", {key: 1})


def test_a_run_of_another_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    kept = json.loads(recipe_json(load_recipe("demo", "distill")))
    (tmp_path / "recipe.json").write_text(json.dumps({**kept, "clip": 1.0}))
    assert "was not written by this version of sak: clip is optimizer.clip now" in refusal("evaluate", tmp_path)
    for broken in ("{", "[]"):
        (tmp_path / "recipe.json").write_text(broken)
        with pytest.raises(UserError, match=r"recipe\.json is no run's recipe"):
            read_recipe(tmp_path)


def test_the_page_on_training_names_every_key_of_every_table() -> None:
    page = Path("docs/training.md").read_text()
    named = {key: f"`{key}`" in page for model in tables().values() for key in model.model_fields}
    assert [key for key, found in named.items() if not found] == [] and {"alpha", "every", "clip"} <= set(named)
