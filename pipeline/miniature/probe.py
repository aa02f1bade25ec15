"""What each miniature teacher is good at: the same light head on frozen features, one a task and seed."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.console import spread, worker_pool
from pipeline.miniature.head import outputs, train_head
from pipeline.miniature.trainer import versions
from pipeline.probes.losses import coarse_metric
from sak_core.datasets import open_dataset
from sak_core.miniature.network import MINIATURES, build_miniature
from sak_core.tasks import Task

UNTRAINED = "untrained"
TOGETHER = "all three side by side"
CLEAR_LEAD = 2.0
"""Pooled standard deviations by which a teacher must lead to be called the best."""

EXACT = "boundary 0 px"
"""Column of boundary F where only the very pixel counts."""


@dataclass(frozen=True)
class ProbeConfig:
    """How much a probe reads and how long its heads train."""

    num_train: int = 1000
    num_test: int = 400
    num_seeds: int = 3
    num_epochs: int = 6


@dataclass(frozen=True)
class Column:
    """A column of the table: its name, unit of score, and whether more is better."""

    name: str
    score: str
    higher_is_better: bool


@dataclass(frozen=True)
class Verdict:
    """Whether a teacher leads a column: ahead of the runner-up by `lead` pooled standard deviations."""

    column: str
    best: str
    runner_up: str
    lead: float


def columns(tasks: Sequence[Task]) -> list[Column]:
    """The columns of the table for `tasks`, boundary with two."""
    found = [Column(task.name, task.score, task.higher_is_better) for task in tasks]
    exact = [Column(EXACT, "F", True) for task in tasks if task.kind == "boundary"]
    return found + exact


def verdicts(scores: dict[str, dict[str, list[float]]], table: Sequence[Column]) -> list[Verdict]:
    """Compare the three teachers in every column.

    Args:
        scores: row to column to one score a seed; rows other than the teachers are left out.
        table: the columns.
    """
    found = []
    for column in table:
        sign = 1 if column.higher_is_better else -1
        ranked = sorted(MINIATURES, key=lambda name: -sign * mean(scores[name][column.name]))
        first, second = (scores[name][column.name] for name in ranked[:2])
        pooled = ((stdev(first) ** 2 + stdev(second) ** 2) / 2) ** 0.5
        lead = sign * (mean(first) - mean(second)) / max(pooled, 1e-9)
        found.append(Verdict(column.name, ranked[0], ranked[1], lead))
    return found


_THRESHOLDS = 99


def exact_boundary_f(prediction: Tensor, truth: Tensor) -> float:
    """Best F, in percent, at one threshold for all images when a boundary pixel counts only in its place.

    Args:
        prediction: probabilities (N, H, W).
        truth: (N, H, W), 1 on boundaries, 255 ignored.
    """
    valid = truth != 255
    # Counting from the top of a histogram gives the pixels at or above every threshold at once.
    level = (prediction.clamp(0, 1) * _THRESHOLDS).long()[valid]
    hit = truth[valid] == 1
    chosen = torch.bincount(level, minlength=_THRESHOLDS + 1).flip(0).cumsum(0)
    right = torch.bincount(level[hit], minlength=_THRESHOLDS + 1).flip(0).cumsum(0)
    return float((200 * right / (chosen + hit.sum()).clamp(min=1)).max())


def probe(
    out: Path,
    *,
    config: ProbeConfig | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Score the three miniature teachers, an untrained one and all three together on the tasks of `rooms`.

    Args:
        out: folder in which to write `probe.json`, the result, and `probe.md`, the table.
        config: sizes and lengths.
        report: called with a line of text now and then.

    Returns:
        The result: settings, versions, weights, scores a row, column and seed, their means and standard
        deviations, verdicts, seconds on the clock and CPU-seconds of all processes.
    """
    config = config or ProbeConfig()
    start, cpu_before = time.perf_counter(), sum(os.times()[:4])
    with tempfile.TemporaryDirectory(prefix="sak-probe-") as folder:
        tasks, used = _write_inputs(Path(folder), config, report)
        rows = [TOGETHER, *MINIATURES, UNTRAINED]
        jobs = list(itertools.product(rows, range(config.num_seeds)))
        scores: dict[str, dict[str, list[float]]] = {row: {c.name: [] for c in columns(tasks)} for row in rows}
        run = partial(_score, Path(folder), tasks, config)
        with worker_pool(2) as pool:
            for (row, seed), found in zip(jobs, pool.map(run, jobs), strict=True):
                for name, value in found.items():
                    scores[row][name].append(value)
                report(f"{row}, seed {seed}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
    table = columns(tasks)
    result: dict[str, Any] = {
        "command": "sak miniature probe",
        "config": vars(config),
        "weights": used,
        "versions": versions(),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(sum(os.times()[:4]) - cpu_before, 1),
        "columns": [vars(column) for column in table],
        "scores": {
            row: {
                name: {
                    "mean": mean(values),
                    "std": stdev(values) if len(values) > 1 else 0.0,
                    "seeds": values,
                }
                for name, values in by_column.items()
            }
            for row, by_column in scores.items()
        },
        "verdicts": [vars(v) for v in verdicts(scores, table)] if config.num_seeds > 1 else [],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "probe.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / "probe.md").write_text(render_table(result) + "\n")
    return result


def render_table(result: dict[str, Any]) -> str:
    """The result as a Markdown table with the verdicts below it."""
    heads = [f"{c['name']} {c['score']}" + ("" if c["higher_is_better"] else " ↓") for c in result["columns"]]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    best = {v["column"]: v["best"] for v in result["verdicts"] if v["lead"] > CLEAR_LEAD}
    for row in (UNTRAINED, *MINIATURES, TOGETHER):
        cells = []
        for column in result["columns"]:
            score = result["scores"][row][column["name"]]
            digits = 3 if column["score"] == "RMSE" else 1
            cell = spread(score["mean"], score["std"], digits)
            cells.append(f"**{cell}**" if best.get(column["name"]) == row else cell)
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines += [""] + [
        f"- {v['column']}: {v['best']} leads {v['runner_up']} by {v['lead']:.1f} pooled standard deviations"
        + ("" if v["lead"] > CLEAR_LEAD else ", no clear lead")
        for v in result["verdicts"]
    ]
    return "\n".join(lines)


def _write_inputs(
    folder: Path, config: ProbeConfig, report: Callable[[str], None]
) -> tuple[tuple[Task, ...], dict[str, str]]:
    """Render the scenes and run every teacher once; write labels and features as .npy files into `folder`."""
    tasks: tuple[Task, ...] = ()
    images: dict[str, Tensor] = {}
    for split, number in (("train", config.num_train), ("test", config.num_test)):
        dataset = open_dataset("rooms", split, limit=number)
        tasks = dataset.tasks
        samples = [dataset.load(i) for i in range(number)]
        images[split] = torch.from_numpy(np.stack([s.image for s in samples]))
        for task in tasks:
            np.save(folder / f"{split}-{task.name}.npy", np.stack([s.labels[task.name] for s in samples]))
        report(f"{number} scenes of {split} rendered")
    used = {}
    for name in (*MINIATURES, UNTRAINED):
        size = (images["train"].shape[1], images["train"].shape[2])
        if name == UNTRAINED:
            teacher = build_miniature("mini-dino", size, random_weights=True)
        else:
            teacher = build_miniature(name, size)
        used[name] = teacher.spec.weights
        for split, pixels in images.items():
            with torch.no_grad():
                levels = [torch.cat(teacher(batch), 1).half() for batch in torch.split(pixels, 50)]
            np.save(folder / f"{split}-{name}.features.npy", torch.cat(levels).numpy())
        report(f"{name} run")
    return tasks, used


def _score(folder: Path, tasks: Sequence[Task], config: ProbeConfig, job: tuple[str, int]) -> dict[str, float]:
    """Train and score the heads of one row and seed; one score a column."""
    torch.set_num_threads(1)
    row, seed = job
    names = list(MINIATURES) if row == TOGETHER else [row]

    def features(split: str) -> Tensor:
        parts = [np.load(folder / f"{split}-{name}.features.npy") for name in names]
        return torch.from_numpy(np.concatenate(parts, axis=1))

    train, test = features("train"), features("test")
    found = {}
    for task in tasks:
        truth = torch.from_numpy(np.load(folder / f"test-{task.name}.npy"))
        labels = torch.from_numpy(np.load(folder / f"train-{task.name}.npy"))
        head = train_head(task, train, labels, num_epochs=config.num_epochs, seed=seed)
        predicted = outputs(head, test, (truth.shape[1], truth.shape[2]))
        metric = coarse_metric(task)  # more thresholds move odsF by less than the seeds do, and cost most of it
        for output, label in zip(predicted, torch.split(truth, 50), strict=True):
            metric.update(output, label)
        found[task.name] = float(metric.compute()[task.score])
        if task.kind == "boundary":
            found[EXACT] = exact_boundary_f(torch.cat(predicted)[:, 0].sigmoid(), truth)
    return found
