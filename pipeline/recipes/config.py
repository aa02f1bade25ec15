"""Recipes: TOML files read into strict models, so that a wrong key is an error that names the right one.

A recipe file holds common keys and one table a stage (`[distill]`, `[finetune]`), which is laid over them when
that stage runs; `--set optimizer.lr=1e-4` is laid over both. What results is a `Recipe`, stored with the run.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.errors import UserError
from pipeline.recipes.strict import Strict, validated
from pipeline.recipes.tables import Boundary, LoaderOptions, Loss, Optimizer, Schedule, StudentOptions
from sak_common.differences import NOTHING, differences
from sak_common.names import unknown

Stage = Literal["distill", "finetune"]
STAGES: tuple[Stage, ...] = ("distill", "finetune")
CHANGES_NO_NUMBER = frozenset(
    {
        *("log_every", "checkpoint_every", "probe", "loader.direct", "loader.stage", "loader.stage_gb"),
        *("out", "data.out", "validation.out"),
    }
)
"""Keys of a recipe that may be others when a run goes on: no weight and no score depends on them."""
MOVED = {
    "loss": "loss.kind",
    "relational": "loss.relational",
    "level_weights": "loss.level_weights",
    "match_levels": "loss.match_levels",
    "class_tokens": "loss.class_tokens",
    "balance": "loss.balance",
    "drop_teachers": "loss.drop_teachers",
    "alpha": "loss.alpha",
    "task_weights": "loss.task_weights",
    "normalizers": "loss.normalizers",
    "validate_every": "validation.every",
    "best_by": "validation.best_by",
    "shuffle": "loader.shuffle",
    "shuffle_rows": "loader.buffer_rows",
    "direct": "loader.direct",
    "clip": "optimizer.clip",
}
"""Keys that once stood alone, and where they stand now."""


class Data(Strict):
    """Which cache a run reads. Exactly one store must match."""

    dataset: str
    split: str
    size: str | None = Field(None, description="`S` or `HxW`; the data set's own size when absent")
    views: int = Field(1, ge=1, description="number of cached views that the epochs cycle through")
    folder: str = Field("", description="where below the folder of caches it lies: caches that differ in their codec")
    out: tuple[str, ...] = Field((), description="as a recipe's, whose takes its place")


class ValidationData(Data):
    """The split that is scored after training, and in between where `every` says so."""

    every: int | None = Field(
        None, ge=1, description="steps between validations, the best of which is kept and used; none: the last step is"
    )
    best_by: str = Field("loss", description="what the best validation is best by: the loss, or a task's main score")


class ProbeData(Data):
    """Labelled rows on which linear probes are fitted while stage 1 trains; no number of the run depends on them."""

    every: int = Field(ge=1, description="steps between probes; the last step has one, too")
    rows: int = Field(64, ge=16, description="every other one is fitted on, the others are scored")
    keep: str | None = Field(None, description="a task: its best checkpoint by probe is kept in best-by-probe/")


class Recipe(Strict):
    """Everything that decides what one training run computes."""

    name: str
    stage: Stage
    arm: str = "sak"
    seed: int = Field(0, ge=0)
    teachers: tuple[str, ...] = ()
    data: Data
    out: tuple[str, ...] = Field(
        (),
        description="folders or addresses of caches, looked through after --out: where several hold stores of the "
        "same rows, each teacher is read where it is",
    )
    validation: ValidationData | None = None
    probe: ProbeData | None = Field(None, description="stage 1 alone: what it is watched by")
    source: Literal["cache", "live"] = Field(
        "cache",
        description="cache: views and teachers' features from the store; live: fresh views of the data set's images "
        "(--root) in every epoch, and teachers run in the step",
    )
    tasks: tuple[str, ...] | None = Field(None, description="the data set's tasks, all when absent")
    student: StudentOptions = StudentOptions()
    init: str | None = Field(
        None,
        description="a trained student whose stem and paths training goes on from: rooms-sak (ships), an exported "
        "folder or a hub id",
    )
    stage1: Literal["on", "off"] = Field("on", description="off: stage 2 starts from the stem's own weights")
    trains: Literal["all", "adapters", "routers"] = Field(
        "all", description="adapters: all but the stem; routers: routers and heads alone (stage 2)"
    )
    frozen: str | None = Field(
        None, description="cached part in place of running what is frozen: stem:RECIPE, stem:RUN or student:RUN"
    )
    loss: Loss = Loss()
    boundary: Boundary = Boundary()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loader: LoaderOptions = LoaderOptions()
    batch_size: int = Field(16, ge=1, description="rows an optimizer step, over all processes and parts")
    accumulate: int = Field(1, ge=1, description="parts that a step's rows are cut into, one after another")
    steps: int = Field(ge=1, description="optimizer steps")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights that are scored; none: off")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    threads: int | None = Field(None, ge=1, description="CPU threads; torch's own choice when absent")
    log_every: int = Field(20, ge=1, description="steps between log lines; nothing is synchronised between")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")

    @model_validator(mode="before")
    @classmethod
    def _same_places(cls, table: Any) -> Any:
        """All that a run reads is looked for in the same places."""
        places = table.get("out") if isinstance(table, dict) else None
        reads = [name for name in ("data", "validation", "probe") if places and isinstance(table.get(name), Mapping)]
        return {**table, **{name: {**table[name], "out": places} for name in reads}} if places else table

    @property
    def validate_every(self) -> int | None:
        """Steps between validations; None where the last step's weights are used."""
        return self.validation.every if self.validation else None


