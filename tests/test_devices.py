"""Several processes follow one at the same global batch; real processes, started by the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import nn

from pipeline.training.sync_norm import synchronise_norms
from tests.conftest import answer, logged, refusal, sak, start, wait_until
from tests.test_training import STEPS as TRAINING_STEPS

STEPS = ["--set", "steps=20", "--set", "threads=1", "--set", "log_every=1"]


def assert_follows(one: Path, two: Path) -> None:
    """Loss and every term of every step agree within 1e-5 relative."""
    alone, together = logged(one), logged(two)
    assert len(alone) == len(together) == 20
    for a, b in zip(alone, together, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            # cosines and router weights may be near 0, where only their absolute error says something
            near = pytest.approx(a[name], abs=1e-5) if "/" in name else pytest.approx(a[name], rel=1e-5)
            assert b[name] == near, f"step {a['step']}, {name}"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 20 images of a folder and two that cannot be read."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(22):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        path = folder / f"{number:02d}.png"
        Image.fromarray(coarse).resize((110, 100), Image.Resampling.BICUBIC).save(path)
        if number in (3, 17):
            path.write_bytes(path.read_bytes()[:200])
    out = tmp_path_factory.mktemp("folder-features")
    sak(
        "cache", "--dataset", "folder", "--root", folder, "--teacher", "mini-dino,mini-sam", "--size", "96",
        "--views", "2", "--threads", "1", "--decoders", "0", "--out", out,
    )  # fmt: skip
    return out


def test_two_processes_distil_as_one(photographs: Path, tmp_path: Path) -> None:
    """20 valid rows in steps of 6: two rows are left over in every epoch, and two samples are invalid."""
    options = [
        *STEPS, "--set", "batch_size=6", "--set", "data={dataset='folder', split='train', size='96', views=2}",
        "--set", "teachers=['mini-dino', 'mini-sam']", "--out", photographs,
    ]  # fmt: skip
    sak("distill", "demo", "--run", tmp_path / "one", *options)
    done = sak("distill", "demo", "--run", tmp_path / "two", "--devices", "2", "--json", *options)
    assert json.loads(done.stdout)["stage"] == "distill", "one process alone speaks"
    assert "2 processes" in done.stderr and done.stderr.count("going on") == 0
    assert_follows(tmp_path / "one", tmp_path / "two")
    recipes = [(tmp_path / run / "recipe.json").read_text() for run in ("one", "two")]
    assert recipes[0] == recipes[1], "the number of processes is no part of the recipe"


@pytest.mark.slow
def test_two_processes_fine_tune_as_one(features: Path, tmp_path: Path) -> None:
    """Batch norms, pixel counts and class weights over all processes; the published ones differ."""
    # the published learning rate: a larger one amplifies rounding where normals are still near zero
    options = [*STEPS, "--set", "batch_size=12", "--set", "optimizer.lr=2e-5", "--out", features]
    sak("distill", "demo", "--run", tmp_path / "stage1", "--out", features, "--set", "steps=2", "--set", "threads=1")
    tune = ["finetune", "demo", "--from", tmp_path / "stage1", *options]
    one = answer(*tune, "--run", tmp_path / "one")
    two = answer(*tune, "--run", tmp_path / "two", "--devices", "2")
    assert_follows(tmp_path / "one", tmp_path / "two")
    for task, scores in one["validation"].items():
        for name, value in scores.items():
            assert two["validation"][task][name] == pytest.approx(value, rel=1e-2, abs=0.5), f"{task} {name}"
    published = ["--set", "loss.normalizers=process", "--set", "steps=1"]
    sak(*tune, "--run", tmp_path / "published", "--devices", "2", *published)
    first, own = logged(tmp_path / "one")[0], logged(tmp_path / "published")[0]
    assert own["saliency"] != pytest.approx(first["saliency"], rel=1e-5), "each process weighs its own classes"


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(features: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--set", "steps=20", "--set", "batch_size=8", "--set", "log_every=1", "--set", "accumulate=2"]
    process = start("distill", "demo", "--out", features, "--run", two, *TRAINING_STEPS, *options)
    wait_until((two / "metrics.jsonl").exists, process)
    process.terminate()
    assert process.wait(60) == 143 and 0 < len(logged(two)) < 20
    sak("distill", "demo", "--out", features, "--run", one, "--set", "threads=1", *options)
    done = sak("distill", "demo", "--out", features, "--run", two, "--devices", "2", *TRAINING_STEPS, *options)
    assert "going on at step" in done.stderr and "2 processes" in done.stderr
    assert_follows(one, two)


def test_rows_that_cannot_be_shared_are_refused(features: Path, tmp_path: Path) -> None:
    said = refusal(
        "distill", "demo", "--run", tmp_path / "r", "--out", features, "--devices", "2", "--set", "batch_size=9",
    )  # fmt: skip
    assert "batch_size = 9 rows cannot be shared evenly by 2 processes" in said


@pytest.mark.slow
def test_a_batch_norm_over_processes_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm, x, target = nn.BatchNorm2d(5).double(), torch.randn(6, 5, 3, 4).double(), torch.randn(6, 5, 3, 4).double()
    nn.init.normal_(norm.weight)
    mp.spawn(_norm_process, (x, target, norm.state_dict(), tmp_path), nprocs=2)
    x.requires_grad_()
    (norm(x) * target).mean().backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["x"] / 2, x.grad[rank * 3 : rank * 3 + 3])
        torch.testing.assert_close(found["weight"], norm.weight.grad)
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(found[name], buffer)


def test_a_batch_norm_over_processes_takes_half_precision_as_torchs_own_does(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        norm, x = nn.BatchNorm2d(5), (torch.randn(6, 5, 3, 4) * 3 + 100).bfloat16()
        shared = synchronise_norms(copy.deepcopy(norm), torch.device("cpu"))
        own, found = norm(x), shared(x)
        assert found.dtype == own.dtype == torch.bfloat16
        torch.testing.assert_close(found, own)
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(dict(shared.named_buffers())[name], buffer)
    finally:
        dist.destroy_process_group()


def _norm_process(rank: int, x: torch.Tensor, target: torch.Tensor, state: dict, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = nn.Sequential(nn.BatchNorm2d(5).double())
    model[0].load_state_dict(state)
    model = nn.parallel.DistributedDataParallel(synchronise_norms(model, torch.device("cpu")))
    mine = x[rank * 3 : rank * 3 + 3].requires_grad_()
    (model(mine) * target[rank * 3 : rank * 3 + 3]).mean().backward()
    norm = model.module[0]
    torch.save({"x": mine.grad, "weight": norm.weight.grad, **dict(norm.named_buffers())}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_studys_runs_take_the_devices_it_is_given(features: Path, tmp_path: Path) -> None:
    study = tmp_path / "two.toml"
    study.write_text(
        'recipe = "demo"\narms = ["single-task", "many-to-one"]\n'
        'set = { steps = 2, batch_size = 8, log_every = 1, threads = 1, tasks = ["depth"], "student.stem.depth" = 4, '
        '"student.stem.weights" = "" }\n'
        'test = { dataset = "rooms", split = "test", size = "96x96" }\n'
    )
    places = ["--out", features, "--json", "--runs"]
    said = refusal("ablate", study, *places, tmp_path, "--devices", "2", "--share-reads", "2")
    assert "a run takes all the devices" in said
    one = sak("ablate", study, *places, tmp_path / "one")
    two = sak("ablate", study, *places, tmp_path / "two", "--devices", "2")
    assert two.stderr.count("threads, 2 processes") == 3 and "processes" not in one.stderr
    for run in ("single-task-seed0-finetune/depth", "many-to-one-seed0-distill", "many-to-one-seed0-finetune"):
        alone, together = (logged(tmp_path / name / "two" / run)[0] for name in ("one", "two"))
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-4)
    again = sak("ablate", study, *places, tmp_path / "two", "--devices", "2")
    assert json.loads(again.stdout) == json.loads(two.stdout) and "2 processes" not in again.stderr
