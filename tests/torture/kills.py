"""SIGKILL, at named fault points and at random moments: what is committed stays, and the end is the undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache.format.manifest import SOURCE, PartManifest
from cache.maintenance.verification import verify_store
from cache.store import Store
from tests.cache_toy import tree
from tests.ready import ROOT, Logged
from tests.small_images import cache_arguments, make_images

NUM_IMAGES = 150
"""Three shards a view."""
PHASES = {"prepare": 6, "calibrate": 2, "write": 12, "commit": 18, "compact": 6, "grow": 5}
"""Fault points that `sak cache` passes on its way to two views of two teachers: phase -> how often."""

Stamps = dict[Path, tuple[int, int]]


class Victim:
    """One store that is made, killed and made again until it is whole.

    Args:
        folder: an empty one to work in.
    """

    def __init__(self, folder: Path, commands: Logged) -> None:
        self.folder, self.commands = folder, commands
        self.images = make_images(folder / "images", NUM_IMAGES)
        self.kills: Counter[str] = Counter()
        self.num_finished = self.num_reused = 0
        self._out = folder / "out"
        self._committed: Stamps = {}
        reference = folder / "undisturbed"
        start = time.monotonic()
        assert commands.run(self._arguments(reference)) == 0, commands.log.read_text()
        self.seconds = time.monotonic() - start
        self._undisturbed = tree(reference)

    def _arguments(self, out: Path) -> list[str]:
        return cache_arguments(self.images, out)

    def kill_at(self, fault: str) -> bool:
        """Run until `fault` (``phase:n``); false if the run came through without meeting it."""
        return self._after(self.commands.run(self._arguments(self._out), {"SAK_FAULT": fault}), fault.partition(":")[0])

    def kill_after(self, delay_s: float) -> bool:
        """Run, and kill from outside after a while; false if the run was faster."""
        process = self.commands.start(self._arguments(self._out))
        time.sleep(delay_s)
        os.kill(process, signal.SIGKILL)
        return self._after(self.commands.wait(), "random moment")

    def kill_cold(self, fault: str) -> bool:
        """As `kill_at`, in a process that a shell would start."""
        command = [sys.executable, "-m", "pipeline", *self._arguments(self._out)]
        with self.commands.log.open("a") as log:
            done = subprocess.run(
                command, env={**os.environ, "SAK_FAULT": fault}, stdout=log, stderr=log, cwd=ROOT, check=False
            )
        return self._after(done.returncode, f"{fault.partition(':')[0]} (cold process)")

    def finish(self) -> None:
        """Run undisturbed, and hold the result to what it should be."""
        if self._out.exists():
            self._after(self.commands.run(self._arguments(self._out)), "")

    def _after(self, code: int, what: str) -> bool:
        assert code in (0, -signal.SIGKILL), f"exit {code}; {self.commands.log.read_text()[-2000:]}"
        for path, stamp in self._committed.items():
            assert _stamp(path) == stamp, f"{path} was committed before and has been written again"
        self.num_reused += len(self._committed)
        if code:
            self.kills[what] += 1
            self._committed = self._look()
            return True
        assert tree(self._out) == self._undisturbed, "the finished store differs from the undisturbed one"
        self.num_finished += 1
        shutil.rmtree(self._out)
        self._committed = {}
        return False

    def _look(self) -> Stamps:
        """Open what the kill left: it verifies, and these files of it are committed."""
        stamps: Stamps = {}
        for path in self._out.glob("*.zarr"):
            if not PartManifest(path, SOURCE).exists:
                continue
            assert verify_store(path) == [], "half finished is not damaged"
            store = Store.open(path)
            for part in (SOURCE, *(f"teachers/{name}" for name in store.teachers)):
                manifest = store.part(part)
                for view in range(manifest.metadata.num_views):
                    for array in manifest.metadata.arrays_of(view):
                        files = [path / array.file(view, shard) for shard in manifest.view(view).shards]
                        stamps |= {file: _stamp(file) for file in files}
        return stamps


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns


def run_kills(folder: Path, a_phase: int, at_random: int, cold: Sequence[str] = (), seed: int = 0) -> dict[str, Any]:
    """Kill `a_phase` times in every phase, `at_random` times at random moments, and once at each fault of `cold`.

    Kills follow each other on one store until a run comes through, which is then compared; the next kill begins anew.

    Raises:
        AssertionError: a kill cost something.
    """
    draw = random.Random(seed)
    with Logged(folder / "log.txt") as commands:
        victim = Victim(folder, commands)
        faults = [phase for phase in PHASES for _ in range(a_phase)] + [""] * at_random
        draw.shuffle(faults)
        for phase in faults:
            if phase:
                # a store that is half made passes fewer points; on a new one every number is met
                while not victim.kill_at(f"{phase}:{draw.randint(1, PHASES[phase])}"):
                    pass
            else:
                while not victim.kill_after(draw.uniform(0, victim.seconds)):
                    pass
        victim.finish()
        for fault in cold:
            assert victim.kill_cold(fault), f"{fault} was not met"
            victim.finish()
        return {
            "kills": sum(victim.kills.values()),
            "by_phase": dict(sorted(victim.kills.items())),
            "stores_finished_byte_identical": victim.num_finished,
            "committed_files_kept": victim.num_reused,
        }
