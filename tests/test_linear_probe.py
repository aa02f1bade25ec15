"""Stage 1 watched by linear probes: their numbers, and that the run's own stay bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.training.linear_probe import RIDGE, _fit
from tests.conftest import TINY, sak

PROBE = 'probe={ dataset = "rooms", split = "val", size = "96x96", every = 2, rows = 16, keep = "semseg" }'


def test_a_probe_is_ridge_regression_where_there_are_labels() -> None:
    """Against the normal equations with a column of ones, whose weight is not held back."""
    torch.manual_seed(0)
    tokens, targets = torch.randn(50, 4).double(), torch.randn(50, 2).double()
    valid = torch.arange(50) % 3 > 0
    weights, bias = _fit(tokens, (targets, valid))
    x = torch.cat([tokens, torch.ones(50, 1)], dim=1)[valid]
    held = RIDGE * len(x) * torch.diag(torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64))
    expected = torch.linalg.solve(x.T @ x + held, x.T @ targets[valid])
    torch.testing.assert_close(torch.cat([weights, bias[None]]), expected)


def test_probes_are_logged_kept_and_change_nothing(features: Path, tmp_path: Path) -> None:
    where = ["--out", features, *TINY]
    sak("distill", "demo", *where, "--run", tmp_path / "plain")
    sak("distill", "demo", *where, "--run", tmp_path / "probed", "--set", PROBE)
    plain, probed = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("plain", "probed"))
    assert plain.keys() == probed.keys() and all(torch.equal(plain[name], probed[name]) for name in plain)
    lines = [json.loads(line) for line in (tmp_path / "probed" / "metrics.jsonl").read_text().splitlines()]
    probes = {line["step"]: line for line in lines if "probe/semseg/mIoU" in line}
    assert list(probes) == [2, 4]
    assert {"probe/depth/RMSE", "probe/normals/mErr", "probe/saliency/maxF", "probe/boundary/odsF"} <= probes[4].keys()
    assert all(value is not None for line in probes.values() for value in line.values())
    rest = [line for line in lines if not any(key.startswith("probe/") for key in line)]
    own = [json.loads(line) for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
    assert rest == own
    best = max(probes, key=lambda step: probes[step]["probe/semseg/mIoU"])
    state = json.loads((tmp_path / "probed" / "best-by-probe" / "state.json").read_text())
    assert state["step"] == best and state["probed"]["value"] == pytest.approx(probes[best]["probe/semseg/mIoU"])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ('split = "test"', "test scores choose nothing"),
        ('keep = "semsg"', "did you mean semseg"),
        ('split = "unlabelled"', "has no labels"),
    ],
)
def test_a_probe_that_cannot_be_is_refused_before_training(
    changed: str, says: str, features: Path, tmp_path: Path
) -> None:
    key = changed.partition(" ")[0]
    parts = [part for part in PROBE[8:-2].split(", ") if not part.startswith(key)]
    given = "probe={ " + ", ".join([*parts, changed]) + " }"
    refused = sak("distill", "demo", "--out", features, "--run", tmp_path / "run", "--set", given, check=False)
    assert refused.returncode == 2 and says in refused.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
