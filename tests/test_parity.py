"""The reference's numbers on a copy of its fixtures, and that the command cannot pass by comparing less."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import parity

FIXTURES = Path(__file__).parent / "fixtures" / "parity"


@pytest.fixture(scope="module")
def comparisons() -> list[parity.Comparison]:
    return parity.compare_folder(FIXTURES)


def test_every_key_is_within_tolerance(comparisons):
    keys = sum(len(load_file(path)) for path in FIXTURES.glob("*.safetensors"))
    metrics = json.loads((FIXTURES / "metrics.json").read_text())
    scores = sum(len(s) for case in metrics.values() for s in case["scores"].values())
    assert len(comparisons) == keys + scores
    assert max(c.share for c in comparisons) <= 1


def test_the_last_line_states_the_worst_share(comparisons):
    worst = max(comparisons, key=lambda c: c.share)
    last = parity.report(comparisons).splitlines()[-1]
    assert worst.key in last
    assert f"{worst.share:.2%}" in last


def test_command_fails_on_a_wrong_value_and_on_an_unknown_key(tmp_path, capsys):
    case = "pascal-aligned"
    shutil.copy(FIXTURES / f"{case}.json", tmp_path)
    expected = load_file(FIXTURES / f"{case}.safetensors")
    few = {key: expected[key] for key in ("aligned/clip/0", "task_loss/sal")}
    save_file(few, tmp_path / f"{case}.safetensors")
    assert parity.main([str(tmp_path)]) == 0
    few["task_loss/sal"] = few["task_loss/sal"] * 1.001
    save_file(few, tmp_path / f"{case}.safetensors")
    assert parity.main([str(tmp_path)]) == 1
    save_file({"output/parts": torch.zeros(1)}, tmp_path / f"{case}.safetensors")
    assert parity.main([str(tmp_path)]) == 1
    assert "0 of 1 keys compared" in capsys.readouterr().out


def test_command_fails_on_a_missing_score_and_an_empty_folder(tmp_path):
    content = {
        "m": {
            "dataset": "nyud",
            "tasks": ["depth"],
            "batches": 1,
            "batch": 1,
            "size": [8, 8],
            "scores": {"depth": {"RMSE": 0.0}},
        }
    }
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert parity.main([str(tmp_path)]) == 1
    content["m"]["scores"] = {"depth": {"unheard-of": 1.0}}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert parity.main([str(tmp_path)]) == 1
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(ValueError, match="holds no case"):
        parity.main([str(tmp_path)])
