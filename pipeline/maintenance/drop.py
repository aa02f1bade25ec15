"""`sak drop`: a teacher or the last views out of a store, after asking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cache.format.manifest import SOURCE, teacher_part
from cache.maintenance.removal import drop_teacher, drop_views, settle_growth, views_of
from cache.store import Store
from pipeline.console import amount, say
from pipeline.errors import UserError


@dataclass(frozen=True)
class DropRequest:
    """What to take out.

    Attributes:
        teacher: this teacher, or only its last views where `views` says so.
        views: so many of the last views; of the whole store without `teacher`.
        yes: do not ask.
        dry_run: say what would be done, and do nothing.
    """

    teacher: str | None = None
    views: int | None = None
    yes: bool = False
    dry_run: bool = False


def drop(path: Path | str, request: DropRequest) -> dict[str, Any]:
    """Take out what `request` names; returns what it came to, JSON-able.

    Raises:
        UserError: the request is not clear or is not confirmed.
    """
    if request.teacher is None and request.views is None:
        raise UserError("say what to drop: --teacher NAME, --views K (the last K views), or both")
    store = Store.open(path)
    if request.views is not None and not request.dry_run and (settled := settle_growth(store)):
        say(f"finished what an interrupted run left of {', '.join(settled)}")
        raise UserError(
            f"{store.name} has {store.num_views} views now, and an interrupted run may have been this very one: "
            "nothing more was dropped; run it again if there is still something to drop"
        )
    keep = _views_to_keep(store, request)
    what, num_bytes = _described(store, request, keep)
    result = {"store": str(path), "dropped": what, "bytes": num_bytes, "dry_run": request.dry_run}
    if request.dry_run:
        return result
    if not request.yes:
        _ask(f"drop {what} of {store}, {amount(num_bytes)}? What is dropped must be extracted again to come back")
    if keep is None:
        assert request.teacher is not None
        drop_teacher(store, request.teacher)
    else:
        drop_views(store, keep, request.teacher)
    store.log({"stage": "drop", "dropped": what})
    return {**result, "views": store.num_views, "teachers": Store.open(path).teachers}


def drop_text(result: dict[str, Any]) -> str:
    """`drop` for people."""
    did = "would drop" if result["dry_run"] else "dropped"
    return f"{result['store']}: {did} {result['dropped']}, {amount(result['bytes'])}"


def _views_to_keep(store: Store, request: DropRequest) -> int | None:
    """How many views are left, or None where the whole teacher goes."""
    if request.views is None:
        return None
    whose = request.teacher or "the store"
    have = store.teacher(request.teacher).num_views if request.teacher else store.num_views
    if request.views >= have:
        way = "leave out --views" if request.teacher else "delete its folder"
        raise UserError(
            f"{whose} has {have} views, so the last {request.views} are all there are; {way} to drop it whole"
        )
    return have - request.views


def _described(store: Store, request: DropRequest, keep: int | None) -> tuple[str, int]:
    """What goes, in words and in bytes."""
    if keep is None:
        sizes = store.place.sizes(teacher_part(request.teacher or ""))
        if not sizes:
            store.teacher(request.teacher or "")
        return f"teacher {request.teacher}", sum(sizes.values())
    parts = [teacher_part(name) for name in ([request.teacher] if request.teacher else store.teachers)]
    parts += [] if request.teacher else [SOURCE]
    sizes = store.place.sizes()
    num_bytes = 0
    last = keep
    for part in parts:
        views = range(keep, store.part(part).metadata.num_views)
        last = max(last, views.stop)
        num_bytes += sum(sizes.get(name, 0) for name in views_of(store, part, views))
    numbers = f"view {keep}" if last == keep + 1 else f"views {keep}..{last - 1}"
    return f"{numbers} of {request.teacher or 'pixels, labels and all teachers'}", num_bytes


def _ask(question: str) -> None:
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        agreed = False
    if not agreed:
        raise UserError("nothing was dropped; --yes drops without asking")
