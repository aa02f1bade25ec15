"""A trained student as a beginning: stage 1 goes on from its stem and paths; kept as fp16, it is read back as fp32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.recipes.arms import build_model, initialize
from pipeline.recipes.config import load_recipe
from pipeline.recipes.stores import training_store
from sak_core.datasets import open_dataset
from sak_core.miniature.network import WEIGHTS_DIR
from sak_core.student.pretrained import Student
from tests.conftest import TINY, answer, sak


@pytest.fixture(scope="module")
def halved(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "model"
    done = answer("export", trained, folder, "--half")
    whole = answer("export", trained, folder.parent / "whole")
    small, large = (result["files"]["model.safetensors"] for result in (done, whole))
    assert 0.45 < small / large < 0.6
    return folder


def test_half_precision_is_read_back_as_fp32(halved: Path) -> None:
    half, whole = Student.from_pretrained(halved), Student.from_pretrained(halved.parent / "whole")
    kept = half.network.state_dict()
    for name, value in whole.network.state_dict().items():
        assert kept[name].dtype == value.dtype
        assert torch.equal(kept[name], value.half().to(value.dtype))


def test_stage_1_goes_on_from_stem_and_paths(halved: Path, features: Path, tmp_path: Path) -> None:
    run = tmp_path / "on"
    sak(
        "distill", "demo", "--out", features, "--run", run, *TINY, "--set", f"init={halved}", "--set", "steps=1",
        "--set", "schedule.warmup_steps=0", "--set", "optimizer.lr=1e-20",
    )  # fmt: skip
    assert json.loads((run / "model.json").read_text())["stem_weights"] == str(halved)
    from pipeline.runs import checkpoint
    from sak_core.weights.tensor_files import read_tensors

    began = Student.from_pretrained(halved).network.state_dict()
    found = read_tensors(checkpoint.scored_weights(run))
    assert {name.partition(".")[0] for name in began} - {name.partition(".")[0] for name in found} == {
        "routers",
        "heads",
    }
    for name, value in found.items():
        torch.testing.assert_close(value, began[name], atol=1e-6, rtol=0)


def test_another_beginning_is_another_run(halved: Path, features: Path, tmp_path: Path) -> None:
    """The weights that a run began with are part of what it was made from."""
    run, model = tmp_path / "run", tmp_path / "model"
    model.symlink_to(halved)
    command = ("distill", "demo", "--out", features, "--run", run, *TINY, "--set", f"init={model}", "--set", "steps=1")
    sak(*command)
    model.unlink()
    model.symlink_to(halved.parent / "whole")
    refused = sak(*command, check=False)
    assert refused.returncode and "begins_with" in refused.stderr


def test_what_does_not_fit_is_named(halved: Path, features: Path) -> None:
    for settings, words in (
        ({"init": str(halved), "arm": "many-to-one"}, "init = .*projectors|init = .*missing"),
        ({"init": "rooms-sack"}, "rooms-sack is no folder of a saved student"),
    ):
        recipe = load_recipe("demo", "distill", settings)
        store = training_store(features, recipe, recipe.teachers)
        with pytest.raises(UserError, match=words):
            initialize(recipe, build_model(recipe, store, ()))


def test_overrides_of_one_stage_leave_the_other() -> None:
    settings = {"distill.steps": 7, "finetune.optimizer.lr": 0.5, "seed": 3}
    one, two = (load_recipe("demo", stage, settings) for stage in ("distill", "finetune"))
    plain = load_recipe("demo", "finetune")
    assert (one.steps, two.steps) == (7, plain.steps) and one.seed == two.seed == 3
    assert two.optimizer.lr == 0.5 and one.optimizer.lr == load_recipe("demo", "distill").optimizer.lr


def test_a_student_ships_and_predicts_without_training(tmp_path: Path) -> None:
    """Offline, on scenes that it has not seen, and near what its card says of the test split."""
    student, rooms = Student.from_pretrained("rooms-sak"), open_dataset("rooms", "test", size=(96, 96))
    samples = [rooms.load(i) for i in range(24)]
    found = student.predict([sample.image for sample in samples])
    right = [(one["semseg"] == sample.labels["semseg"]).mean() for one, sample in zip(found, samples, strict=True)]
    assert np.mean(right) > 0.75
    errors = [np.abs(one["depth"] - sample.labels["depth"]).mean() for one, sample in zip(found, samples, strict=True)]
    assert np.mean(errors) < 0.5  # metres
    folder = WEIGHTS_DIR / "rooms-sak"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4_000_000
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    sak("predict", Path(__file__).parents[1] / "docs" / "room.png", "--model", "rooms-sak", "--out", tmp_path)
    assert (tmp_path / "contact-sheet.png").is_file()
