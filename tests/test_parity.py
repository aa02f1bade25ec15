"""The reference's numbers on a copy of its fixtures, and that the command cannot pass by comparing less."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sak_core.student.reference import export_reference
from tests import formula, method, parity

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


UNSEEN = {
    "one-teacher": {"teachers": {"sam": 384}, "grids": {"sam": [2, 3]}, "router": "mor", "tasks": ["semseg", "depth"]},
    "no-router": {
        "teachers": {"clip": 64, "dinov2": 384, "siglip": 200, "sam": 16},
        "grids": {"clip": [3, 9], "dinov2": [5, 4], "siglip": [4, 6], "sam": [16, 24]},
        "router": "none",
        "tasks": ["sal", "normals", "edge"],
        "dataset": "pascalcontext",
    },
    "base": {
        "stem": "vit_base",
        "teachers": {"clip": 768, "dinov2": 768},
        "grids": {"clip": [4, 6], "dinov2": [4, 6]},
        "router": "mor",
        "tasks": ["human_parts"],
        "dataset": "pascalcontext",
    },
    "stage-one": {"teachers": {"a": 20, "b": 384}, "grids": {"a": [7, 9], "b": [3, 3]}, "router": "mor", "tasks": []},
}


@pytest.mark.parametrize("name", UNSEEN)
def test_cases_without_a_fixture_equal_an_independent_rewrite(name):
    case = {"name": name, "image": [64, 96], "batch": 2, "stem": "vit_small", "dataset": "nyud", **UNSEEN[name]}
    width = {"vit_small": 384, "vit_base": 768}[case["stem"]]
    case["aligner"] = set(case["teachers"].values()) != {width}
    shapes = export_reference(parity.untrained(case), stage=2 if case["tasks"] else 1)
    case["shapes"] = {key: list(value.shape) for key, value in shapes.items()}
    ours = parity.model_case_values(case)

    state = formula.state(case["shapes"])
    image = torch.from_numpy(formula.tensor(f"{name}/image", (2, 3, 64, 96)))
    aligned, outputs = method.Forward(state, width // 64, case["teachers"], case["tasks"], case["router"])(image)
    theirs = {f"aligned/{t}/{i}": m for t, maps in aligned.items() for i, m in enumerate(maps)}
    theirs |= {f"output/{task}": value for task, value in outputs.items()}
    for kind in ("cos+l1", "cos", "l2"):
        terms = {}
        for t, maps in aligned.items():
            for i, m in enumerate(maps):
                shape = (2, m.shape[1], *case["grids"][t])
                target = torch.from_numpy(formula.tensor(f"{name}/teacher/{t}/{i}", shape))
                terms[f"{t}_level{i + 1}"] = method.distillation(m, target, kind)
        theirs |= {f"distill/{kind}/{term}": value for term, value in terms.items()}
        theirs[f"distill/{kind}/total"] = torch.stack(list(terms.values())).sum()
    assert {k for k in ours if k.startswith(("aligned", "output", "distill"))} == set(theirs)
    for key, want in theirs.items():
        assert ((ours[key] - want).abs() <= parity.tolerance_of(want)).all(), key
