"""Which cache a recipe reads: the one store of a data set, split and size, or an error that lists the candidates."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.errors import LeftOut
from cache.format.manifest import SOURCE, teacher_part
from cache.format.spec import SourceSpec
from cache.joined import JoinedStore
from cache.places.addresses import pinned
from cache.places.stage import Stage
from cache.places.staged import StagedPlace
from cache.store import Store, find_stores
from pipeline.console import warn
from pipeline.errors import UserError
from pipeline.recipes.config import Data, Recipe
from sak_common.errors import SakError
from sak_common.names import find
from sak_core.datasets import DATASETS
from sak_core.tasks import KINDS, Task, published_weight

Caches = Path | str | tuple[Path | str, ...]
"""A folder or an address of caches, or several, which are looked through in this order."""

REGISTERS = "registers"
"""A provenance's `prefix` where a teacher's prefix tokens are registers alone; true where a class token comes first."""

BENCHMARKS = ("nyud", "pascal_context")
"""Data sets whose tasks have published weights."""

DESCRIBED = "labelled"
"""The row of `DATASETS` that opens folders with a `dataset.toml`, which call themselves as they like."""


def parse_size(text: str) -> tuple[int, int]:
    """`S` or `HxW` in px to (H, W).

    >>> parse_size("448x576"), parse_size("96")
    ((448, 576), (96, 96))

    Raises:
        UserError: it is neither.
    """
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise UserError(f"size {text!r}: expected S or HxW in pixels, for example 384 or 448x576")
    return (int(parts[0]), int(parts[-1]))


def caches_below(features: Path | str, folder: str) -> Path | str:
    """The caches in `folder` of a folder or address of caches; "" is that itself."""
    if not folder:
        return features
    return f"{features.rstrip('/')}/{folder}" if isinstance(features, str) else features / folder


def each_place(features: Caches) -> tuple[Path | str, ...]:
    """The places of `features`, in order, each once."""
    return tuple(dict.fromkeys(features if isinstance(features, tuple) else (features,)))


def caches_at(given: Sequence[Path | str]) -> Caches:
    """The places that somebody gives as paths and addresses, those on the hub at the commit that they stand for now.

    Raises:
        UserError: there is none, or one of several is no folder: what lies there would be left out in silence.
    """
    if not given:
        raise UserError("no folder or address of caches is given (--out)")
    places = [Path(place) if isinstance(place, str) and "://" not in place else place for place in given]
    for place in places if len(places) > 1 else ():
        if isinstance(place, Path) and not place.is_dir():
            raise UserError(f"--out {place}: no such folder")
    return tuple(map(pinned, places))


def stores_below(place: Path | str, *asked: Any) -> list[Store]:
    """As `find_stores`; none where the folder `place` is not there."""
    return find_stores(place, *asked) if isinstance(place, str) or place.is_dir() else []


def _places(features: Caches, data: Data) -> list[Path | str]:
    """Where `data` is looked for, in order."""
    more = [place if "://" in place else Path(place) for place in data.out]
    return [caches_below(place, data.folder) for place in each_place((*each_place(features), *more))]


def joined(stores: Sequence[Store], teachers: Sequence[str], views: int) -> Store:
    """The first store, with the teachers that it lacks, or has in part, from the first of the others that has them.

    Raises:
        StoresDiffer: their rows are not the same, see `JoinedStore`.
    """
    owners: dict[str, Store] = {}
    for teacher in teachers if len(stores) > 1 else ():
        having = [store for store in stores if teacher in store.teachers]
        whole = [store for store in having if store.is_complete(teacher_part(teacher), views)]
        if having and (owner := (whole or having)[0]) is not stores[0]:
            owners[teacher] = owner
    return JoinedStore(stores[0], owners) if owners else stores[0]


def with_images_first(stores: Sequence[Store]) -> list[Store]:
    """The stores in order, those that were published without their images behind all others."""
    return sorted(stores, key=lambda store: bool(store.left_out))


def find_store(
    features: Caches, data: Data, teachers: Sequence[str] = (), live: bool = False, with_pixels: bool = True
) -> Store:
    """The one store below `features` that holds `data`, with its views and `teachers` complete; where there are more
    places, here or named by `data`, those of its teachers that are there.

    Args:
        live: the teachers will run anew, so that knowing them is enough.
        with_pixels: whether its images must be there.

    Raises:
        UserError: there is none, or more than one in a place, or a teacher or view is missing; it names the command
            that makes it.
        LeftOut: `with_pixels`, and it was published without its images, which no place has.
    """
    size = parse_size(data.size) if data.size else None
    want = f"{data.dataset}/{data.split}" + (f" at {data.size}" if data.size else "")
    stores, places = [], _places(features, data)
    for place in places:
        found = stores_below(place, data.dataset, data.split, size)
        if len(found) > 1:
            names = "\n  ".join(store.name for store in found)
            raise UserError(
                f"several caches of {want} below {place}; set data.size or remove what is stale:\n  {names}"
            )
        stores += found
    below = ", ".join(map(str, places))
    if not stores:
        raise UserError(f"no cache of {want} below {below}. Make it: {_make_cache(data, size, teachers)}")
    store = joined(with_images_first(stores) if with_pixels else stores, teachers, data.views)
    if with_pixels and store.left_out:
        raise LeftOut(store, store.left_out)
    for teacher in teachers:
        if teacher not in store.teachers:
            have = ", ".join(sorted({name for one in stores for name in one.teachers})) or "none"
            raise UserError(
                f"{store.name} has no teacher {teacher!r} (it has {have}) below {below}. Make it: "
                f"{_make_cache(data, store.spec.size, [teacher])}; or name the place that has it by another --out"
            )
    for part in ("source", *(teacher_part(teacher) for teacher in teachers if not live)):
        if not store.is_complete(part, data.views):
            raise UserError(
                f"{store.name}: {part} is not complete for {data.views} views; "
                "run the same `make cache` again to finish it"
            )
    return store


def commits_now() -> Callable[[str], str]:
    """Places to the same at the commits that they stand for when they are first asked for; those that are not on the
    hub to themselves. Errors as `pinned`.
    """
    return functools.cache(lambda place: str(pinned(place)))


def at_commits(recipe: Recipe, now: Callable[[str], str]) -> Recipe:
    """`recipe` with the places that it names at the commits that `now` says: all who are given it read the same."""
    reads = {name: part for name in ("data", "validation", "probe") if (part := getattr(recipe, name)) is not None}
    fixed = {name: part.model_copy(update={"out": tuple(map(now, part.out))}) for name, part in reads.items()}
    return recipe.model_copy(update={"out": tuple(map(now, recipe.out)), **fixed})


def _make_cache(data: Data, size: tuple[int, int] | None, teachers: Sequence[str]) -> str:
    """The command that makes what is missing; a data set of another name than `DATASETS` has is a described one."""
    dataset = data.dataset if data.dataset in DATASETS else DESCRIBED
    words = [*([f"TEACHER={','.join(teachers)}"] if teachers else []), f"DATASET={dataset}"]
    words += [*(["ROOT=DIR"] if DATASETS[dataset].needs_root else []), f"SPLIT={data.split}"]
    words += [*([f"SIZE={size[0]}x{size[1]}"] if size else []), f"VIEWS={data.views}"]
    return " ".join(["make cache", *words])


def row_of(spec: SourceSpec) -> str:
    """The row of `DATASETS` that the store's data set is opened by; a description's own name says nothing of it."""
    return DESCRIBED if "coding" in spec.dataset_info else spec.dataset


def training_store(features: Caches, recipe: Recipe, teachers: Sequence[str]) -> Store:
    """The store that a recipe trains on, with `teachers` as its `source` needs them."""
    return find_store(features, recipe.data, teachers, live=recipe.source == "live")


def digest(store: Store, teachers: Sequence[str], views: int) -> dict[str, str]:
    """What the store holds for a run that reads `teachers` in `views` views: part -> SHA-256 over the committed digests
    of its files. Views that are appended later change nothing."""
    found = {}
    for part in (SOURCE, *map(teacher_part, teachers)):
        manifest = store.part(part)
        entries = [manifest.view(view).to_dict(part, view) for view in range(views)]
        text = json.dumps([entry["files"] for entry in entries], sort_keys=True)
        found[part] = hashlib.sha256(text.encode()).hexdigest()
    return found


def staged(store: Store, recipe: Recipe) -> Store:
    """The same store as runs of `recipe` read it: with what was read kept in the stage, where the recipe names one."""
    if recipe.loader.stage is None:
        return store
    stage = Stage.at(Path(recipe.loader.stage).expanduser(), round(recipe.loader.stage_gb * 1e9))
    kept = {one: Store.open(StagedPlace(one.place, stage)) for one in store.stores}
    return store.reopened(kept) if isinstance(store, JoinedStore) else kept[store]


def is_store_of(store: Store, data: Data) -> bool:
    """Whether `store` is one that `data` asks for."""
    size = parse_size(data.size) if data.size else store.spec.size
    return (store.spec.dataset, store.spec.split, store.spec.size) == (data.dataset, data.split, size)


def weights_of(store: Store, given: Mapping[str, Path]) -> dict[str, Path]:
    """Weights by the store's teachers; under the name "" is the file of its only one.

    Raises:
        UserError: it does not say which teacher is meant.
    """
    weights = dict(given)
    if "" in weights:
        if len(store.teachers) != 1:
            have = ", ".join(store.teachers) or "none"
            raise UserError(f"--weights FILE does not say whose (the store has {have}): --weights TEACHER=FILE")
        weights[store.teachers[0]] = weights.pop("")
    for name in weights:
        store.teacher(name)
    return weights


def are_random(weights: object) -> bool:
    """Whether a teacher's `weights`, as a provenance names them, were never trained."""
    return isinstance(weights, str) and weights.startswith("random:")


