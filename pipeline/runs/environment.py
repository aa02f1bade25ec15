"""On what a run was trained: commit, device, versions. For reports: no number depends on what is written here."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from pipeline import __version__
from pipeline.machine import processor

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str | int | None]:
    """commit ("+ changes" where the checkout has some, None outside of one), device, threads and versions."""
    has_gpu = torch.cuda.is_available()
    return {
        "commit": commit(ROOT),
        "device": torch.cuda.get_device_name() if has_gpu else processor(),
        "kind": "GPU" if has_gpu else "CPU",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sak": __version__,
    }


def commit(checkout: Path) -> str | None:
    """The commit of a checkout's own repository; None where the code was installed from elsewhere, or git is not."""
    if not (checkout / ".git").exists():
        return None
    said = [_git(checkout, "rev-parse", "HEAD"), _git(checkout, "status", "--porcelain", "--untracked-files=no")]
    if said[0] is None:
        return None
    return f"{said[0]} + changes" if said[1] else said[0]


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
