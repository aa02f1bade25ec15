"""A run's folder and a study: what is checked before the first step, what fails alone, who may write."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.recipes.config import load_recipe
from pipeline.runs.holder import alone_in
from pipeline.runs.lineage import DataOrigin
from pipeline.training.before import odd_settings
from tests.conftest import refusal, sak
from tests.fields import cache_fields, make_fields, write_recipe, write_study


@pytest.fixture(scope="module")
def fields(module_folder: Path) -> Path:
    """A folder of caches whose val split shows only what the train split never does."""
    cache_fields(make_fields(module_folder / "data", crops=True, only_in_val=True), module_folder / "features")
    return module_folder / "features"


def places(features: Path, folder: Path) -> list[str | Path]:
    return ["--out", features, "--runs", folder / "runs"]


def test_a_baseline_of_0_leaves_the_gain_out_and_says_why(fields: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path, write_recipe(tmp_path))
    done = sak("ablate", study, "--json", *places(fields, tmp_path))
    table = json.loads(done.stdout)
    constant, arm = table["rows"]
    assert arm["scores"]["semseg"]["mean"] == constant["scores"]["semseg"]["mean"] == 0
    assert arm["gain_percent"] == {"mean": None, "std": None} and "scores 0 on semseg" in table["no_gain"]
    assert "gain: none, multi-task scores 0 on semseg" in (tmp_path / "runs/study/table.md").read_text()
    assert (tmp_path / "runs/study/table.csv").read_text().splitlines()[2].startswith("multi-task,0.0,,,")


@pytest.mark.parametrize("how", [[], ["--share-reads", "3"], pytest.param(["--workers", "2"], marks=pytest.mark.slow)])
def test_a_run_that_diverges_leaves_a_gap_and_the_others(fields: Path, tmp_path: Path, how: list[str]) -> None:
    huge = '[[variations]]\nname = "huge"\narm = "multi-task"\nset = { "optimizer.lr" = 1e30 }'
    small = '[[variations]]\nname = "small"\narm = "multi-task"\nset = { "optimizer.lr" = 1e-4 }'
    study = write_study(tmp_path, write_recipe(tmp_path, "log_every = 1"), huge, small)
    done = sak("ablate", study, "--json", *how, *places(fields, tmp_path), check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    table = json.loads(done.stdout)
    means = {row["arm"]: row["scores"]["semseg"]["mean"] for row in table["rows"]}
    assert means["huge"] is None and None not in (means["multi-task"], means["small"])
    (failed,) = table["failed"]
    assert failed["run"] == "huge-seed0-finetune" and "step 2: semseg is" in failed["why"]
    assert "1 runs failed" in done.stderr and "huge-seed0-finetune: step 2" in done.stderr
    assert "| huge " in (tmp_path / "runs/study/table.md").read_text()


def test_a_baseline_that_fails_leaves_no_gain(fields: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "log_every = 1", "optimizer = { lr = 1e30 }")
    small = '[[variations]]\nname = "small"\narm = "multi-task"\nset = { "optimizer.lr" = 1e-4 }'
    done = sak("ablate", write_study(tmp_path, recipe, small), "--json", *places(fields, tmp_path), check=False)
    table = json.loads(done.stdout)
    assert done.returncode == 2 and "multi-task has no score on semseg" in table["no_gain"]
    assert all(row["gain_percent"]["mean"] is None for row in table["rows"])


def test_a_second_process_in_a_runs_folder_is_told_who_works_there(fields: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "runs/r"
    study = write_study(tmp_path, recipe)
    with alone_in(run):
        done = sak("finetune", recipe, "--run", run, *places(fields, tmp_path), check=False)
    assert done.returncode == 2 and "another process works in" in done.stderr and "process" in done.stderr
    assert not (run / "recipe.json").exists() and not (run / "metrics.jsonl").exists()
    with alone_in(tmp_path / "runs/study"):
        done = sak("ablate", study, *places(fields, tmp_path), check=False)
    assert done.returncode == 2 and "another process works in" in done.stderr and "another name" in done.stderr
    sak("finetune", recipe, "--run", run, *places(fields, tmp_path))
    with alone_in(run):  # what is finished may be asked for by anybody
        assert "already fine-tuned" in sak("finetune", recipe, "--run", run, *places(fields, tmp_path)).stderr


def test_the_holder_is_named_and_gone_with_its_end(tmp_path: Path) -> None:
    holder = rf"process {os.getpid()} on .* since \d{{4}}-"
    with alone_in(tmp_path), pytest.raises(UserError, match=holder), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        assert (tmp_path / "lock").is_file()


@pytest.mark.parametrize("command", ["finetune", "dry", "ablate"])
def test_a_validation_that_is_not_there_is_said_before_the_first_step(
    fields: Path, tmp_path: Path, command: str
) -> None:
    recipe = write_recipe(tmp_path, 'validation = { dataset = "fields", split = "val", size = "32x48" }')
    if command == "ablate":
        words: list[str | Path] = ["ablate", write_study(tmp_path, recipe)]
    else:
        words = ["finetune", recipe, *(["--dry-run"] if command == "dry" else [])]
    said = refusal(*words, *places(fields, tmp_path))
    assert not (tmp_path / "runs").exists()
    assert "no cache of fields/val at 32x48" in said
    assert "make cache DATASET=labelled ROOT=DIR SPLIT=val SIZE=32x48 VIEWS=1" in said


def test_classes_in_another_order_are_not_scored(tmp_path: Path) -> None:
    root, features = make_fields(tmp_path / "data", crops=True), tmp_path / "features"
    cache_fields(root, features)
    (val,) = features.glob("fields-val-*")
    shutil.rmtree(val)
    text = (root / "dataset.toml").read_text().replace('["soil", "crop"]', '["crop", "soil"]')
    (root / "dataset.toml").write_text(text)
    cache_fields(root, tmp_path / "other")
    (other,) = (tmp_path / "other").glob("fields-val-*")
    other.rename(features / other.name)
    recipe = write_recipe(tmp_path, 'validation = { dataset = "fields", split = "val" }')
    assert "semseg is not the same task" in refusal("finetune", recipe, *places(features, tmp_path))


def test_settings_that_cannot_do_what_they_say_are_said_at_the_start(
    fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_recipe(str(write_recipe(tmp_path)), "finetune")
    assert odd_settings(plain) == []

    def said(**changes: object) -> str:
        (found,) = odd_settings(plain.model_copy(update=changes))
        return found

    schedule = plain.schedule.model_copy(update={"warmup_steps": 3})
    assert "warmup_steps = 3 is no shorter than the training (3 steps)" in said(schedule=schedule)
    assert "100% of the averaged weights" in said(ema=0.9999)
    assert "51% of the averaged weights" in said(ema=0.8)  # 0.8^3
    assert odd_settings(plain.model_copy(update={"ema": 0.4})) == []  # 0.064
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "this CPU computes in bf16" in said(precision="16-mixed")
    settings = ["--set", "schedule.warmup_steps=1000", "--set", "ema=0.9999", "--set", "precision=16-mixed"]
    done = sak("finetune", write_recipe(tmp_path), "--dry-run", *settings, *places(fields, tmp_path))
    assert done.stderr.count("warning: ") == 3
    done = sak("finetune", write_recipe(tmp_path), *settings, *places(fields, tmp_path))
    warned = done.stderr.index("warmup_steps = 1000")
    assert warned < done.stderr.index("3/3 steps")


def test_keys_that_change_no_number_may_change(fields: Path, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    asked = ["finetune", recipe, "--run", run, "--out", fields]
    sak(*asked)
    other = ["--set", "log_every=1", "--set", "checkpoint_every=1"]
    assert "already fine-tuned" in sak(*asked, *other).stderr
    assert "steps: 3 against 4" in sak(*asked, "--set", "steps=4", check=False).stderr
    (run / "results.json").unlink()  # as a run that was stopped
    assert "fine-tuned in" in sak(*asked, *other).stderr
    assert json.loads((run / "recipe.json").read_text())["log_every"] == 1


def test_a_run_from_a_folder_says_nothing_of_commits() -> None:
    told = DataOrigin(stage="distill", dataset="toy", split="train", size="6x7", samples=13, views=2, cache="toy.zarr")
    assert "read_at" not in told.model_dump() and '"read_at"' not in told.model_dump_json()