def random_teachers(store: Store, teachers: Sequence[str]) -> list[str]:
    """Those of `teachers` whose cached features come from untrained weights; shown wherever they are used."""
    made = {name: store.teacher(name).provenance.get("teacher") for name in teachers}
    weights = {name: teacher.get("weights") for name, teacher in made.items() if isinstance(teacher, dict)}
    return [name for name, told in weights.items() if are_random(told)]


def warn_of_random(what: str, teachers: Sequence[str]) -> None:
    """Say in red, where `what` uses them, that these teachers were never trained."""
    if teachers:
        warn(f"{what}: {', '.join(teachers)} ran with RANDOM WEIGHTS: good for trials, meaningless as a teacher")


def store_tasks(
    store: Store, names: Sequence[str] | None = None, weights: dict[str, float] | None = None
) -> list[Task]:
    """The tasks whose labels the store holds, or those of `names`, in that order; `weights` replace their own.

    Their own is what the data set's description says, or else what their kind says; on the published benchmarks, what
    the paper says.

    Raises:
        UserError: the store has no labels, or none of a task.
    """
    have = {name: (label.kind, label.classes) for name, label in store.spec.labels.items()}
    if not have:
        raise UserError(f"{store.name} has no labels; fine-tuning and evaluation need a labelled split")
    for name in (*(names or ()), *(weights or {})):
        if name not in have:
            raise UserError(f"{store.name} has no labels for task {name!r}; it has {', '.join(have)}")
    own = {name: _own_weight(store, name) for name in have}
    return [
        Task(name, kind=have[name][0], classes=have[name][1], weight={**own, **(weights or {})}[name])
        for name in (names or have)
    ]


def _own_weight(store: Store, task: str) -> float:
    if row_of(store.spec) in BENCHMARKS:
        return published_weight(task)
    with understood(f"{store}: its description of {task}"):
        described = store.spec.dataset_info.get("coding", {}).get(task, {}).get("weight")
        kind = find("kind of task", store.spec.labels[task].kind, KINDS)
        weight = kind.weight if described is None else float(described)
    return weight


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Free values of a store, taken apart: anyone may have written `what` they are of.

    Raises:
        UserError: they are not as this project writes them.
    """
    try:
        yield
    except SakError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{what} is not as `sak cache` writes it: {told}") from error
