"""Between two logs a step asks the device for no number: on a GPU the host would wait for it there."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.training.watch import Watch
from tests.conftest import train

SHORT = ["steps=4", "log_every=4", "batch_size=4", "threads=1"]
SETTINGS = ["teachers=['mini-dino']", "stage1=off", "optimizer.clip=10.0", *SHORT]
ASKS = {
    torch.ops.aten._local_scalar_dense.default,  # item(), float(), bool()
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}


class Asked(TorchDispatchMode):
    """Keeps where a number of a tensor was asked for, but for AdamW's count of steps, which lies on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.where: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        picks = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func in ASKS or picks:
            frames = traceback.extract_stack()
            if not any("torch/optim" in frame.filename for frame in frames):
                own = [f for f in frames if "/pipeline/" in f.filename or "/sak_core/" in f.filename]
                self.where.append(f"{func} at {own[-1].filename}:{own[-1].lineno}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", ["distill", "finetune"])
def test_no_step_between_logs_asks_for_a_number(
    stage: str, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, inside = Asked(), []
    add, log = Watch.add, Watch.log

    def added(watch: Watch, *args: Any, **kwargs: Any) -> None:
        add(watch, *args, **kwargs)
        if not inside:
            asked.__enter__()
        inside.append(1)

    def logged(watch: Watch, *args: Any) -> None:
        asked.__exit__(None, None, None)
        log(watch, *args)

    monkeypatch.setattr(Watch, "add", added)
    monkeypatch.setattr(Watch, "log", logged)
    train(stage, SETTINGS, features, tmp_path / "run")
    assert len(inside) == 4 and asked.where == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: whether the host waits for one is unmeasured")
@pytest.mark.parametrize("stage", ["distill", "finetune"])
def test_a_gpu_is_not_waited_for(stage: str, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises at every synchronising call from the first step to the log."""
    add, log = Watch.add, Watch.log

    def added(watch: Watch, *args: Any, **kwargs: Any) -> None:
        add(watch, *args, **kwargs)
        torch.cuda.set_sync_debug_mode("error")

    def logged(watch: Watch, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        log(watch, *args)

    monkeypatch.setattr(Watch, "add", added)
    monkeypatch.setattr(Watch, "log", logged)
    try:
        train(stage, SETTINGS, features, tmp_path / "run")
    finally:
        torch.cuda.set_sync_debug_mode("default")
