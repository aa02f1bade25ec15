"""Parity with the reference: `python -m tests.parity DIR` compares every case of a folder of fixtures.

A model case is `<case>.json` with `<case>.safetensors`; `metrics.json` holds the metric cases; cases of InvPT and
MLoRE are those with an `embed_dim` (tests.rivals). Every tensor that goes in is made by tests.formula from its name
and shape; tests/fixtures/parity/README.md and tests/fixtures/rivals/README.md say what the keys are and how labels
are made. Exit status 0 only if every key of every case was compared and is within tolerance.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from sak_core.labels import IGNORE
from sak_core.losses.step import distillation_loss, task_losses
from sak_core.student.config import StudentConfig
from sak_core.student.network import StudentNetwork
from sak_core.student.reference import import_reference
from sak_core.student.reference_config import reference_task
from sak_core.student.stem import StemConfig
from sak_core.tasks import Task
from tests import formula

NUM_CLASSES = {"semseg": {"nyud": 40, "pascalcontext": 21}, "human_parts": {"nyud": 7, "pascalcontext": 7}}
METRIC_TOLERANCE = 1e-3
STORED_WHOLE = 64
"""Tensors of more elements than this are stored as every seventh."""


@dataclass(frozen=True)
class Comparison:
    """One key: its largest error, absolute and as a share of its tolerance. An uncompared key has an infinite
    share.
    """

    case: str
    key: str
    error: float
    share: float

    @property
    def kind(self) -> str:
        """The key's first word; metric cases are of kind "score"."""
        return self.key.split("/")[0]


def task_of(name: str, dataset: str) -> Task:
    """The reference's task `name` on `dataset`, with its published weight."""
    return reference_task(name, NUM_CLASSES.get(name, {}).get(dataset, 1), nyud=dataset == "nyud")


def untrained(case: Mapping[str, Any]) -> StudentNetwork:
    """The student of a model case as it is made."""
    widths = {name: w if isinstance(w, int) else tuple(w) for name, w in case["teachers"].items()}
    config = StudentConfig(
        stem=StemConfig(f"{case['stem']}_patch16_384", image_size=tuple(case["image"])),
        teachers=widths,
        aligner=case["aligner"],
        router=case["router"],
        tasks=tuple(task_of(name, case["dataset"]) for name in case["tasks"]),
    )
    return StudentNetwork(config)


def student_for(case: Mapping[str, Any]) -> StudentNetwork:
    """The student of a model case in evaluation mode, its weights loaded through the importer."""
    student = untrained(case)
    import_reference(student, formula.state(case["shapes"]))
    return student.eval()


def label_like(task: Task, u: np.ndarray, *, model_case: bool) -> Tensor:
    """The label made from u, (B, 1 or 3, H, W) in [-1, 1): (B, H, W), or (B, H, W, 3) for normals."""
    if task.kind == "normals":
        label = u / np.linalg.norm(u, axis=1, keepdims=True)
        label[:, :, : 2 if model_case else 3] = IGNORE
        return torch.from_numpy(label).permute(0, 2, 3, 1)
    u = u[:, 0]
    if task.kind == "classes":
        label = np.clip(np.floor((u + 1) / 2 * task.channels), 0, task.channels - 1)
        label[u > (0.93 if model_case else 0.95)] = IGNORE
    elif task.kind == "depth":
        label = (u + 1) * 4 + np.float32(0.5 if model_case else 0.2)
        label[u > (0.95 if model_case else 0.97)] = IGNORE
    else:
        label = (u > (0.4 if model_case else 0.3)).astype(np.float32)
        label[u < (-0.95 if model_case else -0.97)] = IGNORE
    return torch.from_numpy(label.astype(task.spec.label_dtype))


