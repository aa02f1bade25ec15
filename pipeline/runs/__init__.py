"""Run folders: `runs/<name>/` with recipe.json, checkpoint, logs, results.json and a README that explains it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from cache.format.spec import SourceSpec
from pipeline.console import is_silent
from pipeline.errors import UserError
from pipeline.recipes.config import Recipe, kept_recipe, recipe_differences, recipe_json
from pipeline.recipes.stores import Caches
from pipeline.runs import checkpoint
from pipeline.runs.environment import environment
from pipeline.runs.origin import changes, finished_from
from pipeline.runs.readme import run_readme
from sak_common.names import unknown
from sak_core.student.initial_weights import STAGE2_PARTS, load_student
from sak_core.student.network import StudentNetwork
from sak_core.weights.tensor_files import check_state

RUNS = Path("runs")


@dataclass(frozen=True)
class Places:
    """Where caches lie, in one place or several, and where runs go; and for ``source = "live"`` the folders of the data
    sets that it makes its views from, by the data set's name ("" stands for all that are not named), and the files of
    teachers' weights, by teacher ("" for a store's only one).
    """

    features: Caches = Path("features")
    runs: Path = RUNS
    roots: Mapping[str, Path] = field(default_factory=dict)
    weights: Mapping[str, Path] = field(default_factory=dict)

    def root(self, dataset: str) -> Path | None:
        """The folder of a data set, None where none is given."""
        return self.roots.get(dataset, self.roots.get(""))


def check_live_options(recipes: Sequence[Recipe], places: Places) -> None:
    """Check that the folders and weights that are given are for live runs of `recipes`.

    Raises:
        UserError: a folder is given of a data set whose images none of them reads, or weights where none runs teachers.
    """
    reads = {recipe.data.dataset for recipe in recipes if recipe.source == "live"}
    for dataset, folder in places.roots.items():
        if not reads:
            raise UserError(
                f"--root {folder} is for source = 'live'; what is asked for reads pixels from the cache: leave it out"
            )
        if dataset and dataset not in reads:
            raise UserError(f"--root {dataset}={folder}: {unknown('data set of live runs', dataset, reads)}")
    for file in () if reads else places.weights.values():
        raise UserError(f"--weights {file} is for source = 'live'; what is asked for runs no teacher: leave it out")


def run_name(recipe: Recipe) -> str:
    """The default name of a recipe's run: `demo-distill-sak-seed0`."""
    return f"{recipe.name}-{recipe.stage}-{recipe.arm.replace(':', '-')}-seed{recipe.seed}"


def is_finished(run: Path, recipe: Recipe, made_from: Mapping[str, Any]) -> bool:
    """Whether the run of `recipe` is there already, made from the same caches and weights; writes nothing.

    Args:
        made_from: see `pipeline.runs.origin`.

    Raises:
        UserError: the folder belongs to another recipe, or its finished run was made from something else; what differs
            is named.
    """
    path = run / "recipe.json"
    if not path.exists():
        return False
    if changed := recipe_differences(json.loads(path.read_text()), recipe.model_dump(mode="json")):
        raise UserError(
            f"{run} holds a run of another recipe: {'; '.join(changed)}. Choose another --run, or delete the folder"
        )
    if not (run / "results.json").exists():
        return False
    if changed := changes(finished_from(run), made_from):
        raise UserError(
            f"{run} is finished, and was made from something else than what is there now: {'; '.join(changed)}. "
            "Delete the folder to train anew, or choose another --run"
        )
    return True


def begin(run: Path, recipe: Recipe, made_from: Mapping[str, Any]) -> bool:
    """Make the run's folder and store the resolved recipe; True if the run is already finished.

    A process that trains beside another leaves the writing to that one. Errors as `is_finished`.
    """
    if is_finished(run, recipe, made_from):
        return True
    if not is_silent():
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(run / "recipe.json", recipe_json(recipe))
    return False


