"""SIGKILL inside `sak drop` and `sak repair`: what is left is a store, and the same command goes on to the end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache.maintenance.verification import verify_store
from tests.cache_toy import content
from tests.ready import Logged
from tests.small_images import TEACHERS, cache_arguments, make_images

DROPS = {("--teacher", "mini-dino"): 2, ("--teacher", "mini-sam", "--views", "1"): 3, ("--views", "1"): 9}
"""What is dropped -> fault points on the way."""
NUM_IMAGES = 70
"""Two shards a view."""


def damage(store: Path) -> list[str]:
    """Damage metadata, a manifest file beyond mending, calibration, pixels and features; returns the files."""
    source = ["pixels/c.0.1.0.0.0", "views/box/c.1.0.0", "zarr.json"]
    files = [*source, "manifest/source/view_0001.json"]
    for name in TEACHERS:
        files += [f"teachers/{name}/{file}" for file in ("level_1/c.1.0.0.0.0", "calibration/level_0/min/c.0")]
    files.append("manifest/teachers/mini-dino/view_0000.json")
    for name in files:
        data = bytearray((store / name).read_bytes())
        data[:12] = b"not as it was"[: len(data[:12])]
        (store / name).write_bytes(data)
    return files


class _Patient:
    """A whole store, of which copies are dropped from, damaged, killed, and held to what they should come to."""

    def __init__(self, folder: Path, commands: Logged) -> None:
        self.folder, self.commands = folder, commands
        self.kills: Counter[str] = Counter()
        self.num_finished = 0
        self.images = make_images(folder / "images", NUM_IMAGES)
        self._run(cache_arguments(self.images, folder / "whole"))
        self.whole = next((folder / "whole").glob("*.zarr"))
        self._content = content(self.whole)
        self._dropped: dict[Sequence[str], dict[str, bytes]] = {}

    def _run(self, arguments: Sequence[str], codes: Sequence[int] = (0,)) -> None:
        code = self.commands.run(arguments)
        assert code in codes, f"exit {code}; {self.commands.log.read_text()[-2000:]}"

    def _copy(self) -> Path:
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        return Path(shutil.copytree(self.whole, self.folder / "out" / self.whole.name))

    def _extract(self, store: Path) -> None:
        """Make what is not there, and hold the store to the whole one."""
        self._run(cache_arguments(self.images, store.parent))
        assert content(store) == self._content, "the store differs from the undisturbed one"
        self.num_finished += 1

    def _killed(self, arguments: Sequence[str], fault: str | None, delay_s: float) -> bool:
        """Run with a fault, or kill after a while; false where the command came through."""
        if fault:
            code = self.commands.run(arguments, {"SAK_FAULT": fault})
        else:
            process = self.commands.start(arguments)
            time.sleep(delay_s)
            os.kill(process, signal.SIGKILL)
            code = self.commands.wait()
        assert code in (0, -signal.SIGKILL), f"exit {code}; {self.commands.log.read_text()[-2000:]}"
        return code != 0

    def drop(self, what: Sequence[str], fault: str | None, delay_s: float = 0.0) -> bool:
        """Kill a drop; what is left verifies, and the same command, or extraction, goes on; false if none was met."""
        if what not in self._dropped:
            store = self._copy()
            self._run(["drop", str(store), *what, "--yes"])
            self._dropped[what] = content(store)
        store = self._copy()
        arguments = ["drop", str(store), *what, "--yes"]
        if not self._killed(arguments, fault, delay_s):
            return False
        self.kills["drop" if fault else "drop (random moment)"] += 1
        assert verify_store(store) == [], "half dropped is not damaged"
        for _ in range(2):  # the first may only finish what was begun, say so (exit code 2), and ask for another
            if content(store) != self._dropped[what]:
                self._run(arguments, (0, 2))
        assert content(store) == self._dropped[what], "it is not what an undisturbed drop leaves"
        self._extract(store)
        return True

    def repair(self, fault: str | None, delay_s: float = 0.0) -> bool:
        """Kill a repair; the same command goes on; false if it came through."""
        store = self._copy()
        damaged = damage(store)
        found = {problem.file for problem in verify_store(store)}
        # what a damaged manifest file is the manifest of cannot be told from bytes nobody committed
        assert found <= set(damaged) and {name for name in damaged if "manifest" in name} <= found
        arguments = ["repair", str(store), "--root", str(self.images)]
        if not self._killed(arguments, fault, delay_s):
            assert content(store) == self._content
            return False
        self.kills["repair" if fault else "repair (random moment)"] += 1
        assert {problem.file for problem in verify_store(store)} <= set(damaged), "a killed repair damaged more"
        self._run(arguments)
        assert verify_store(store) == []
        self._extract(store)
        return True


def run_maintenance_kills(folder: Path, times: int, at_random: int, most: int = 99, seed: int = 0) -> dict[str, Any]:
    """Kill `sak drop` and `sak repair` at each of their fault points, `times` times, and at random moments.

    Args:
        most: of fault points of a command, drawn where it has more.

    Raises:
        AssertionError: a kill cost something.
    """
    draw = random.Random(seed)
    with Logged(folder / "log.txt") as commands:
        patient = _Patient(folder, commands)
        for _ in range(times):
            points = 0
            while patient.repair(f"repair:{points + 1}"):
                points += 1
            assert points >= 6, "metadata, two calibrations, pixels, features, commitments"
            for what, count in DROPS.items():
                for number in _some(draw, count, most):
                    assert patient.drop(what, f"drop:{number}"), f"drop:{number} of {what} was not met"
        for number in range(at_random):
            delay_s = draw.uniform(0, 0.5 if number % 2 else 3.0)
            if number % 2:
                patient.drop(draw.choice(list(DROPS)), None, delay_s)
            else:
                patient.repair(None, delay_s)
        return {
            "kills": sum(patient.kills.values()),
            "by_command": dict(sorted(patient.kills.items())),
            "stores_finished_byte_identical": patient.num_finished,
        }


def _some(draw: random.Random, count: int, most: int) -> list[int]:
    """The numbers 1..count, or `most` of them."""
    return sorted(draw.sample(range(1, count + 1), min(count, most)))
