"""What a run writes to be watched: TensorBoard, metrics.jsonl, Weights & Biases, and a README that explains it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import UserError
from pipeline.recipes.config import load_recipe, parse_set
from pipeline.runs import Places, find_run
from pipeline.training.distill import distill
from pipeline.training.probes import cosines
from tests.conftest import logged, refusal, sak

STEPS = ["--set", "steps=4", "--set", "batch_size=8", "--set", "log_every=2", "--set", "threads=1"]
TEACHERS = ("mini-dino", "mini-clip", "mini-sam")

FAKE_WANDB = '''
"""Notes what it is told, in the place of Weights & Biases."""
import json, os


class Image:
    def __init__(self, picture):
        self.shape = picture.shape


class Run:
    def note(self, what):
        with open(os.environ["NOTES"], "a") as file:
            file.write(json.dumps(what) + "\\n")

    def log(self, values, step):
        self.note({"step": step, **{k: getattr(v, "shape", v) for k, v in values.items()}})

    def finish(self):
        self.note("finished")


def init(**options):
    Run().note({"init": options})
    return Run()
'''


@pytest.fixture(scope="module")
def run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two runs, distilled and fine-tuned, the second told to a stand-in for Weights & Biases."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "modules").mkdir()
    (folder / "modules" / "wandb.py").write_text(FAKE_WANDB)
    places = ["--out", features, "--runs", folder / "runs"]
    sak("distill", "demo", *places, *STEPS)
    sak(
        "finetune", "demo", *places, *STEPS, "--wandb", 
        "--set", "validation.every=2", "--set", "validation.best_by=semseg",
        env={"PYTHONPATH": str(folder / "modules"), "NOTES": str(folder / "notes.jsonl")},
    )  # fmt: skip
    return folder


def test_tensorboard_has_losses_cosines_routers_scores_and_predictions(run: Path) -> None:
    board = EventAccumulator(str(run / "runs" / "demo-finetune-sak-seed0" / "tensorboard"))
    board.Reload()
    scalars, levels = set(board.Tags()["scalars"]), range(1, 5)
    assert {"loss", "lr", "semseg", "boundary", "distillation", "validation/loss", "validation/semseg/mIoU"} <= scalars
    assert {f"{teacher}_level{level}" for teacher in TEACHERS for level in levels} <= scalars
    assert {f"cosine/{teacher}_level{level}" for teacher in TEACHERS for level in levels} <= scalars
    routers = [f"router/depth_level2/{expert}" for expert in ("stem", *TEACHERS)]
    assert sum(board.Scalars(tag)[-1].value for tag in routers) == pytest.approx(1, abs=1e-5)
    assert [event.step for event in board.Scalars("loss")] == [2, 4]
    assert board.Tags()["images"] == ["predictions"]
    picture = board.Images("predictions")[-1]
    assert picture.step == 4 and picture.width > 13 * 100 and picture.height > 4 * 100


def test_metrics_say_the_same(run: Path) -> None:
    lines = logged(run / "runs/demo-distill-sak-seed0")
    assert [line["step"] for line in lines] == [2, 4]
    assert all(-1 <= line[f"cosine/{teacher}_level4"] <= 1 for line in lines for teacher in TEACHERS)
    assert not any(name.startswith("router") for line in lines for name in line)


def test_weights_and_biases_is_told(run: Path) -> None:
    notes = [json.loads(line) for line in (run / "notes.jsonl").read_text().splitlines()]
    options = notes[0]["init"]
    assert options["project"] == "sak" and options["name"] == "demo-finetune-sak-seed0"
    assert options["resume"] == "allow" and options["config"]["loss"]["alpha"] == 1.0
    assert any("loss" in note and note["step"] == 4 for note in notes[1:-1])
    assert any(len(note.get("predictions", ())) == 3 for note in notes[1:-1])
    assert notes[-1] == "finished"


@pytest.mark.skipif(find_spec("wandb") is not None, reason="Weights & Biases is installed here")
def test_without_weights_and_biases_the_flag_is_refused_at_once(features: Path, tmp_path: Path) -> None:
    assert "pip install wandb" in refusal("distill", "demo", "--out", features, "--runs", tmp_path, *STEPS, "--wandb")


def test_the_readme_explains_the_run(run: Path) -> None:
    readme = (run / "runs" / "demo-finetune-sak-seed0" / "README.md").read_text()
    results = json.loads((run / "runs" / "demo-finetune-sak-seed0" / "results.json").read_text())
    assert "sak finetune demo --out" in readme and "--wandb" in readme
    assert "Recipe `demo`, stage `finetune`, arm `sak`, seed 0, 4 steps of 8 rows" in readme
    assert "`rooms-train-96x96-" in readme and "teachers/mini-sam " in readme and "sak 0.1.0" in readme
    assert f"mIoU {results['validation']['semseg']['mIoU']:.4g}" in readme
    assert f"weights of step {results['step']}" in readme


def test_the_readme_of_an_unfinished_run_says_so(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.training.distill.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(load_recipe("demo", "distill", parse_set(["steps=4"])), tmp_path / "r", Places(features))
    assert "Not finished; the command above goes on" in (tmp_path / "r" / "README.md").read_text()


def test_runs_are_found_by_path_and_by_name(run: Path) -> None:
    runs = run / "runs"
    assert find_run(Path("demo-distill-sak-seed0"), runs) == runs / "demo-distill-sak-seed0"
    assert find_run(runs / "demo-distill-sak-seed0", Path("elsewhere")) == runs / "demo-distill-sak-seed0"
    with pytest.raises(UserError, match="did you mean demo-distill-sak-seed0"):
        find_run(Path("demo-distil-sak-seed0"), runs)
    for command in ("evaluate", "finetune"):
        words = ["demo", "--from", "demo-distil-sak"] if command == "finetune" else ["demo-distil-sak"]
        assert "did you mean demo-distill-sak-seed0" in refusal(command, *words, "--runs", runs)


def test_a_cosine_is_the_mean_over_tokens_on_the_finer_grid() -> None:
    student = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0]]).T.reshape(1, 2, 2, 2)
    found = cosines({"t": [student]}, {"t": [teacher]})
    assert found["cosine/t_level1"].item() == pytest.approx((1 + 0 - 1 + 2**-0.5) / 4)