def label_shape(task: Task, batch: int, size: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the formula's tensor behind a label."""
    return (batch, 3 if task.kind == "normals" else 1, *size)


def labels_of(case: Mapping[str, Any], tasks: Sequence[Task]) -> dict[str, Tensor]:
    """The labels of a model case, by task."""
    return {
        task.name: label_like(
            task,
            formula.tensor(f"{case['name']}/label/{task.name}", label_shape(task, case["batch"], tuple(case["image"]))),
            model_case=True,
        )
        for task in tasks
    }


@torch.inference_mode()
def model_case_values(case: Mapping[str, Any]) -> dict[str, Tensor]:
    """What this project computes for a model case, under the fixture's keys."""
    name, batch, size = case["name"], case["batch"], tuple(case["image"])
    student = student_for(case)
    tasks = student.config.tasks
    out = student(torch.from_numpy(formula.tensor(f"{name}/image", (batch, 3, *size))))
    targets = {
        teacher: [
            torch.from_numpy(
                formula.tensor(f"{name}/teacher/{teacher}/{i}", (batch, maps[i].shape[1], *case["grids"][teacher]))
            )
            for i in range(len(maps))
        ]
        for teacher, maps in out.aligned.items()
    }
    labels = labels_of(case, tasks)
    values = {f"aligned/{teacher}/{i}": m for teacher, maps in out.aligned.items() for i, m in enumerate(maps)}
    values |= {f"output/{task}": value for task, value in out.outputs.items()}
    for kind in ("cos+l1", "cos", "l2") if targets else ():
        total, terms = distillation_loss(out.aligned, targets, kind)
        values |= {f"distill/{kind}/{term}": value for term, value in terms.items()}
        values[f"distill/{kind}/total"] = total
    if tasks:
        total, terms = task_losses(tasks, out.outputs, labels)
        values |= {f"task_loss/{term}": value for term, value in terms.items()}
        values["task_loss/total"] = total
    for task in tasks:
        metric = task.metric()
        metric.update(out.outputs[task.name], labels[task.name])
        values |= {f"metric/{task.name}/{k}": torch.as_tensor(v) for k, v in metric.compute().items()}
    return values


def compare_model_case(case: Mapping[str, Any], expected: Mapping[str, Tensor]) -> list[Comparison]:
    """Every key of the fixture against this project."""
    values = model_case_values(case)
    comparisons = []
    for key, want in sorted(expected.items()):
        value = values.get(key)
        if value is None:
            comparisons.append(Comparison(case["name"], key, float("inf"), float("inf")))
            continue
        got = value.double().flatten()
        if got.numel() > STORED_WHOLE:
            got = got[::7]
        want = want.double().flatten()
        if got.shape != want.shape:
            comparisons.append(Comparison(case["name"], key, float("inf"), float("inf")))
            continue
        error = (got - want).abs()
        tolerance = torch.full_like(want, METRIC_TOLERANCE) if key.startswith("metric/") else tolerance_of(want)
        comparisons.append(comparison_of(case["name"], key, error, tolerance))
    return comparisons


def compare_metric_case(name: str, case: Mapping[str, Any]) -> list[Comparison]:
    """Every score of a metric case, after all its batches, against this project."""
    comparisons = []
    for task_name, scores in case["scores"].items():
        task = task_of(task_name, case["dataset"])
        metric = task.metric()
        shape = label_shape(task, case["batch"], tuple(case["size"]))
        for b in range(case["batches"]):
            label = label_like(task, formula.tensor(f"{name}/{b}/gt/{task_name}", shape), model_case=False)
            noise = torch.from_numpy(formula.tensor(f"{name}/{b}/noise/{task_name}", shape))
            metric.update(raw_output(task, label, noise), label)
        computed = metric.compute()
        for score, want in scores.items():
            got = torch.as_tensor(computed.get(score, float("nan"))).double()
            error = (got - want).abs().reshape(1)
            comparisons.append(
                comparison_of(name, f"score/{task_name}/{score}", error, torch.full_like(error, METRIC_TOLERANCE))
            )
    return comparisons


def raw_output(task: Task, label: Tensor, noise: Tensor) -> Tensor:
    """The network output (B, C, H, W) that a metric case scores against `label`."""
    z = torch.where(label == IGNORE, 0, label)
    if task.kind == "normals":
        return z.permute(0, 3, 1, 2) + 0.6 * noise
    if task.kind == "classes":
        shifted = torch.where(noise[:, 0] > 0.4, (z.long() + 1) % task.channels, z.long())
        return 3.0 * torch.nn.functional.one_hot(shifted, task.channels).permute(0, 3, 1, 2).float()
    z = z.float()[:, None]
    if task.kind == "depth":
        return z + noise
    p = 4 * (z - 0.5) + 3 * noise
    return torch.cat([-p, p], dim=1) if task.kind == "saliency" else p


def compare_folder(folder: Path) -> list[Comparison]:
    """Every key of every case in `folder`.

    Raises:
        ValueError: it holds no case, or a case without its tensors.
    """
    from tests.rivals import compare_rival_case

    comparisons: list[Comparison] = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if path.name == "metrics.json":
            for name, case in content.items():
                comparisons += compare_metric_case(name, case)
        elif "embed_dim" in content:
            comparisons += compare_rival_case(content, load_file(path.with_suffix(".safetensors")))
        elif "shapes" in content:
            comparisons += compare_model_case(content, load_file(path.with_suffix(".safetensors")))
        else:
            raise ValueError(f"{path} is neither metrics.json nor a model case with 'shapes'")
    if not comparisons:
        raise ValueError(f"{folder} holds no case")
    return comparisons


def report(comparisons: list[Comparison]) -> str:
    """A table with a row a case and kind, and the line that states the worst as a share of its tolerance."""
    lines = [f"{'case':<20} {'kind':<10} {'keys':>5} {'largest error':>14} {'of tolerance':>13}  worst key"]
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for c in comparisons:
        groups.setdefault((c.case, c.kind), []).append(c)
    for (case, kind), group in groups.items():
        worst = max(group, key=lambda c: c.share)
        largest = max(c.error for c in group)
        lines.append(f"{case:<20} {kind:<10} {len(group):>5} {largest:>14.3g} {worst.share:>12.2%}  {worst.key}")
    worst = max(comparisons, key=lambda c: c.share)
    missing = sum(c.share == float("inf") for c in comparisons)
    compared = f"{len(comparisons) - missing} of {len(comparisons)} keys compared"
    lines.append(f"{compared}; the worst, {worst.case} {worst.key}, is at {worst.share:.2%} of its tolerance")
    return "\n".join(lines)


def tolerance_of(want: Tensor) -> Tensor:
    """How far each number of a tensor may be off."""
    return (1e-4 * torch.maximum(want.abs(), want.square().mean().sqrt())).clamp_min(1e-5)


def comparison_of(case: str, key: str, error: Tensor, tolerance: Tensor) -> Comparison:
    """The largest of elementwise errors, and their largest share of the tolerances."""
    share = (error / tolerance).max().item()
    # a NaN must not pass for small
    share = share if share == share else float("inf")
    return Comparison(case, key, error.max().item(), share)


def main(arguments: list[str]) -> int:
    """Command line: one folder. Returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m tests.parity DIR", file=sys.stderr)
        return 2
    comparisons = compare_folder(Path(arguments[0]))
    print(report(comparisons))
    return 0 if all(c.share <= 1 for c in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
