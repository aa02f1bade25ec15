"""The README of a run's folder: what was run, from what, what came of it, and what the files are."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import console
from pipeline.recipes.config import Recipe
from pipeline.runs.origin import addresses

FILES = """\
- `recipe.json`: every setting, resolved
- `last/`, `best/`: checkpoints (safetensors and JSON); `best/` where the recipe asks for validation
- `metrics.jsonl`, `tensorboard/`: losses and cosines by teacher and level, router weights, scores, predictions
- `results.json`: written when the run is finished; `scores-*.json`: of `sak evaluate`; both name what they are of
- `lock`: held by the process that works here
"""


def run_readme(
    run: Path, recipe: Recipe, made_from: Mapping[str, Any], results: Mapping[str, Any] | None = None
) -> str:
    """The README as Markdown; without results, of a run that is not finished."""
    lines = [
        f"# {run.name}",
        "",
        f"Recipe `{recipe.name}`, stage `{recipe.stage}`, arm `{recipe.arm}`, seed {recipe.seed}, "
        f"{recipe.steps} steps of {recipe.batch_size} rows.",
        "",
        f"    {shlex.join(['sak', *sys.argv[1:]])}",
        "",
    ]
    if recipe.loss.normalizers == "process":
        lines += [
            "Losses count pixels and weigh classes in each process's rows, as published: another number of processes "
            "computes other losses.",
            "",
        ]
    lines += ["Made from", ""]
    for store, parts in made_from["caches"].items():
        lines.append(f"- `{store}`: " + ", ".join(f"{part} {digest[:12]}" for part, digest in parts.items()))
    lines += [f"- read at `{address}`" for address in addresses(made_from).values()]
    lines += [f"- {', '.join(f'{name} {version}' for name, version in made_from['code'].items())}", ""]
    lines += _results(results) if results else ["Not finished; the command above goes on where it stopped.", ""]
    return "\n".join([*lines, FILES])


def _results(results: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{results['parameters'] / 1e6:.2f} M parameters, {console.duration(results['seconds'])}, weights of step "
        f"{results['step']}."
    ]
    if results["random_weights"]:
        lines.append(f"**Teachers with random weights: {', '.join(results['random_weights'])}.**")
    if scores := results.get("validation"):
        rows = [
            [task, *(f"{name} {console.number(value)}" for name, value in by.items())] for task, by in scores.items()
        ]
        width = max(len(row) for row in rows)
        lines += [
            "",
            console.table(["task", "score", *[""] * (width - 2)], [r + [""] * (width - len(r)) for r in rows]),
        ]
    return [*lines, ""]