class Variation(Strict):
    """A named change to a recipe, for one arm of a study."""

    name: str
    arm: str = "sak"
    set: dict[str, Any] = Field(default_factory=dict)


class StudyCache(Strict):
    """A cache that a study reads, by the options of `sak cache` that make it."""

    dataset: str
    split: str
    size: str | None = Field(None, description="`S` or `HxW`; the data set's own size when absent")
    limit: int | None = Field(None, ge=1, description="the first N samples; all when absent")
    views: int = Field(1, ge=1)
    teachers: tuple[str, ...] = ()
    codec: str = "fp16"
    fidelity: float | None = Field(None, gt=0, lt=1)
    folder: str = Field("", description="as a recipe's data.folder")
    probes: str = Field("", description="split whose cache has the labels that tell what tasks lose to the codec")


class Study(Strict):
    """Arms, variations and seeds run on the same caches."""

    name: str
    recipe: str
    arms: tuple[str, ...]
    baseline: str = Field("", description="gains are counted from it: single-task where it is an arm, else the first")
    seeds: tuple[int, ...] = (0,)
    variations: tuple[Variation, ...] = ()
    test: Data
    set: dict[str, Any] = Field(default_factory=dict, description="laid over the recipe for every run")
    caches: tuple[StudyCache, ...] = Field((), description="what `sak reproduce` makes before the runs")
    compare: tuple[tuple[str, str], ...] = Field(
        (("sak", "*"),), description="pairs of arms whose differences `sak reproduce` gives, paired by seed; * is all"
    )

    tables: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="titles, and the arms below each: what the page shows in place of one table"
    )

    @model_validator(mode="after")
    def _names_what_it_has(self) -> Self:
        known = [*self.arms, *(variation.name for variation in self.variations)]
        for title, arms in self.tables.items():
            for arm in arms:
                if arm not in known:
                    raise ValueError(f"tables: {title!r}: {unknown('arm', arm, known)}")
        splits = [cache.split for cache in self.caches]
        for cache in self.caches:
            if cache.probes and cache.probes not in splits:
                raise ValueError(f"caches: probes: {unknown('split', cache.probes, splits)}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _default_baseline(cls, table: Any) -> Any:
        arms = table.get("arms") if isinstance(table, dict) else None
        if not arms or "baseline" in table:
            return table
        return {**table, "baseline": "single-task" if "single-task" in arms else arms[0]}


def load_recipe(name: str, stage: Stage, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe as it applies to `stage`.

    Args:
        name: one that ships, a path to a TOML file, or a run's recipe.json.
        overrides: dotted keys to values, laid over the file; `distill.steps` is stage 1's alone.

    Raises:
        UserError: an unknown recipe, an unknown key (with the nearest right one) or a value of the wrong kind.
    """
    if name.endswith(".json"):
        return _resolved(Path(name), stage, overrides or {})
    path = _find(name, "recipes", "recipe")
    table = _read(path)
    layers = {s: table.pop(s, None) for s in STAGES}
    if layers[stage] is None:
        have = ", ".join(s for s in STAGES if layers[s] is not None) or "neither stage"
        raise UserError(f"recipe {name!r} ({path}) has no [{stage}] table; it describes {have}")
    merged = _merge(table, layers[stage])
    for key, value in (overrides or {}).items():
        first, _, rest = key.partition(".")
        if first not in STAGES:
            merged = _merge(merged, _nest(key, value))
        elif first == stage:
            merged = _merge(merged, _nest(rest, value))
    return validated(Recipe, {"name": path.stem, "stage": stage, **merged}, f"recipe {path}", MOVED)


def _resolved(path: Path, stage: Stage, overrides: Mapping[str, Any]) -> Recipe:
    """A recipe as a run keeps it."""
    table = _kept(path)
    if table.get("stage") != stage:
        raise UserError(f"{path} is no recipe of stage {stage}")
    for key, value in overrides.items():
        table = _merge(table, _nest(key, value))
    return validated(Recipe, table, f"recipe {path}", MOVED)


def kept_recipe(path: Path) -> Recipe:
    """The recipe that a run keeps.

    Raises:
        UserError: it cannot be read, or another version of sak wrote it.
    """
    return validated(Recipe, _kept(path), f"recipe {path} was not written by this version of sak", MOVED)


def _kept(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no run's recipe: {error}") from None
    if not isinstance(table, dict):
        raise UserError(f"{path} is no run's recipe: it holds no table")
    return table


def recipe_stages(name: str) -> tuple[Stage, ...]:
    """The stages that the recipe `name` describes; a run's recipe.json is of one."""
    if name.endswith(".json"):
        return tuple(stage for stage in STAGES if stage == _kept(Path(name)).get("stage"))
    table = _read(_find(name, "recipes", "recipe"))
    return tuple(stage for stage in STAGES if stage in table)


def some_stages(name: str) -> tuple[Stage, ...]:
    """As `recipe_stages`.

    Raises:
        UserError: there is none.
    """
    if stages := recipe_stages(name):
        return stages
    raise UserError(f"recipe {name!r} describes no stage")


def load_study(name: str) -> Study:
    """Read the study `name` (one that ships, or a path to a TOML file)."""
    path = _find(name, "recipes/studies", "study")
    return validated(Study, {"name": path.stem, **_read(path)}, f"study {path}")


def parse_set(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` strings of `--set`; a value is read as TOML, or as a bare string.

    >>> parse_set(["optimizer.lr=1e-4", "arm=many-to-one"])
    {'optimizer.lr': 0.0001, 'arm': 'many-to-one'}

    Raises:
        UserError: a string has no key.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {assignment!r}: expected KEY=VALUE, for example optimizer.lr=1e-4")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        result[key.strip()] = value
    return result


def recipe_names(folder: str = "recipes") -> list[str]:
    """The names of the recipes (or, with "recipes/studies", studies) that ship."""
    return sorted(p.name.removesuffix(".toml") for p in _shipped(folder).iterdir() if p.name.endswith(".toml"))


def recipe_json(recipe: Recipe) -> str:
    """The resolved recipe as JSON with sorted keys: what a run stores and compares."""
    return json.dumps(recipe.model_dump(mode="json"), indent=1, sort_keys=True)


def recipe_differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted keys at which two recipes compute something else, with both values; an absent key is one that is null."""
    return [
        f"{key}: {left!r} against {right!r}"
        for key, left, right in differences(stored, now)
        if not {key, key.partition(".")[0]} & CHANGES_NO_NUMBER
        and not (left in (None, NOTHING) and right in (None, NOTHING))
    ]


def _shipped(folder: str) -> Path:
    return Path(str(resources.files("pipeline"))) / folder


def _find(name: str, folder: str, kind: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no {kind} file {path}")
        return path
    path = _shipped(folder) / f"{name}.toml"
    if not path.is_file():
        raise UserError(unknown(kind, name, recipe_names(folder)) + "; or give a path ending in .toml")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # of TOML, or of bytes that are not UTF-8
        raise UserError(f"{path}: not valid TOML: {error}") from None


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def _nest(dotted: str, value: Any) -> dict[str, Any]:
    head, dot, tail = dotted.partition(".")
    return {head: _nest(tail, value) if dot else value}
