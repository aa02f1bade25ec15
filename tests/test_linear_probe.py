"""Stage 1 watched by linear probes: their numbers, and that the run's own stay bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import TINY, logged, refusal, sak
from tests.test_training import Killed, assert_equal_checkpoints, distilled

PROBE = 'probe={ dataset = "rooms", split = "val", size = "96x96", every = 2, rows = 16, keep = "semseg" }'


def test_probes_are_logged_kept_and_change_nothing(features: Path, tmp_path: Path) -> None:
    where = ["--out", features, *TINY]
    sak("distill", "demo", *where, "--run", tmp_path / "plain")
    sak("distill", "demo", *where, "--run", tmp_path / "probed", "--set", PROBE)
    plain, probed = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("plain", "probed"))
    assert plain.keys() == probed.keys() and all(torch.equal(plain[name], probed[name]) for name in plain)
    lines = logged(tmp_path / "probed")
    probes = {line["step"]: line for line in lines if "probe/semseg/mIoU" in line}
    assert list(probes) == [2, 4]
    assert {"probe/depth/RMSE", "probe/normals/mErr", "probe/saliency/maxF", "probe/boundary/odsF"} <= probes[4].keys()
    assert all(value is not None for line in probes.values() for value in line.values())
    rest = [line for line in lines if not any(key.startswith("probe/") for key in line)]
    assert rest == logged(tmp_path / "plain")
    best = max(probes, key=lambda step: probes[step]["probe/semseg/mIoU"])
    state = json.loads((tmp_path / "probed" / "best-by-probe" / "state.json").read_text())
    assert state["step"] == best and state["probed"]["value"] == pytest.approx(probes[best]["probe/semseg/mIoU"])


@pytest.mark.slow
def test_a_killed_and_resumed_run_has_every_probe_once(features: Path, tmp_path: Path) -> None:
    """Probes at steps 2, 4 and 6, checkpoints at 3 and 6: the kill in step 3 loses the first probe with all else, that
    in step 6 the second one. The log is that of a run that nothing disturbed, and so are both checkpoints."""
    settings = [PROBE, "steps=6", "checkpoint_every=3", "log_every=1"]
    distilled(features, tmp_path / "whole", *settings)
    for kill_at in (3, 6):
        run = tmp_path / f"cut{kill_at}"
        with pytest.raises(Killed):
            distilled(features, run, *settings, kill_at=kill_at)
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "lo')  # a kill may come within a line
        torch.manual_seed(kill_at)
        distilled(features, run, *settings)
        assert (run / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
        for which in ("last", "best-by-probe"):
            assert_equal_checkpoints(tmp_path / "whole", run, which)
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("probe/depth/RMSE")] == [2, 4, 6]
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ('split = "test"', "test scores choose nothing"),
        ('keep = "semsg"', "did you mean semseg"),
        ('split = "unlabelled"', "has no labels"),
        ("rows = 8", "greater than or equal to 16"),
    ],
)
def test_a_probe_that_cannot_be_is_refused_before_training(
    changed: str, says: str, features: Path, tmp_path: Path
) -> None:
    key = changed.partition(" ")[0]
    parts = [part for part in PROBE[8:-2].split(", ") if not part.startswith(key)]
    given = "probe={ " + ", ".join([*parts, changed]) + " }"
    assert says in refusal("distill", "demo", "--out", features, "--run", tmp_path / "run", "--set", given)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
