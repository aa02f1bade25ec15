"""Train a miniature: a fixed number of steps in float32 on one thread, so that it can be made again.

A run writes `state.pt` as it goes and continues from there when started again; at the end it writes the
weights (fp16 safetensors) and a card (JSON) that says how they came about.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.miniature.objectives import LESSONS
from pipeline.miniature.pixels import PixelNet
from pipeline.miniature.scenes import SceneStore, render_scenes
from sak_common.names import UnknownName, unknown
from sak_common.random import philox
from sak_core.miniature.network import PATCH, SHIPPED, file_digest
from sak_core.weights.digests import state_digest

REPORT_EVERY = 25
"""Steps between lines of a training's log."""


@dataclass(frozen=True)
class MiniatureConfig:
    """The settings all miniature teachers share."""

    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0


def learning_rate(config: MiniatureConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth, for steps 0 ... num_steps − 1."""
    warmup = max(1, round(config.warmup_share * num_steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def versions() -> dict[str, str]:
    """Of what decides numbers."""
    return {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}


class MiniatureTraining:
    """A miniature in training: network, objective, optimizer, step and CPU-seconds spent.

    Args:
        name: a key of `LESSONS`.
        scenes: what it is trained on.
        num_steps: length of the run, which sets the learning-rate schedule.
        config: the settings.
    """

    def __init__(self, name: str, scenes: SceneStore, num_steps: int, config: MiniatureConfig) -> None:
        torch.manual_seed(config.seed)
        self.name, self.scenes, self.num_steps, self.config = name, scenes, num_steps, config
        self.net = LESSONS[name].network()
        self.pixel_net = PixelNet(self.net, SHIPPED[name])
        self.objective: nn.Module = LESSONS[name].build(scenes.attributes)
        self.modules = nn.ModuleDict({"net": self.net, "objective": self.objective}).train()
        # Decay for matrices only, as usual: not for biases, norms and the mask token.
        parameters = list(self.modules.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95))
        self.step = 0
        self.cpu_s = 0.0

    def train_step(self) -> dict[str, float]:
        """Make one step; return the loss terms.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        start = time.process_time()
        batch = self.scenes.batch(self._indices())
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.step) % 2**64)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.num_steps)
        terms = self.objective(self.pixel_net, batch, generator)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{self.name}: the loss is not finite at step {self.step}")
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([loss])
        nn.utils.clip_grad_norm_(self.modules.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.step += 1
        self.cpu_s += time.process_time() - start
        return {k: v.item() for k, v in terms.items()} | {"loss": loss.item()}

    def _indices(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Scenes of this step: epochs are permutations keyed by seed and epoch, cut into whole batches."""
        per_epoch = len(self.scenes) // self.config.batch_size
        epoch, position = divmod(self.step, per_epoch)
        order = np.random.Generator(philox(self.config.seed, epoch)).permutation(len(self.scenes))
        return order[position * self.config.batch_size :][: self.config.batch_size].astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, tensors and plain values only."""
        return {
            "name": self.name,
            "num_steps": self.num_steps,
            "config": asdict(self.config),
            "scenes": self.scenes.header,
            "step": self.step,
            "cpu_s": self.cpu_s,
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it differs in a setting, which is named.
        """
        own = self.state_dict()
        for key in ("name", "num_steps", "config", "scenes"):
            if state[key] != own[key]:
                raise ValueError(f"the state in this folder has {key}={state[key]}, this run {own[key]}")
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.cpu_s = state["step"], state["cpu_s"]

    def export(self, folder: Path) -> Path:
        """Write the network's weights as fp16 and the card beside them; return the weights' path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.safetensors"
        tensors = {
            k: v.detach().half().contiguous()
            for k, v in self.net.state_dict().items()
            if not k.endswith("num_batches_tracked")
        }
        save_file(tensors, path, metadata={"format": "pt", "name": self.name})
        card = {
            "name": self.name,
            "objective": SHIPPED[self.name].objective,
            "licence": "Apache-2.0",
            "sha256": file_digest(path),
            "state": state_digest(tensors),
            "num_parameters": sum(p.numel() for p in self.net.parameters()),
            "patch": PATCH,
            "mean": SHIPPED[self.name].mean,
            "std": SHIPPED[self.name].std,
            "num_steps": self.step,
            "cpu_seconds": round(self.cpu_s, 1),
            "num_images": self.step * self.config.batch_size,
            "training": asdict(self.config) | {"precision": "float32", "threads": torch.get_num_threads()},
            "scenes": {"dataset": "rooms"} | self.scenes.header,
            "versions": versions(),
            "command": f"sak miniature train {self.name}",
        }
        path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
        return path


def train(
    name: str,
    out: Path,
    *,
    num_scenes: int = 8000,
    num_steps: int | None = None,
    config: MiniatureConfig | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Train the miniature `name`, rendering the scenes first where they are missing.

    Args:
        name: `mini-dino`, `mini-clip`, `mini-sam` or the stem, `mini-vit`.
        out: folder for weights, card, log and the state to go on from; a run found there is continued. The rendered
            scenes, shared by all miniatures, lie in its `scenes`.
        num_scenes: how many scenes to render.
        num_steps: length of the run; the lesson's own by default.
        config: other settings.
        report: called with a line of text now and then.

    Returns:
        The path of the weights, `out / f"{name}.safetensors"`.

    Raises:
        UnknownName: there is no such miniature.
        ValueError: `out` holds something made with other settings.
        FloatingPointError: the loss is not finite.
    """
    if name not in LESSONS:
        raise UnknownName(unknown("miniature", name, LESSONS))
    torch.set_num_threads(1)
    store = render_scenes(
        out / "scenes",
        num_scenes,
        report=lambda done: report(f"scenes {done}/{num_scenes}") if done % 500 == 0 else None,
    )
    training = MiniatureTraining(name, store, num_steps or LESSONS[name].num_steps, config or MiniatureConfig())
    out.mkdir(parents=True, exist_ok=True)
    state_path = out / f"{name}.state.pt"
    if state_path.exists():
        training.load_state_dict(torch.load(state_path, weights_only=True))
        report(f"{name}: going on from step {training.step}")
    sums: dict[str, float] = {}
    since = 0
    with (out / f"{name}.jsonl").open("a") as log:
        while training.step < training.num_steps:
            for key, value in training.train_step().items():
                sums[key] = sums.get(key, 0.0) + value
            since += 1
            if training.step % REPORT_EVERY == 0 or training.step == training.num_steps:
                means = {k: round(v / since, 4) for k, v in sums.items()}
                line = {"step": training.step, "cpu_s": round(training.cpu_s, 1)} | means
                log.write(json.dumps(line) + "\n")
                log.flush()
                report(f"{name} " + " ".join(f"{k}={v}" for k, v in line.items()))
                sums, since = {}, 0
            if training.step % 200 == 0:
                _save_state(state_path, training)
    path = training.export(out)
    state_path.unlink(missing_ok=True)
    return path


def _save_state(path: Path, training: MiniatureTraining) -> None:
    partial = path.with_suffix(".partial")
    torch.save(training.state_dict(), partial)
    partial.replace(path)