def describe(run: Path, recipe: Recipe, made_from: Mapping[str, Any], results: Mapping[str, Any] | None = None) -> None:
    """Write the run's README; one process of several does so."""
    if not is_silent():
        write_atomically(run / "README.md", run_readme(run, recipe, made_from, results))


def finish(run: Path, recipe: Recipe, made_from: Mapping[str, Any], results: dict[str, Any]) -> None:
    """Write the README and `results.json`, which marks the run finished; one process of several does so. The results
    get the keys "made_from" and "environment".

    Args:
        made_from: see `pipeline.runs.origin`.
    """
    results["made_from"] = dict(made_from)
    results["environment"] = environment()
    describe(run, recipe, made_from, results)
    if not is_silent():
        write_atomically(run / "results.json", json.dumps(results, indent=1))


def find_run(name: Path, runs: Path) -> Path:
    """The folder of the run `name`: a path, or the name of a folder below `runs`.

    Raises:
        UserError: there is neither; the nearest names are given.
    """
    for candidate in (name, runs / name):
        if (candidate / "recipe.json").is_file():
            return candidate
    have = [path.parent.name for path in runs.glob("*/recipe.json")] if runs.is_dir() else []
    raise UserError(f"{unknown('run', str(name), have)} (looked at {name} and below {runs})")


def finished_run(source: str, *folders: Path) -> Path | None:
    """The finished run `source`: a path, or the name of a folder below one of `folders`; None where there is none."""
    candidates = (Path(source), *(folder / source for folder in folders))
    return next((path for path in candidates if (path / "results.json").is_file()), None)


def read_results(run: Path) -> dict[str, Any]:
    """A finished run's `results.json`.

    Raises:
        UserError: there is none.
    """
    path = run / "results.json"
    if not path.is_file():
        raise UserError(f"{run} is not a finished run (no results.json)")
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def scores_path(run: Path, spec: SourceSpec) -> Path:
    """Where a run's scores on the samples of a store are kept."""
    return run / f"scores-{_split_name(spec)}.json"


def details_path(run: Path, spec: SourceSpec) -> Path:
    """Where what a report can draw of these scores is kept: per image, per class, confusion matrices."""
    return run / f"details-{_split_name(spec)}.json"


def _split_name(spec: SourceSpec) -> str:
    height, width = spec.size
    return f"{spec.dataset}-{spec.split}-{height}x{width}"


def read_recipe(run: Path) -> Recipe:
    """The recipe a run was made with.

    Raises:
        UserError: there is none that this version reads.
    """
    path = run / "recipe.json"
    if not path.is_file():
        raise UserError(f"{run} is not a run folder (no recipe.json)")
    return kept_recipe(path)


def load_weights(run: Path, model: nn.Module) -> None:
    """Load into `model` the weights that the run is scored with: of its best checkpoint where it chose one, else of
    the last; averaged ones where the recipe has them.

    Raises:
        UserError: names or shapes differ.
    """
    path = checkpoint.scored_weights(run)
    tensors = checkpoint.load_tensors(path)
    try:
        check_state(model.state_dict(), tensors, f"{path} does not fit the model")
    except ValueError as error:
        raise UserError(f"{error}. Same recipe.student, arm and teachers?") from None
    model.load_state_dict(tensors)


def start_from(run: Path, model: nn.Module, image_size: tuple[int, int] | None) -> None:
    """Load a stage-1 run's scored weights into a stage-2 student, whose routers, heads and decoder stay as initialised.

    Args:
        image_size: (H, W) in px of the run's views; a position embedding of another size is resampled.

    Raises:
        UserError: the rest does not fit.
    """
    assert isinstance(model, StudentNetwork)
    path = checkpoint.scored_weights(run)
    tensors = checkpoint.load_tensors(path)
    if not model.config.class_tokens:  # a further target of the distillation alone
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("class_aligners.")}
    try:
        load_student(model, tensors, fresh=STAGE2_PARTS, image_size=image_size)
    except ValueError as error:
        raise UserError(f"{path}: {error}. Same recipe.student, arm and teachers?") from None


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file under a temporary name, make it durable, and rename it into place."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
