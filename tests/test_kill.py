"""The real `sak cache` killed in every phase and at random moments ends byte-identical to an undisturbed run."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import sak

ARGUMENTS = ["cache", "--teacher", "mini-dino", "--split", "train", "--limit", "150", "--views", "2", "--threads", "1"]


def run(out: Path, fault: str | None = None, kill_after_s: float | None = None) -> int:
    arguments = [*ARGUMENTS, "--decoders", "0", "--out", str(out)]
    if kill_after_s is None:
        return sak(*arguments, env={"SAK_FAULT": fault} if fault else None, check=False).returncode
    command = [sys.executable, "-m", "pipeline", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    time.sleep(kill_after_s)
    process.send_signal(signal.SIGKILL)
    return process.wait(timeout=200)


def digests(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "log.jsonl" and "lock" not in path.name
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert run(out) == 0
    return digests(out)


@pytest.mark.parametrize("fault", ["prepare:2", "calibrate:1", "write:2", "commit:1", "commit:5"])
def test_killed_in_a_phase(fault: str, undisturbed: dict[str, str], tmp_path: Path) -> None:
    assert run(tmp_path, fault) == -signal.SIGKILL, "the phase must have been reached"
    committed = {name: d for name, d in digests(tmp_path).items() if "/c." in name and name in undisturbed}
    times = {name: (tmp_path / name).stat().st_mtime_ns for name, d in committed.items() if d == undisturbed[name]}
    assert run(tmp_path) == 0
    assert digests(tmp_path) == undisturbed
    if fault in ("write:2", "commit:5"):
        reused = [n for n, when in times.items() if (tmp_path / n).stat().st_mtime_ns == when]
        assert any("pixels" in name for name in reused), "committed shards must not be made again"


@pytest.mark.slow
def test_killed_at_random_moments(undisturbed: dict[str, str], tmp_path: Path) -> None:
    moments = random.Random(7)
    kills = 0
    for _ in range(12):
        kills += run(tmp_path, kill_after_s=moments.uniform(1.0, 6.0)) == -signal.SIGKILL
    assert kills >= 2
    assert run(tmp_path) == 0
    assert digests(tmp_path) == undisturbed
