"""Arms and recipes: every arm in a study on small caches, and the shipped recipes against the published numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from pipeline.console import each_in_worker
from pipeline.errors import UserError
from pipeline.interrupts import Interrupted
from pipeline.recipes.arms import ARMS, build_model, find_arm
from pipeline.recipes.config import Recipe, Study, load_recipe, load_study, recipe_names
from pipeline.recipes.frozen import is_own
from pipeline.runs import Places
from pipeline.studies.jobs import check, plan
from sak_core.datasets.published import Stage1Images, Stage2Benchmark
from tests.conftest import refusal, sak
from tests.stopped import trains_or_is_stopped

TEACHER_ARMS = ["teacher:mini-dino", "teacher:mini-sam", "oracle", "teachers"]
NAMES = ["single-task", "multi-task", "invpt", "mlore", *TEACHER_ARMS, "many-to-one", "sak"]
TEST = 'test = { dataset = "rooms", split = "test", size = "96x96" }\n'
QUICK = (
    'set = { steps = 2, batch_size = 8, tasks = ["semseg", "depth"], "student.invpt" = { embed = 20, pred = 4 }, '
    '"student.mlore" = { width = 12, ranks = [1, 2], task_rank = 1, top_k = 1 } }\n'
)


@pytest.fixture(scope="module")
def arms(features: Path, no_teachers: dict[str, str], module_folder: Path) -> tuple[Path, dict]:
    """The folder and the table of a finished study of all arms over two seeds, run without the teachers' libraries."""
    study = module_folder / "all.toml"
    study.write_text(f'recipe = "demo"\narms = {json.dumps(NAMES)}\nseeds = [0, 1]\n{QUICK}{TEST}')
    done = sak("ablate", study, "--json", "--out", features, "--runs", module_folder, env=no_teachers)
    return module_folder / "all", json.loads(done.stdout)


def test_every_arm_has_a_row_against_single_task(arms: tuple[Path, dict]) -> None:
    folder, table = arms
    assert [row["arm"] for row in table["rows"]] == ["constant", *NAMES]
    assert {find_arm(name).name for name in NAMES} == set(ARMS)
    assert table["baseline"] == "single-task"
    rows = {row["arm"]: row for row in table["rows"]}
    assert rows["single-task"]["gain_percent"]["mean"] == pytest.approx(0, abs=1e-9)
    for row in table["rows"][1:]:
        assert row["parameters"] > 0 and row["seconds"] >= 0
        assert all(score["std"] is not None for score in row["scores"].values())
    with (folder / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["arm"] for row in read] == [row["arm"] for row in table["rows"]]
    assert float(read[3]["semseg_std"]) == pytest.approx(table["rows"][3]["scores"]["semseg"]["std"])


def test_single_task_is_one_student_a_task(arms: tuple[Path, dict], features: Path) -> None:
    folder, table = arms
    run = folder / "single-task-seed0-finetune"
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["depth", "semseg"]
    own = [json.loads((run / task / "results.json").read_text())["parameters"] for task in ("semseg", "depth")]
    rows = {row["arm"]: row for row in table["rows"]}
    assert rows["single-task"]["parameters"] == sum(own) > rows["multi-task"]["parameters"]
    scores = json.loads((run / "scores-rooms-test-96x96.json").read_text())["scores"]
    assert (
        scores["depth"] == json.loads((run / "depth" / "scores-rooms-test-96x96.json").read_text())["scores"]["depth"]
    )
    assert set(scores) == {"semseg", "depth"}


def test_the_oracle_is_derived_from_validation(arms: tuple[Path, dict]) -> None:
    folder, table = arms
    rows = {row["arm"]: row for row in table["rows"]}
    assert "by validation scores" in rows["oracle"]["note"] and not list(folder.glob("oracle*"))

    def validation(teacher: str, task: str, score: str) -> float:
        runs = [folder / f"teacher-{teacher}-seed{seed}-finetune" / "results.json" for seed in (0, 1)]
        return sum(json.loads(path.read_text())["validation"][task][score] for path in runs) / 2

    for column in table["columns"]:
        task, sign = column["task"], 1 if column["higher_is_better"] else -1
        best = max(("mini-dino", "mini-sam"), key=lambda name: sign * validation(name, task, column["score"]))
        assert f"{task} {best}" in rows["oracle"]["note"]
        assert rows["oracle"]["scores"][task] == rows[f"teacher:{best}"]["scores"][task]
    assert "oracle: derived" in (folder / "table.md").read_text()


