"""A trained student from wherever it is: a finished run, an exported folder, or the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cache.places.files import digest_of_file
from pipeline import __version__, runs
from pipeline.console import warn
from pipeline.errors import UserError
from pipeline.runs import checkpoint, lineage
from sak_core.student.config import StudentConfig
from sak_core.student.network import StudentNetwork
from sak_core.student.pretrained import Student
from sak_core.student.pretrained_config import PretrainedConfig, check_plausible


def open_model(source: str, runs_folder: Path) -> Student:
    """The student `source`: a run (its path, or its name below `runs_folder`), an exported folder, or a hub id.

    Says in red which teachers it learned from were never trained.

    Raises:
        UserError, or what `from_pretrained` raises: there is no such student.
    """
    run = next((path for path in (Path(source), runs_folder / source) if (path / "recipe.json").is_file()), None)
    model = from_run(run) if run else Student.from_pretrained(source)
    if model.config.random_weights:
        warn(f"{source} learned from teachers with random weights: {', '.join(model.config.random_weights)}")
    return model


def from_run(run: Path) -> Student:
    """The student of a finished run, in evaluation mode.

    Raises:
        UserError: its arm has no student.
    """
    origin = lineage.read(run)
    if origin.student is None:
        raise UserError(f"{run} is of arm {origin.arm}, which reads cached teachers' features and takes no images")
    path = run / "model.json"
    try:
        config = TypeAdapter(StudentConfig).validate_json(json.dumps(origin.student), strict=True)
        check_plausible(path, config)
        student = StudentNetwork(config)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} describes no student: {error}") from None
    runs.load_weights(run, student)
    random = tuple(teacher.name for teacher in origin.teachers if teacher.is_random)
    return Student(student.eval(), PretrainedConfig(student.config, random, _about(run, origin)))


def _about(run: Path, origin: lineage.Lineage) -> dict[str, Any]:
    """What a model card tells of a run; see pipeline.export.card."""
    recipe, results = runs.read_recipe(run), runs.read_results(run)
    scored = _scores(run)
    if recipe.validation and "validation" in results:
        split = f"{recipe.validation.dataset}-{recipe.validation.split}"
        if not any(name == split or name.startswith(f"{split}-") for name in scored):
            scored[split] = results["validation"]
    return {
        "run": run.name,
        "made_with": f"sak {__version__}",
        "arm": origin.arm,
        "stem_weights": origin.stem_weights,
        "teachers": [teacher.model_dump() for teacher in origin.teachers],
        "data": [data.model_dump() for data in origin.data],
        "parameters": results["parameters"],
        "seconds": results["seconds"],
        "scores": {split: _numbers(scores) for split, scores in sorted(scored.items())},
        "recipe": recipe.model_dump(mode="json"),
    }


def _scores(run: Path) -> dict[str, Any]:
    """What `sak evaluate` has kept, by data set, split and size, of the weights that the run has now."""
    weights = digest_of_file(checkpoint.scored_weights(run)).sha256
    found: dict[str, Any] = {}
    for path in sorted(run.glob("scores-*.json")):
        kept = json.loads(path.read_text())
        if kept.get("made_from", {}).get("weights") == weights:
            found[path.stem.removeprefix("scores-")] = kept["scores"]
        else:
            warn(f"{path} does not say that it is of these weights: left out; `sak evaluate` scores them anew")
    return found


def _numbers(scores: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The scores that are single numbers, by task."""
    return {
        task: {name: value for name, value in by_name.items() if isinstance(value, (int, float))}
        for task, by_name in scores.items()
    }
