"""What a worker of a study does in a test: little is imported, as each worker does so anew."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from pipeline.interrupts import Interrupted


def trains_or_is_stopped(work: Path) -> None:
    """Stands for a worker's runs: "trains" goes on for long, "stopped" is told to stop meanwhile."""
    begun = work.with_name("begun")
    if work.name == "stopped":
        while not begun.exists():
            time.sleep(0.01)
        raise Interrupted(signal.SIGTERM)
    begun.touch()
    time.sleep(10)
    work.touch()
