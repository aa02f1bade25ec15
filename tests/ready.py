"""Processes that have the slow libraries imported and fork one for each command: `sak` without seconds of imports.

What they fork is a process like any other: its own standard streams, signals, exit code and end, and this project's
modules imported anew. Only libraries are there already, imported in the environment that the command gets.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "torchmetrics", "timm", "zarr", "torch.utils.tensorboard", "scipy.ndimage")
ROOT = Path(__file__).parents[1]


class Ready:
    """One waiting process, seen from the tests."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ready"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        atexit.register(self.stop)

    def run(self, arguments: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """`python -m pipeline ARGUMENTS` in a fork of it; TimeoutExpired after `timeout` s."""
        assert self.process.stdin and self.process.stdout
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder, name)) for name in ("stdout", "stderr")]
            try:
                print(json.dumps({"arguments": arguments, "files": files}), file=self.process.stdin, flush=True)
                if not select.select([self.process.stdout], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(arguments, timeout)
                code = int(self.process.stdout.readline())
            except BaseException:
                # also a test's own time limit: nothing of this command may answer the next one
                self.stop()
                raise
            return subprocess.CompletedProcess(arguments, code, *(Path(file).read_text() for file in files))

    def stop(self) -> None:
        """End it and what it forked."""
        atexit.unregister(self.stop)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


_waiting: dict[frozenset[tuple[str, str]], Ready] = {}


def run(arguments: list[str], environment: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline ARGUMENTS` in `environment`, its output as text; TimeoutExpired after `timeout` s."""
    key = frozenset(environment.items() - {("PYTEST_CURRENT_TEST", environment.get("PYTEST_CURRENT_TEST"))})
    if key not in _waiting or _waiting[key].process.poll() is not None:
        # the first environment is nearly every test's; of the others, each a few hundred MB, the latest is kept
        for other in list(_waiting)[1:]:
            _waiting.pop(other).stop()
        _waiting[key] = Ready(dict(key))
    return _waiting[key].run(arguments, timeout)


def _wait() -> list[str] | None:
    """Fork for every request on standard input; in a fork the request's arguments, at the end of input None."""
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        for number, file in enumerate((os.devnull, *request["files"])):
            handle = os.open(file, os.O_RDWR | os.O_CREAT)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdin = open(0)  # noqa: SIM115
        return list(request["arguments"])
    return None


if __name__ == "__main__":
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    # a fork need not collect what was there before it: that takes longer than most commands
    gc.freeze()
    if (words := _wait()) is not None:
        sys.argv[1:] = words
        runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
