"""``python -m pipeline.studies.group``: trains the runs that are pickled on stdin; stdout has how each ended."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time

from pipeline.interrupts import Interrupted
from pipeline.runs.holder import wait_until_free
from pipeline.studies.ablate import run_group


def main() -> None:
    """Train what stdin asks for; ended by SIGTERM, or with the process that started it, it saves checkpoints first."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints, that is no answer
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    group = pickle.load(sys.stdin.buffer)
    for call in group:
        wait_until_free(call.run)  # of a worker that was lost, whose process still saves
    try:
        ended = run_group(group, devices=1)
    except Interrupted as stopped:
        sys.exit(stopped.exit_code)
    with answer:
        pickle.dump(ended, answer)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
