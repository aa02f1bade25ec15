"""A study on the workers of a Dask scheduler: the numbers of one process, a killed worker included; no silent waits."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from tests.conftest import logged, sak, start, wait_until
from tests.fields import cache_fields, make_fields, write_recipe, write_study
from tests.test_cluster import scheduler  # noqa: F401 (a fixture)

ARMS = ("multi-task", "low", "high")


@pytest.fixture(scope="module")
def fields(module_folder: Path) -> Path:
    """A folder of small caches."""
    cache_fields(make_fields(module_folder / "data", crops=True), module_folder / "features")
    return module_folder / "features"


def study_of(folder: Path, steps: int) -> Path:
    low, high = (
        f'[[variations]]\nname = "{name}"\narm = "multi-task"\nset = {{ "optimizer.lr" = {rate} }}'
        for name, rate in (("low", 1e-4), ("high", 1e-2))
    )
    recipe = write_recipe(folder, "log_every = 1", "checkpoint_every = 5")
    recipe.write_text(recipe.read_text().replace("steps = 3", f"steps = {steps}"))
    return write_study(folder, recipe, low, high)


def without_seconds(table: dict[str, object]) -> str:
    return re.sub(r'"seconds[^,}]*[,}]', "", json.dumps(table))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_on_workers_is_the_one_of_this_process(
    fields: Path,
    scheduler: tuple[str, list[psutil.Process]],  # noqa: F811
    tmp_path: Path,
) -> None:
    """One of two workers is killed while it trains; then Ctrl-C, and the same command goes on."""
    address, workers = scheduler
    study = study_of(tmp_path, 60)
    sak("ablate", study, "--out", fields, "--runs", tmp_path / "here")
    runs = tmp_path / "there" / "study"
    words = ["ablate", study, "--out", fields, "--runs", tmp_path / "there", "--json"]

    def begun(least: int) -> list[str]:
        return [arm for arm in ARMS if (runs / f"{arm}-seed0-finetune/metrics.jsonl").exists()
                and len(logged(runs / f"{arm}-seed0-finetune")) >= least]  # fmt: skip

    process = start(*words, "--scheduler", address)
    wait_until(lambda: len(begun(10)) >= 2, process)
    trains = [worker for worker in workers if worker.children()]
    orphan = trains[0].children()[0]
    trains[0].kill()
    _, alive = psutil.wait_procs([orphan], timeout=60)
    assert not alive, "what it trained ends with it"
    wait_until(lambda: len(begun(40)) >= 1, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in err, err
    left = next(worker for worker in workers if worker is not trains[0])
    wait_until(lambda: not left.children())  # nobody waits for what it trains: it ends, with a checkpoint
    assert not (tmp_path / "there/study/table.json").exists()
    again = sak(*words, "--scheduler", address)
    assert "ended at tcp://127.0.0.1:" in again.stderr
    here, there = (json.loads((tmp_path / name / "study/table.json").read_text()) for name in ("here", "there"))
    assert without_seconds(here) == without_seconds(there)
    for arm in ARMS:
        one, other = (logged(tmp_path / name / f"study/{arm}-seed0-finetune") for name in ("here", "there"))
        assert one == other and len(one) == 60, "bit for bit, whoever trained it"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--scheduler", "tcp://127.0.0.1:1", "--workers", "2"], "leave --workers and --devices out"),
        (["--scheduler", "tcp://127.0.0.1:1"], "is it up, and has it workers?"),
    ],
)
def test_what_cannot_be_had_is_an_error(fields: Path, tmp_path: Path, arguments: list[str], hint: str) -> None:
    done = sak("ablate", study_of(tmp_path, 3), "--out", fields, "--runs", tmp_path, *arguments, check=False)
    assert done.returncode == 2 and hint in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_that_fails_and_one_that_nobody_sees_leave_gaps(
    fields: Path,
    scheduler: tuple[str, list[psutil.Process]],  # noqa: F811
    tmp_path: Path,
) -> None:
    study = study_of(tmp_path, 3)
    study.write_text(study.read_text().replace("0.01", "1e30"))
    done = sak("ablate", study, "--out", fields, "--runs", tmp_path, "--json", "--scheduler", scheduler[0], check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (failed,) = json.loads(done.stdout)["failed"]
    assert failed["run"] == "high-seed0-finetune" and "step 2: semseg is" in failed["why"]
