"""`sak copy`: stores, or what of them a recipe reads, from one place to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import SpecMismatch
from cache.format.manifest import SOURCE, PartManifest
from cache.joined import shares
from cache.maintenance.store_copy import CopyPlan, Selection, copy_store, plan_copy, select
from cache.places.addresses import as_place, as_target, pinned
from cache.places.place import Place
from cache.places.web import check_catalogue, write_catalogue
from cache.store import Store, find_stores
from pipeline.console import amount, progress, say
from pipeline.errors import UserError
from pipeline.extraction.amounts import check_disk
from pipeline.maintenance.store_card import carry_card
from pipeline.recipes.config import Data, load_recipe, recipe_stages
from pipeline.recipes.stores import at_commits, commits_now, find_store, is_store_of
from sak_common.names import unknown


@dataclass(frozen=True)
class CopyRequest:
    """What `sak copy` was asked for; what is None or empty is not narrowed.

    Attributes:
        source: a store, or a folder of stores.
        target: the folder of caches that the copies go into.
    """

    source: Path | str
    target: Path | str
    recipe: str | None = None
    teachers: tuple[str, ...] | None = None
    levels: tuple[int, ...] | None = None
    views: int | None = None


def copy(request: CopyRequest, dry_run: bool = False) -> dict[str, Any]:
    """Copy what `request` asks for, or say what that would take; returns it per store, JSON-able."""
    target = as_target(request.target)
    check_catalogue(target)
    plans = [plan_copy(store, target, selection) for store, selection in _selections(request)]
    for plan in plans:
        if request.levels is not None:
            _tell_company(plan, request.levels)
    results = make_copies(plans, target, dry_run)
    if not dry_run:
        carry_card([plan.store for plan in plans], target)
        write_catalogue(target)
    return {"copied": not dry_run, "stores": results}


def make_copies(plans: Sequence[CopyPlan], target: Place, dry_run: bool = False) -> list[dict[str, Any]]:
    """Make the copies into `target`, or say what they would take; returns it, a store each, JSON-able."""
    check_disk(target.shown, sum(plan.num_bytes for plan in plans), "the copies")
    results = []
    for plan in plans:
        if not dry_run:
            _copy(plan)
        results.append(
            {
                "store": str(plan.store),
                "copy": plan.target.shown,
                "views": plan.selection.num_views,
                "teachers": {name: list(levels) for name, levels in plan.selection.teachers.items()},
                "shards": plan.num_shards,
                "bytes": plan.num_bytes,
            }
        )
    return results


def copy_text(result: dict[str, Any]) -> str:
    """`copy`'s result for people."""
    what = "copied" if result["copied"] else "would copy"
    return "\n".join(
        f"{what} {amount(store['bytes'])} in {store['shards']} shards: {store['copy']}  ({store['views']} views, "
        f"{', '.join(f'{name} levels {levels}' for name, levels in store['teachers'].items()) or 'no teachers'})"
        for store in result["stores"]
    )


def _tell_company(plan: CopyPlan, asked: Sequence[int]) -> None:
    """Say which levels come along that nobody asked for: levels coded together are read together."""
    for name, levels in plan.selection.teachers.items():
        company = [level for level in levels if level not in asked]
        if company:
            wanted = [level for level in levels if level in asked]
            say(f"{plan.store.name}: levels {company} of {name} come too: {wanted} are coded against them")


def _copy(plan: CopyPlan) -> None:
    if not plan.num_shards:
        say(f"{plan.store.name}: all there already")
    total = max(round(plan.num_bytes / 1e6), 1)
    with progress(plan.store.name, total, "MB") as advance:
        done = 0

        def tell(num_bytes: int) -> None:
            nonlocal done
            before, done = done, done + num_bytes
            advance(round(done / 1e6) - round(before / 1e6))

        try:
            copy_store(plan, tell)
        except SpecMismatch as error:
            raise UserError(f"{error}; copy it to another folder") from error


def stores_at(source: Path | str) -> list[Store]:
    """The store at a path or address, or those of the folder of caches there.

    Raises:
        UserError: there is none.
    """
    place = as_place(source)
    if PartManifest(place, SOURCE).exists:
        return [Store.open(place)]
    if not (stores := find_stores(place)):
        raise UserError(f"{place.shown} is no store, and no folder that holds one")
    return stores


def _selections(request: CopyRequest) -> Iterator[tuple[Store, Selection]]:
    """The stores to copy, and what of each."""
    source = pinned(request.source)
    if request.recipe is None:
        for store in stores_at(source):
            yield store, select(store, request.views, request.teachers, request.levels)
        return
    place = as_place(source)
    one = Store.open(place) if PartManifest(place, SOURCE).exists else None
    wanted: dict[str, tuple[Store, int, tuple[str, ...]]] = {}
    for data, teachers in _reads(request.recipe):
        if one and not is_store_of(one, data):
            continue
        found = one or find_store(source, data, teachers, with_pixels=False)
        for store, own in shares(found, teachers).items():
            _, views, names = wanted.get(store.place.shown, (store, 0, ()))
            wanted[store.place.shown] = store, max(views, data.views), tuple(dict.fromkeys([*names, *own]))
    if not wanted:
        raise UserError(f"recipe {request.recipe} reads nothing of {place.shown}")
    read = sorted({name for _, _, names in wanted.values() for name in names})
    for name in request.teachers or ():
        if name not in read:
            raise UserError(unknown(f"teacher that recipe {request.recipe} reads", name, read))
    for store, views, names in wanted.values():
        chosen = [name for name in names if request.teachers is None or name in request.teachers]
        yield store, select(store, request.views or views, chosen, request.levels)


def _reads(recipe: str) -> Iterator[tuple[Data, Sequence[str]]]:
    """The caches that the stages of a recipe read, with their teachers."""
    from pipeline.recipes.arms import find_arm, parts_read
    from pipeline.runs.origin import is_validated, validation_teachers

    now = commits_now()
    for stage in recipe_stages(recipe):
        loaded = at_commits(load_recipe(recipe, stage), now)
        arm = find_arm(loaded.arm)
        # a student that has a path a teacher asks for its widths, also where it does not read its features
        yield loaded.data, tuple(dict.fromkeys([*(loaded.teachers if arm.distils else ()), *parts_read(loaded)]))
        if loaded.validation and is_validated(loaded):
            yield loaded.validation, validation_teachers(loaded)
        if loaded.probe:
            yield loaded.probe, ()