def test_derived_and_split_arms_say_so(features: Path, arms: tuple[Path, dict]) -> None:
    assert "derives it" in refusal("finetune", "demo", "--set", "arm=oracle", "--out", features)
    alone = Study.model_validate({"name": "x", "recipe": "demo", "arms": ["sak", "oracle"], "test": demo_test()})
    places = Places(features, Path("none"))
    with pytest.raises(UserError, match="chooses among arms teacher:<name>"):
        check(alone, plan(alone, places), places)
    other = alone.model_copy(update={"arms": ("sak",), "baseline": "sac"})
    with pytest.raises(UserError, match="unknown arm 'sac'; did you mean sak"):
        check(other, plan(other, places), places)


def demo_test() -> dict[str, str]:
    return {"dataset": "rooms", "split": "test", "size": "96x96"}


@pytest.mark.parametrize("name", recipe_names("recipes/studies"))
def test_every_shipped_study_plans_every_run(name: str, features: Path) -> None:
    study = load_study(name)
    places = Places(features, Path("none"))
    jobs = plan(study, places)
    # caches by codec, in more views than these, and students that teach: test_reproduce
    if not any(cache.folder or any(map(is_own, cache.teachers)) for cache in study.caches):
        check(study, jobs, places)
    derived = sum(find_arm(arm).derived for arm in study.arms)
    assert len(jobs) == len(study.seeds) * (len(study.arms) - derived + len(study.variations))
    assert len({job.run for job in jobs}) == len(jobs)


def test_runs_that_choose_by_validation_are_told_apart(features: Path) -> None:
    def distilled(**every: int) -> int:
        own, other = {**demo_test(), "split": "val", **every}, {**demo_test(), **every, "best_by": "loss"}
        table = {"name": "x", "recipe": "demo", "arms": ["sak"], "test": demo_test(), "set": {"validation": own}}
        split = {"name": "other", "set": {"validation": other}}
        jobs = plan(Study.model_validate({**table, "variations": [split]}), Places(features, Path("none")))
        return len({job.stage1 for job in jobs})

    assert distilled() == 1, "validation chooses nothing in stage 1"
    assert distilled(every=2) == 2, "another split may choose another checkpoint"


def test_the_study_of_all_arms_has_them_all() -> None:
    study = load_study("arms")
    assert {find_arm(arm).name for arm in study.arms} == set(ARMS)
    assert study.baseline == "single-task" and len(study.seeds) == 3


def paper(name: str, stage: str) -> Recipe:
    return load_recipe(name, stage)  # type: ignore[arg-type]


def test_stage_1_is_the_published_one() -> None:
    recipe = paper("paper-stage1", "distill")
    images, rows = 1_281_167, 8 * 16
    epoch = images // rows
    assert recipe.batch_size == rows and recipe.accumulate == 1
    assert recipe.steps == 30 * epoch and recipe.schedule.warmup_steps == 2 * epoch
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (1e-3, 0.01)
    assert (recipe.schedule.kind, recipe.schedule.warmup_lr, recipe.schedule.final_lr) == ("cosine", 1.25e-7, 1.25e-6)
    assert recipe.optimizer.clip is None and recipe.ema is None and recipe.loss.kind == "cos+l1"
    assert (recipe.data.dataset, recipe.data.split, recipe.data.size) == ("imagenet", "train", "384")
    published_student(recipe)
    policy = Stage1Images.policy.fget(type("Train", (Stage1Images,), {"split": "train"})())  # type: ignore[attr-defined]
    assert policy.kind == "random-resized-crop" and policy.flip == 0.5


@pytest.mark.parametrize(
    ("name", "dataset", "size", "tasks", "max_dist"),
    [
        ("paper-nyud", "nyud", "448x576", {"semseg", "depth", "normals", "edge"}, 0.011),
        ("paper-pascal", "pascal_context", "512x512", {"semseg", "human_parts", "sal", "normals", "edge"}, 0.0075),
    ],
)
def test_stage_2_is_the_published_one(name: str, dataset: str, size: str, tasks: set[str], max_dist: float) -> None:
    recipe = paper(name, "finetune")
    assert recipe.batch_size == 2 * 2 and recipe.steps == 40_000
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (2e-5, 1e-6)
    assert (recipe.schedule.kind, recipe.schedule.power, recipe.schedule.warmup_steps) == ("polynomial", 0.9, 0)
    assert recipe.optimizer.clip == 10 and recipe.loss.alpha == 1 and recipe.trains == "all" and recipe.stage1 == "on"
    assert (recipe.data.dataset, recipe.data.split, recipe.data.size) == (dataset, "train", size)
    assert set(recipe.tasks or ()) == tasks
    assert not recipe.loss.task_weights, "the tasks' own weights are the published ones"
    assert (recipe.boundary.thresholds, recipe.boundary.max_dist) == (99, max_dist)
    assert recipe.validation is None, "the last checkpoint is scored"
    published_student(recipe)
    policy = Stage2Benchmark.policy.fget(type("Train", (Stage2Benchmark,), {"split": "train"})())  # type: ignore[attr-defined]
    assert policy.kind == "scale-crop" and policy.flip == 0.5


