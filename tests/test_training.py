"""Training: a killed run resumed equals the uninterrupted one bit for bit; a loss that is not finite stops it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pipeline.training.distill
from pipeline.advice import explain
from pipeline.errors import UserError
from pipeline.recipes.arms import build_model
from pipeline.recipes.config import load_recipe, parse_set
from pipeline.recipes.stores import find_store
from pipeline.runs import Places, checkpoint, load_weights, read_recipe
from pipeline.training.distill import distill
from pipeline.training.ema import Ema
from pipeline.training.watch import StepResult, Watch
from tests.conftest import logged, sak, start, wait_until

STEPS = ["--set", "steps=12", "--set", "batch_size=8", "--set", "checkpoint_every=3", "--set", "threads=1"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / "model.safetensors")


class Killed(BaseException):
    """Stands for a SIGKILL: nothing may be saved on its way."""


def distilled(features: Path, run: Path, *settings: str, kill_at: int | None = None) -> dict:
    """`sak distill demo` in this process; `kill_at` ends it in that part of a step, counted from 1."""
    recipe = load_recipe("demo", "distill", parse_set([s for s in (*STEPS, *settings) if s != "--set"]))
    calls = 0

    def add(watch: Watch, *args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            raise Killed
        real(watch, *args, **kwargs)

    real = Watch.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "add", add)
        return distill(recipe, run, Places(features))


def assert_equal_checkpoints(one: Path, two: Path, which: str = "last") -> None:
    """Every tensor bit for bit, and every number of the state but the seconds."""
    files = sorted(path.name for path in (one / which).iterdir())
    assert files == sorted(path.name for path in (two / which).iterdir())
    for name in files:
        left, right = one / which / name, two / which / name
        if name == "state.json":
            states = [json.loads(path.read_text()) for path in (left, right)]
            assert all(state.pop("seconds") >= 0 and sum(state.pop("seconds_by_part").values()) > 0 for state in states)
            assert states[0] == states[1]
        else:
            assert left.read_bytes() == right.read_bytes(), name


ALL = ["accumulate=2", "ema=0.7", "optimizer.clip=1.0", "steps=7"]
"""Everything that a checkpoint must carry; 12 parts of 4 rows are an epoch, 6 steps."""


def test_killed_at_any_step_and_resumed_equals_uninterrupted(features: Path, tmp_path: Path) -> None:
    distilled(features, tmp_path / "whole", *ALL)
    assert sorted(p.stem for p in (tmp_path / "whole" / "last").glob("*.safetensors")) == [
        "average", "model", "optimizer", "random",
    ]  # fmt: skip
    for part in (2, 5, 7, 10, 13, 14):
        run = tmp_path / f"cut{part}"
        with pytest.raises(Killed):
            distilled(features, run, *ALL, kill_at=part)
        torch.manual_seed(part)  # a resumed process starts with other random numbers
        distilled(features, run, *ALL)
        assert_equal_checkpoints(tmp_path / "whole", run)


@pytest.mark.slow
def test_killed_from_outside_and_resumed_equals_uninterrupted(features: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    distilled(features, whole)
    process = start("distill", "demo", "--out", features, "--run", cut, *STEPS)
    wait_until((cut / "last" / "state.json").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (cut / "last").exists() and not (cut / "results.json").exists(), "it must be killed in the middle"
    resumed = sak("distill", "demo", "--out", features, "--run", cut, *STEPS)
    assert "going on at step" in resumed.stderr
    assert_equal_checkpoints(whole, cut)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("devices", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_signal_saves_and_leaves(
    number: signal.Signals, code: int, devices: str, features: Path, tmp_path: Path
) -> None:
    """No checkpoint is due: the signal alone makes one, and the resumed run equals an undisturbed one."""
    long = ["--set", "steps=24", "--set", "checkpoint_every=1000", "--set", "log_every=2", "--devices", devices]
    run = tmp_path / "run"
    process = start("distill", "demo", "--out", features, "--run", run, *STEPS, *long)
    wait_until((run / "metrics.jsonl").exists, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors and "the same command goes on where it stopped" in errors
    step = json.loads((run / "last" / "state.json").read_text())["step"]
    assert 0 < step < 24 and f"stopped after step {step}, saved" in errors
    if devices == "1" and number == signal.SIGTERM:
        sak("distill", "demo", "--out", features, "--run", run, *STEPS, *long)
        distilled(features, tmp_path / "whole", "steps=24", "checkpoint_every=1000", "log_every=2")
        assert_equal_checkpoints(tmp_path / "whole", run)


def test_a_resume_from_something_else_is_refused(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Killed):
        distilled(features, run, kill_at=5)
    with pytest.raises(UserError, match=r"another recipe: .*seed: 0 against 1"):
        distilled(features, run, "seed=1")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.runs.origin.__version__", "9.9")
        with pytest.raises(UserError, match=r"something else: code\.sak: '0\.1\.0' against '9\.9'"):
            distilled(features, run)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.runs.origin.digest", lambda *args: {"source": "other"})
        with pytest.raises(UserError, match=r"something else: caches\.rooms-unlabelled-.*'other'"):
            distilled(features, run)
    assert distilled(features, run)["step"] == 12


def test_parts_of_a_step_are_the_step(features: Path, tmp_path: Path) -> None:
    """Four parts of two rows descend as one batch of eight: the distillation loss is a mean over rows."""
    settings = ["steps=8", "log_every=1"]
    distilled(features, tmp_path / "one", *settings)
    distilled(features, tmp_path / "parts", *settings, "accumulate=4")
    whole, parts = weights(tmp_path / "one"), weights(tmp_path / "parts")
    for one, other in zip(logged(tmp_path / "one"), logged(tmp_path / "parts"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    moved = max(float((whole[name] - parts[name]).abs().max()) for name in whole)
    assert moved < 1e-4


def test_averaged_weights_by_hand() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    model[0].weight.data.fill_(8.0)
    ema = Ema(model, 0.75)
    for value, expected in ((4.0, 7.0), (0.0, 5.25), (1.25, 4.25)):
        model[0].weight.data.fill_(value)
        model[1].running_mean.fill_(value)
        ema.update(model)
        assert ema.model[0].weight.item() == expected
        assert ema.model[1].running_mean.item() == value, "buffers are copied"
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())


def test_averaged_weights_are_what_is_scored(features: Path, tmp_path: Path) -> None:
    distilled(features, tmp_path / "run", "ema=0.9")
    averaged = load_file(tmp_path / "run" / "last" / "average.safetensors")
    assert not all(torch.equal(averaged[name], tensor) for name, tensor in weights(tmp_path / "run").items())
    recipe = read_recipe(tmp_path / "run")
    store = find_store(features, recipe.data, recipe.teachers)
    model = build_model(recipe, store, ())
    load_weights(tmp_path / "run", model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, averaged[name]), name


def test_the_best_validation_is_kept_and_used(features: Path, tmp_path: Path) -> None:
    validated = ["validation={dataset='rooms', split='val', size='96x96', every=2}", "optimizer.lr=2e-2"]
    result = distilled(features, tmp_path / "run", *validated)
    losses = {line["step"]: line["validation/loss"] for line in logged(tmp_path / "run") if "validation/loss" in line}
    assert sorted(losses) == [2, 4, 6, 8, 10, 12]
    assert result["step"] == min(losses, key=losses.__getitem__)
    state = json.loads((tmp_path / "run" / "best" / "state.json").read_text())
    assert state["step"] == result["step"] == state["best"]["step"]
    run = tmp_path / "cut"
    with pytest.raises(Killed):
        distilled(features, run, *validated, kill_at=9)
    distilled(features, run, *validated)
    assert_equal_checkpoints(tmp_path / "run", run)
    assert (run / "best" / "model.safetensors").read_bytes() == (
        tmp_path / "run" / "best" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["validation={dataset='rooms', split='test', size='96x96'}"], "test scores never choose a checkpoint"),
        (["validation={dataset='rooms', split='val', size='96x96'}", "validation.best_by=losss"], "did you mean loss"),
        ([], "validation.dataset is missing; validation.split is missing"),
    ],
)
def test_wrong_validations_are_refused(settings: list[str], words: str, features: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        distilled(features, tmp_path / "run", *settings, "validation.every=2")


def test_a_bad_term_is_named_with_its_step_and_rows(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def broken(*args: Any) -> StepResult:
        result, batch, step = real(*args), args[-2], args[-1]
        if step == 4:
            seen.append(batch.samples.tolist())
            nan = torch.tensor(float("nan"))
            return StepResult(result.loss + nan, {**result.terms, "mini-sam_level2": nan}, result.output)
        return result

    real = pipeline.training.distill._loss
    monkeypatch.setattr("pipeline.training.distill._loss", broken)
    with pytest.raises(UserError, match=r"step 5: mini-sam_level2 is nan; rows \(sample/view\) (\d+)/\d") as caught:
        distilled(features, tmp_path / "run", "log_every=100")
    assert f"(sample/view) {seen[0][0]}/" in str(caught.value)
    assert json.loads((tmp_path / "run" / "last" / "state.json").read_text())["step"] == 3
    monkeypatch.undo()
    distilled(features, tmp_path / "run", "log_every=100")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA error: the allocator gave up"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_out_of_memory_names_what_to_change(error: Exception) -> None:
    message = explain(error)
    assert message is not None and "out of memory" in message
    assert "batch_size" in message and "precision" in message


def layer() -> checkpoint.Trainable:
    """A network of one layer, and what trains it."""
    model = torch.nn.Linear(2, 2)
    return checkpoint.Trainable(model, torch.optim.AdamW(model.parameters()))


def state(step: int) -> dict[str, Any]:
    """What a checkpoint says of a run after so many steps."""
    return {"step": step, "seconds": 0.5, "recipe": {}, "loader": {}}


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    trained = layer()
    model = trained.model
    checkpoint.save(tmp_path / "last", trained, state(1))
    model.bias.data[1] = float("inf")
    with pytest.raises(UserError, match="step 2: model: bias is not finite"):
        checkpoint.save(tmp_path / "last", trained, state(2))
    model.bias.data[1] = 0.0
    model(torch.ones(1, 2)).sum().backward()
    trained.optimizer.step()
    trained.optimizer.state[model.weight]["exp_avg_sq"][0, 0] = float("inf")  # under which the weight stands still
    with pytest.raises(UserError, match=r"step 3: optimizer: 0.exp_avg_sq is not finite"):
        checkpoint.save(tmp_path / "last", trained, state(3))
    assert checkpoint.restore(tmp_path / "last", trained)["step"] == 1


def test_a_checkpoint_that_was_begun_and_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = layer()

    def killed(path: Path) -> None:
        if path.suffix != ".safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_sync", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "last", trained, state(1))
    assert checkpoint.find(tmp_path / "last") is None


def test_a_checkpoint_is_whole_at_every_moment(tmp_path: Path) -> None:
    trained, fresh = layer(), layer()
    trained.model(torch.ones(1, 2)).sum().backward()
    trained.optimizer.step()
    folder = tmp_path / "last"
    checkpoint.save(folder, trained, state(1))
    folder.rename(tmp_path / "last.old")  # killed between the two renames of the next save
    found = checkpoint.find(folder)
    assert found is not None
    assert checkpoint.restore(found, fresh)["step"] == 1
    assert torch.equal(fresh.model.weight, trained.model.weight)
    for left, right in zip(trained.optimizer.state.values(), fresh.optimizer.state.values(), strict=True):
        assert torch.equal(left["exp_avg"], right["exp_avg"])


def test_a_second_kill_while_saving_costs_no_checkpoint_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = layer()
    checkpoint.save(tmp_path / "last", trained, state(1))
    (tmp_path / "last").rename(tmp_path / "last.new")  # the first one, between two renames

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_sync", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "last", trained, state(2))
    found = checkpoint.find(tmp_path / "last")
    assert found is not None and checkpoint.read_state(found)["step"] == 1
