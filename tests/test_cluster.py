"""`sak cache` on Dask: the same bytes as one process, workers killed in the middle included; no silent waits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cache.maintenance.verification import verify_store
from cache.store import find_stores
from tests.cache_toy import content
from tests.conftest import answer, refusal, sak, start, wait_until

ARGUMENTS = ["--teacher", "mini-dino,mini-sam", "--split", "train", "--limit", "150", "--views", "3", "--threads", "1"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    sak("cache", *ARGUMENTS, "--out", out, "--decoders", "0")
    return content(out)


def kill_in_the_middle(out: Path, process: subprocess.Popen[str], workers: list[psutil.Process]) -> None:
    """SIGKILL a worker once a teacher's shard is written, before all are; then let the run end."""
    wait_until(lambda: any(out.glob("*.zarr/teachers/*/level_0/c.*")), process)
    victim = workers[0] if workers else local_workers(process)[0]
    victim.kill()
    assert len(list(out.glob("*.zarr/teachers/*/level_3/c.*"))) < 18, "it was in the middle"
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "dashboard at http://127.0.0.1:" in err and "Traceback" not in err


def local_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return [child for child in children if any("spawn_main" in part for part in child.cmdline())]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_worker_loses_nothing(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    process = start("cache", *ARGUMENTS, "--out", tmp_path, "--workers", "2")
    kill_in_the_middle(tmp_path, process, [])
    assert content(tmp_path) == undisturbed
    assert verify_store(find_stores(tmp_path)[0].path) == []
    again = sak("cache", *ARGUMENTS, "--out", tmp_path, "--decoders", "0")
    assert again.stderr.count("already") == 3, "the source and both teachers"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ctrl_c_ends_the_workers_too(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    process = start("cache", *ARGUMENTS, "--out", tmp_path, "--workers", "2")
    wait_until(lambda: any(tmp_path.glob("*.zarr/teachers/*/level_0/c.*")), process)
    workers = local_workers(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=10)[1]
    sak("cache", *ARGUMENTS, "--out", tmp_path, "--decoders", "0")
    assert content(tmp_path) == undisturbed, "a single process goes on where they stopped"


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[tuple[str, list[psutil.Process]]]:
    """A scheduler and two workers as a person starts them on a LAN, here all on the loopback."""
    file = tmp_path / "scheduler.json"
    own = ["--scheduler-file", file]
    started = [start("--host", "127.0.0.1", "--port", "0", *own, "--dashboard-address", "127.0.0.1:0",
                     module="distributed.cli.dask_scheduler")]  # fmt: skip
    try:
        wait_until(lambda: file.exists() and file.read_text().rstrip().endswith("}"), *started)  # it is whole by then
        for number in range(2):
            directory = tmp_path / f"worker-{number}"
            started.append(start(*own, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory",
                                 directory, "--memory-limit", "0", module="distributed.cli.dask_worker"))  # fmt: skip
        yield json.loads(file.read_text())["address"], [psutil.Process(process.pid) for process in started[1:]]
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_workers_of_a_scheduler_do_the_same(
    undisturbed: dict[str, bytes], scheduler: tuple[str, list[psutil.Process]], tmp_path: Path
) -> None:
    address, workers = scheduler
    said = refusal("cache", *ARGUMENTS, "--out", tmp_path / "x", "--scheduler", address, "--device", "cuda")
    assert "none does" in said and "--resources GPU=1" in said
    out = tmp_path / "features"
    process = start("cache", *ARGUMENTS, "--out", out, "--scheduler", address)
    kill_in_the_middle(out, process, workers)
    assert content(out) == undisturbed


@pytest.mark.slow
def test_workers_say_where_the_time_went_and_what_rows_are_worth(tmp_path: Path) -> None:
    arguments = ["--teacher", "mini-dino", "--limit", "70", "--views", "1", "--threads", "1", "--json"]
    done = sak("cache", *arguments, "--out", tmp_path / "two", "--workers", "2")
    timing = json.loads(done.stdout)["timings"]["mini-dino"]
    assert timing["rows"] == 70 and timing["seconds"] > 0
    assert sum(timing[share] for share in ("busy", "pixels", "encoding", "disk")) == pytest.approx(1, abs=0.001)
    assert timing["busy"] > 0 and timing["disk"] > 0
    assert "mini-dino: over all workers, 70 rows in" in done.stderr and "the teacher was busy" in done.stderr
    alone = json.loads(sak("cache", *arguments, "--out", tmp_path / "one", "--decoders", "0").stdout)
    ours, theirs = (
        answer("info", json.loads(run)["store"])["teachers"]["mini-dino"]["stored_fidelity"]
        for run in (done.stdout, json.dumps(alone))
    )
    assert ours["rows"] == theirs["rows"] == 2, "the first of every shard"
    for level, figures in theirs["levels"].items():
        assert ours["levels"][level] == pytest.approx(figures)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--workers", "1", "--device", "cuda"], "teachers need workers that offer GPU=1, and of 1 workers none does"),
        (["--scheduler", "tcp://127.0.0.1:1", "--workers", "2"], "leave --workers out"),
        (["--scheduler", "tcp://127.0.0.1:1"], "is it up, and has it workers?"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_had_is_an_error_and_not_a_wait(arguments: list[str], hint: str, tmp_path: Path) -> None:
    assert hint in refusal("cache", "--teacher", "mini-dino", "--out", tmp_path, *arguments)
    assert not list(tmp_path.iterdir())
