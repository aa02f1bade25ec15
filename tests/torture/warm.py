"""`sak` processes without the seconds of imports: a server that has imported everything and forks for each command.

What is killed is a process of its own that runs the real command line; only its imports are shared. The server computes
nothing, so that no thread is lost by forking.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Warm:
    """Runs `sak` commands one at a time; a context manager that ends its server.

    Attributes:
        log: file that collects what the commands print.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def start(self, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """Begin a command; returns its process id."""
        assert self._server.stdin is not None
        request = {"arguments": list(arguments), "env": dict(env or {}), "log": str(self.log)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._answer())

    def wait(self) -> int:
        """How the command ended: its exit code, or the negative number of the signal that killed it."""
        return int(self._answer())

    def run(self, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """`start` and `wait`."""
        self.start(arguments, env)
        return self.wait()

    def _answer(self) -> str:
        assert self._server.stdout is not None
        answer = self._server.stdout.readline()
        assert answer, "the server of warm processes has ended"
        return answer


def _serve() -> None:
    from PIL import Image

    import sak_core.datasets.folder
    import sak_core.miniature.network  # noqa: F401

    Image.init()
    answers = os.fdopen(os.dup(1), "w")
    pid: int | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if pid is not None:
            os.waitpid(pid, 0)
        pid = os.fork()
        if pid == 0:
            _become(request)
        print(pid, file=answers, flush=True)
        # It stays a zombie, whose number is no one else's, until the next command: whoever kills it late hits nothing.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        print(code, file=answers, flush=True)


def _become(request: Mapping[str, Any]) -> None:
    """Run a command in this process as `python -m pipeline` would, and end."""
    from pipeline.cli import main

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["env"])
    sys.argv = ["sak", *request["arguments"]]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