@pytest.mark.parametrize("arm", ["invpt", "mlore"])
@pytest.mark.parametrize(("name", "size"), [("nyud", "448x576"), ("pascal", "512x512")])
def test_rivals_recipes_are_the_published_ones(arm: str, name: str, size: str) -> None:
    recipe, sak_s = load_recipe(f"paper-{arm}-{name}", "finetune"), load_recipe(f"paper-{name}", "finetune")
    assert recipe.arm == arm and not recipe.teachers and recipe.tasks == sak_s.tasks
    assert recipe.data == sak_s.data and recipe.data.size == size and recipe.boundary == sak_s.boundary
    assert recipe.steps == 40_000 and recipe.schedule == sak_s.schedule and recipe.loss.normalizers == "process"
    stem = recipe.student.stem
    assert (stem.name, stem.weights, stem.drop_path) == ("vit_large_patch16_384", "hub", 0.15)
    assert stem.class_token == (arm == "invpt")
    optimizer = recipe.optimizer
    assert (optimizer.kind, optimizer.weight_decay) == ("adam", 1e-6) and recipe.precision == "32-true"
    if arm == "invpt":
        assert (recipe.batch_size, optimizer.lr, optimizer.clip) == (6, 2e-5, None)
        assert recipe.loss.initial == 1 and recipe.student.invpt.model_dump() == {"embed": 512, "pred": 64, "heads": 2}
        return
    on_nyud, sizes = name == "nyud", recipe.student.mlore
    assert (recipe.batch_size, optimizer.lr, optimizer.clip) == (4, 1e-5 if on_nyud else 2e-5, 10)
    assert (recipe.loss.expert_balance, recipe.loss.boundary_positives) == ((5e-4, 0.88) if on_nyud else (3e-4, 0.925))
    assert (sizes.width, sizes.task_rank, sizes.pre_softmax) == ((768, 16, True) if on_nyud else (452, 72, False))
    assert sizes.top_k == 9 and sizes.ranks == tuple(range(16, 241, 16) if on_nyud else range(16, 129, 8))


def published_student(recipe: Recipe) -> None:
    assert recipe.arm == "sak" and set(recipe.teachers) == {"dinov2", "clip", "sam"}
    assert recipe.student.stem.name == "vit_base_patch16_384" and recipe.student.stem.weights == "hub"
    assert (recipe.student.router, recipe.student.head, recipe.student.adapter) == ("mor", "sak", "standard")
    loss = recipe.loss
    assert loss.normalizers == "process" and loss.balance == "none" and not loss.drop_teachers


def test_a_missing_teachers_cache_is_named(features: Path, tmp_path: Path) -> None:
    said = refusal(
        "distill",
        "demo",
        "--out",
        features,
        "--runs",
        tmp_path,
        "--set",
        'teachers=["mini-dino","dinov2"]',
    )
    assert "has no teacher 'dinov2'" in said and "make cache TEACHER=dinov2" in said


def test_a_models_weights_follow_from_the_seed_alone(features: Path) -> None:
    from pipeline.recipes.stores import find_store

    recipe = load_recipe("demo", "distill")
    store = find_store(features, recipe.data, recipe.teachers)
    first, again, other = (
        build_model(recipe.model_copy(update={"seed": seed}), store, ()).state_dict() for seed in (3, 3, 4)
    )
    name = "paths.mini-sam.adapters.2.down.weight"
    assert (first[name] == again[name]).all() and (first[name] != other[name]).any()


def test_a_stopped_study_ends_its_workers(tmp_path: Path) -> None:
    """Those that train on would hold their runs' folders, and the terminal until they are done."""
    trains = tmp_path / "trains"
    with pytest.raises(Interrupted):
        list(each_in_worker(trains_or_is_stopped, [trains, tmp_path / "stopped"], workers=2))
    assert (tmp_path / "begun").exists() and not trains.exists()
