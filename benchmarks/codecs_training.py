"""``python -m benchmarks.codecs_training [--quick] [--out FOLDER]``: what training loses by each codec.

The demo's student is distilled and fine-tuned from caches that differ in their codec alone, three seeds each: scores
beside bytes. Every codec has caches and runs of its own below FOLDER; what is there already is kept. It takes an
hour or more on two cores, so `python -m benchmarks all` leaves it out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cache.store import find_stores
from pipeline.console import say, table
from pipeline.recipes.config import load_study
from pipeline.runs import Places
from pipeline.studies import ablate
from pipeline.studies.caches import prepare_caches, run_teachers
from pipeline.studies.reproduce import small_study

ARM = "sak"
CODINGS: dict[str, dict[str, Any]] = {
    "fp16": {"codec": "fp16"},
    "int8": {"codec": "int8"},
    # int4 at whatever it reaches: this is to show what that costs
    "int4": {"codec": "int4", "fidelity": 0.9},
    "klt at 0.995": {"codec": "klt", "fidelity": 0.995},
    "klt at 0.98": {"codec": "klt", "fidelity": 0.98},
}


def measure(folder: Path, quick: bool, workers: int) -> dict[str, Any]:
    """Scores of every coding: mean and standard deviation over seeds, and bits a value of the teachers' levels."""
    study = load_study("demo").model_copy(update={"arms": (ARM,), "baseline": ARM, "seeds": (0, 1, 2)})
    study = small_study(study) if quick else study
    rows = []
    for name, coding in CODINGS.items():
        say(f"codecs-training: {name}")
        own = folder / name.replace(" ", "-")
        places = Places(own / "features", own / "runs")
        caches = [cache.model_copy(update=coding) for cache in study.caches]
        prepare_caches(caches, own / "features")
        run_teachers(caches, own / "features", workers)
        result = ablate.ablate(study, places, workers)
        row = next(row for row in result["rows"] if row["arm"] == ARM)
        num_bytes, bits = _size(own / "features")
        rows.append(
            {"coding": name, "bytes": num_bytes, "bits": bits, "scores": row["scores"], "columns": result["columns"]}
        )
    return {"name": "codecs-training", "seeds": list(study.seeds), "rows": rows}


def _size(features: Path) -> tuple[int, float]:
    """Bytes of all teachers' levels, calibration aside, and bits a value."""
    num_bytes = num_values = 0
    for store in find_stores(features):
        for teacher in store.teachers:
            info = store.teacher(teacher)
            num_values += (
                store.spec.num_samples
                * info.num_views
                * sum(level.grid[0] * level.grid[1] * level.width for level in info.levels)
            )
            folder = store.path / "teachers" / teacher
            num_bytes += sum(
                file.stat().st_size for level in info.levels for file in (folder / level.array).glob("c.*")
            )
    return num_bytes, 8 * num_bytes / num_values


def text(result: dict[str, Any]) -> str:
    """`measure`'s result for people."""
    columns = result["rows"][0]["columns"]
    names = ["codec", "MB", "bits", *(f"{c['task']} {c['score']}" for c in columns)]
    return table(
        names,
        [
            [
                row["coding"],
                f"{row['bytes'] / 1e6:.0f}",
                f"{row['bits']:.2f}",
                *(_cell(row["scores"][column["task"]]) for column in columns),
            ]
            for row in result["rows"]
        ],
    )


def _cell(score: dict[str, Any]) -> str:
    return f"{score['mean']:.3f}" + ("" if score.get("std") is None else f" ± {score['std']:.3f}")


@click.command()
@click.option("--quick", is_flag=True, help="A few samples and steps, one seed: shows that it runs, not what is lost.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/codecs-training"), show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
def main(quick: bool, out: Path, workers: int) -> None:
    """What training loses by each codec: scores beside bytes, as a table and one JSON object."""
    result = measure(out, quick, workers)
    click.echo(text(result))
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
