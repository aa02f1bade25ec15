"""Processes that have the slow libraries imported and fork one for each command: `sak` without seconds of imports.

What they fork is a process like any other: its own standard streams, signals, exit code and end, and this project's
modules imported anew. Only libraries are there already, imported in the environment that the command gets; what
they do not read (`OURS`) is set in the fork, so that a kill at another point needs no process of its own.
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
from typing import Any

LIBRARIES = ("torch", "torchvision", "torchmetrics", "timm", "zarr", "torch.utils.tensorboard", "scipy.ndimage")
OURS = ("HF_TOKEN", "PYTEST_CURRENT_TEST", "SAK_FAULT")
"""Variables that no library reads when it is imported."""
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

    def run(
        self, arguments: list[str], ours: Mapping[str, str], timeout: float, program: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """See `run` below; `ours` is what the fork finds in its environment besides what this process does."""
        assert self.process.stdin and self.process.stdout
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder, name)) for name in ("stdout", "stderr")]
            try:
                request = {"arguments": arguments, "files": files, "ours": dict(ours), "program": program}
                print(json.dumps(request), file=self.process.stdin, flush=True)
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


def run(
    arguments: list[str], environment: Mapping[str, str], timeout: float, program: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline ARGUMENTS` in `environment`, its output as text; TimeoutExpired after `timeout` s.

    Args:
        program: source to run instead, as `python -c PROGRAM ARGUMENTS` would.
    """
    ours = {name: value for name, value in environment.items() if name in OURS}
    key = frozenset(environment.items() - ours.items())
    if key not in _waiting or _waiting[key].process.poll() is not None:
        # the first environment is nearly every test's; of the others, each a few hundred MB, the latest is kept
        for other in list(_waiting)[1:]:
            _waiting.pop(other).stop()
        _waiting[key] = Ready(dict(key))
    return _waiting[key].run(arguments, ours, timeout, program)


def _wait() -> dict[str, Any] | None:
    """Fork for every request on standard input; in a fork the request, at the end of input None."""
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        for number, file in enumerate((os.devnull, *request["files"])):
            handle = os.open(file, os.O_RDWR | os.O_CREAT)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdin = open(0)  # noqa: SIM115
        os.environ.update(request["ours"])
        return request
    return None


if __name__ == "__main__":
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    # a fork need not collect what was there before it: that takes longer than most commands
    gc.freeze()
    if (request := _wait()) is not None:
        sys.argv[1:] = request["arguments"]
        if request["program"] is None:
            runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
        else:
            sys.argv[0] = "-c"
            exec(compile(request["program"], "<string>", "exec"), {"__name__": "__main__"})
