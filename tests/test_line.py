"""The whole line through the command line, as a person would run it, without the teachers' libraries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cache.store import find_stores
from tests.conftest import TINY, answer, refusal, sak


def test_distill_finetune_evaluate_without_teachers(
    features: Path, no_teachers: dict[str, str], tmp_path: Path
) -> None:
    places = ["--out", features, "--runs", tmp_path]
    first = answer("distill", "demo", *places, *TINY, env=no_teachers)
    assert first["arm"] == "sak" and first["parameters"] > 0
    second = answer("finetune", "demo", *places, *TINY, env=no_teachers)
    assert set(second["validation"]) == {"semseg", "parts", "saliency", "depth", "normals", "boundary"}
    assert second["stage1"] == "demo-distill-sak-seed0"
    scores = answer("evaluate", "demo-finetune-sak-seed0", *places, env=no_teachers)
    assert 0 <= scores["semseg"]["mIoU"] <= 100
    again = sak("finetune", "demo", *places, *TINY, env=no_teachers)
    assert "already fine-tuned" in again.stderr
    assert "loss.alpha: 1.0 against 0.5" in refusal("finetune", "demo", *places, *TINY, "--set", "loss.alpha=0.5")


def test_ablate_without_teachers_skips_what_is_finished(
    features: Path, no_teachers: dict[str, str], tmp_path: Path
) -> None:
    study = tmp_path / "tiny.toml"
    study.write_text(
        'recipe = "demo"\narms = ["multi-task", "teacher:mini-sam", "teachers", "sak"]\n'
        'set = { steps = 2, batch_size = 8 }\ntest = { dataset = "rooms", split = "test", size = "96x96" }\n'
        '[[variations]]\nname = "no router"\narm = "sak"\nset = { "student.router" = "none" }\n'
    )
    places = ["--out", features, "--runs", tmp_path / "runs"]
    planned = answer("ablate", study, "--dry-run", *places)["runs"]
    assert sum("distill" in run for run in planned) == 1, "a router changes nothing of stage 1"
    result = answer("ablate", study, *places, env=no_teachers)
    labels = [row["arm"] for row in result["rows"]]
    assert labels == ["constant", "multi-task", "teacher:mini-sam", "teachers", "sak", "no router"]
    assert result["rows"][1]["gain_percent"]["mean"] == 0
    again = sak("ablate", study, "--json", *places, env=no_teachers)
    assert json.loads(again.stdout) == result
    assert again.stderr.count("finished earlier, skipped") == 6
    assert "steps/s" not in again.stderr
    for name in ("table.md", "table.csv", "table.json"):
        assert (tmp_path / "runs" / "tiny" / name).is_file()


def test_cached_features_are_the_teachers_own(features: Path) -> None:
    import torch

    from sak_core.teachers import build_teacher

    store = find_stores(features, "rooms", "test")[0]
    teacher = build_teacher("mini-sam", size=(96, 96))
    with torch.inference_mode():
        expected = teacher(torch.from_numpy(np.stack([store.pixels[i, 0] for i in range(16)])))
    for level, maps in enumerate(expected):
        found = np.stack([store.features("mini-sam", level=level)[i, 0] for i in range(16)])
        np.testing.assert_allclose(found, maps.permute(0, 2, 3, 1).numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["cache", "--teacher", "mini-dion"], "did you mean mini-dino"),
        (["cache", "--dataset", "room"], "did you mean rooms"),
        (["cache", "--split", "tests"], "did you mean test"),
        (["cache", "--codec", "fp61"], "did you mean fp16"),
        (["cache", "--split", "test", "--views", "4"], "one padded evaluation view"),
        (["cache", "--dataset", "folder"], "ROOT"),
        (["cache", "--dataset", "folder", "--root", "/nonexistent"], "/nonexistent"),
        (["distill", "demo", "--out", "/nonexistent"], "no cache of rooms/unlabelled"),
        (["distill", "demo", "--set", "arm=multi-task", "--out", "/nonexistent"], "distils nothing"),
        (["info", "/nonexistent.zarr"], "/nonexistent.zarr"),
    ],
)
def test_bad_requests_end_in_one_clear_line(arguments: list[str], hint: str, tmp_path: Path) -> None:
    if arguments[0] == "cache":
        arguments = [*arguments, "--out", str(tmp_path)]
    assert hint in refusal(*arguments)
