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
import posix
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    *("torch", "torchvision", "torchmetrics", "timm", "zarr", "torch.utils.tensorboard", "scipy.ndimage"),
    *("click", "pydantic", "safetensors.torch", "lightning_fabric", "fastcrc"),
)
OURS = ("HF_TOKEN", "PYTEST_CURRENT_TEST", "SAK_FAULT")
"""Variables that no library reads when it is imported."""
COMMAND = ("pipeline.cli", "pipeline.commands.cache", "sak_core.datasets.folder", "sak_core.miniature.network")
"""Of this project, for a process that runs many commands of one kind."""
ROOT = Path(__file__).parents[1]


class Ready:
    """One waiting process, seen from the tests; it runs a command at a time.

    imported: modules that it has imported beside `LIBRARIES`.
    """

    def __init__(self, environment: Mapping[str, str], imported: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ready", *imported],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        atexit.register(self.stop)

    def start(
        self, arguments: Sequence[str], ours: Mapping[str, str], files: Sequence[Path], program: str | None = None
    ) -> int:
        """Begin a command; returns its process id, which is nobody else's until the next command begins.

        Args:
            ours: what it finds in its environment besides what this process does.
            files: its standard output and error are appended to.
            program: see `run` below.
        """
        assert self.process.stdin
        request = {"arguments": arguments, "files": [str(file) for file in files], "ours": dict(ours)}
        self.process.stdin.write(json.dumps({**request, "program": program}).encode() + b"\n")
        return self._answer(None)

    def wait(self, timeout: float | None = None) -> int:
        """How the command ended: its exit code, or the negative number of the signal that killed it."""
        return self._answer(timeout)

    def run(
        self, arguments: list[str], ours: Mapping[str, str], timeout: float, program: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """See `run` below, and `start`."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("stdout", "stderr")]
            try:
                self.start(arguments, ours, files, program)
                code = self.wait(timeout)
            except BaseException:
                # also a test's own time limit: nothing of this command may answer the next one
                self.stop()
                raise
            return subprocess.CompletedProcess(arguments, code, *(file.read_text() for file in files))

    def _answer(self, timeout: float | None) -> int:
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.process.args, timeout or 0)
        answer = self.process.stdout.readline()
        assert answer, "the waiting process has ended"
        return int(answer)

    def stop(self) -> None:
        """End it and what it forked."""
        atexit.unregister(self.stop)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


class Logged:
    """Commands of one kind, one at a time, that append what they print to a file; a context manager.

    log: the file.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._ready = Ready({**os.environ, "OMP_NUM_THREADS": "1"}, COMMAND)

    def __enter__(self) -> Logged:
        return self

    def __exit__(self, *error: object) -> None:
        self._ready.stop()

    def start(self, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """See `Ready.start`; `env` may hold `OURS` alone."""
        return self._ready.start(arguments, env or {}, [self.log, self.log])

    def wait(self) -> int:
        """See `Ready.wait`."""
        return self._ready.wait()

    def run(self, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """`start` and `wait`."""
        self.start(arguments, env)
        return self.wait()


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
    pid = 0
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        if pid:
            os.waitpid(pid, 0)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            # it stays a zombie, whose number is no one else's, until the next command: a late kill hits nothing
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert ended is not None
            print(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, flush=True)
            continue
        for number, file in enumerate((os.devnull, *request["files"])):
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdin = open(0)  # noqa: SIM115
        os.environ.update(request["ours"])
        return request
    return None


def _end(code: int) -> NoReturn:
    """What Python does at the end of a process, but for taking torch apart, which takes longer than most commands."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    for library in (*LIBRARIES, *sys.argv[1:]):
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    # a fork need not collect what was there before it: that takes longer than most commands
    gc.freeze()
    if os.fsync is posix.fsync:  # nothing in the tests survives a power cut, and nothing needs to
        os.fsync = lambda fd: None
    if (request := _wait()) is not None:
        sys.argv[1:] = request["arguments"]
        code: object = 0
        try:
            if request["program"] is None:
                runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
            else:
                sys.argv[0] = "-c"
                exec(compile(request["program"], "<string>", "exec"), {"__name__": "__main__"})
        except SystemExit as end:
            code = end.code or 0
        if isinstance(code, int):  # another one is a message, which Python itself prints
            _end(code)
        raise SystemExit(code)
