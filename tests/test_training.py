"""Training: a killed run resumed equals the uninterrupted one bit for bit; a loss that is not finite stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import checkpoint
from pipeline.errors import UserError
from tests.conftest import sak

STEPS = ["--set", "steps=12", "--set", "batch_size=8", "--set", "checkpoint_every=3", "--set", "threads=1"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / "model.safetensors")


def test_killed_and_resumed_equals_uninterrupted(features: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sak("distill", "demo", "--out", features, "--run", whole, *STEPS)
    command = [sys.executable, "-m", "pipeline", "distill", "demo", "--out", str(features), "--run", str(cut), *STEPS]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (cut / "last" / "state.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (cut / "last").exists() and not (cut / "results.json").exists(), "it must be killed in the middle"
    resumed = sak("distill", "demo", "--out", features, "--run", cut, *STEPS)
    assert "going on at step" in resumed.stderr
    expected, found = weights(whole), weights(cut)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_loss_that_is_not_finite_names_step_and_rows(features: Path, tmp_path: Path) -> None:
    done = sak(
        "distill", "demo", "--out", features, "--run", tmp_path / "r", *STEPS, "--set", "optimizer.lr=1e30",
        "--set", "schedule.warmup_steps=0", check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "step " in done.stderr and "rows (sample/view)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_is_whole_at_every_moment(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    folder = tmp_path / "last"
    state = {"step": 1, "seconds": 0.5, "recipe": {}, "loader": {}}
    checkpoint.save(folder, checkpoint.Trainable(model, optimizer), state)
    folder.rename(tmp_path / "last.old")  # killed between the two renames of the next save
    found = checkpoint.find(folder)
    assert found is not None
    other = torch.nn.Linear(2, 2)
    fresh = torch.optim.AdamW(other.parameters())
    assert checkpoint.restore(found, checkpoint.Trainable(other, fresh))["step"] == 1
    assert torch.equal(other.weight, model.weight)
    for left, right in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert torch.equal(left["exp_avg"], right["exp_avg"])


def test_damaged_or_hostile_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="no whole safetensors file"):
        checkpoint.load_tensors(path)
    save_file({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read as weights"):
        checkpoint.load_tensors(path)
