"""`sak publish`: stores handed out to others, after what licences say of that was read and agreed to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.format.manifest import SOURCE, PartManifest, teacher_part
from cache.maintenance.store_copy import plan_copy, select
from cache.places.addresses import as_target
from cache.places.place import Place
from cache.places.web import check_catalogue, write_catalogue
from cache.store import Store
from pipeline.console import amount, say, warn
from pipeline.errors import UserError
from pipeline.maintenance.copy_caches import make_copies, stores_at
from pipeline.maintenance.store_card import (
    CARD,
    card_name,
    images_of,
    licence_pairs,
    licence_table,
    stated_beside,
    stated_licences,
    together_sentence,
    write_card,
)
from pipeline.recipes.stores import random_teachers, warn_of_random
from pipeline.runs.licences import DataTerms, data_terms, strictest

Confirm = Callable[[str], bool]
"""Is asked a question; whether the answer is yes."""


@dataclass(frozen=True)
class PublishRequest:
    """What `sak publish` was asked for.

    Attributes:
        sources: stores, or folders of stores.
        target: the folder or address that others will read.
        pixels: whether pixels and labels go along.
        data_licence: of the images, as whoever publishes them says; what is known of the data set when None.
        confirm: says yes to the question that comes when the licences were shown; nothing leaves without.
        dry_run: show them, and copy nothing.
    """

    sources: Path | str | Sequence[Path | str]
    target: Path | str
    pixels: bool = True
    data_licence: str | None = None
    confirm: Confirm | None = None
    dry_run: bool = False


def publish(request: PublishRequest) -> dict[str, Any]:
    """Say what licences allow, ask, copy the stores, and write their card and catalogue beside them; JSON-able.

    What was interrupted goes on.

    Raises:
        UserError: nobody said yes, a store is not complete, or the target holds images that were to stay.
    """
    stores = _stores(request.sources)
    place = as_target(request.target)
    _check(stores, place, request)
    own = stated_beside(stores) | stated_licences(place)
    own |= {store.name: request.data_licence for store in stores if request.data_licence}
    terms = {store.name: data_terms(store.spec, own.get(store.name)) for store in stores}
    plans = [plan_copy(store, place, select(store, pixels=request.pixels)) for store in stores]
    pairs = [pair for store in stores for pair in licence_pairs(store, terms[store.name])]
    together = strictest(pairs)
    images = [_told_of_images(store, terms[store.name], request.pixels) for store in stores]
    for line in (licence_table(pairs), together_sentence(together), *images):
        say(line)
    for store in stores:
        warn_of_random(store.name, random_teachers(store, store.teachers))
    num_bytes = sum(plan.num_bytes for plan in plans)
    if not request.dry_run:
        _ask(request.confirm, f"publish {len(stores)} stores ({amount(num_bytes)} to copy) at {place.shown}?")
    copies = make_copies(plans, place, request.dry_run)
    card = None if request.dry_run else _write_beside(place, own)
    return {
        "published": not request.dry_run,
        "target": place.shown,
        "stores": [{**copy, "images": line} for copy, line in zip(copies, images, strict=True)],
        "licences": [{"of": what, "licence": licence} for what, licence in dict.fromkeys(pairs)],
        "together": together_sentence(together),
        "card": card,
    }


def publish_text(result: Mapping[str, Any]) -> str:
    """`publish`'s result for people."""
    did = "published" if result["published"] else "would publish"
    lines = [f"{did} {store['copy']}: {amount(store['bytes'])} copied, {store['images']}" for store in result["stores"]]
    return "\n".join([*lines, *([f"their card: {result['card']}"] if result["card"] else [])])


def _stores(sources: Path | str | Sequence[Path | str]) -> list[Store]:
    listed = [sources] if isinstance(sources, Path | str) else sources
    stores = [store for source in listed for store in stores_at(source)]
    twice = [name for name, count in Counter(store.name for store in stores).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice, and there is room for one; publish one of them")
    return stores


def _check(stores: Sequence[Store], place: Place, request: PublishRequest) -> None:
    """Refuse what is not to be handed out: half of a store, images where they were to stay; and one licence stated for
    several data sets, and a place without room for card or catalogue.
    """
    datasets = sorted({store.spec.dataset for store in stores})
    if request.data_licence and len(datasets) > 1:
        raise UserError(
            f"--data-licence {request.data_licence} would be said of {', '.join(datasets)}: publish one data set at a "
            "time"
        )
    card_name(place)
    check_catalogue(place)
    for store in stores:
        views = {SOURCE: store.num_views} | {teacher_part(n): store.teacher(n).num_views for n in store.teachers}
        for part, count in views.items():
            if not count or not store.is_complete(part, count):
                raise UserError(
                    f"{store}: {part} is not complete; `sak cache` again finishes it, `sak drop` removes it"
                )
        there = place / store.name
        if not request.pixels and PartManifest(there, SOURCE).exists and not Store.open(there).left_out:
            raise UserError(f"{there.shown} holds {images_of(store)} already; delete it there, or publish elsewhere")


def _told_of_images(store: Store, terms: DataTerms, pixels: bool) -> str:
    """Whether a store's images go along, and whether they may."""
    what = f"{images_of(store)} of {terms.dataset}"
    if not pixels or store.left_out:
        return f"without the {what}: who has them joins them"
    may = {
        True: "which their licence allows",
        False: f"which their licence ({terms.licence}) keeps from just anyone: --without-pixels leaves them here",
        None: f"and whether they may is NOT KNOWN (licence: {terms.licence}): look it up and say it with "
        "--data-licence, or leave them here with --without-pixels",
    }
    return f"with the {what}, {may[terms.may_share]}"


def _ask(confirm: Confirm | None, question: str) -> None:
    if confirm is None or not confirm(question):
        raise UserError("nothing was published; --yes publishes without asking (from Python: confirm=...)")


def _write_beside(place: Place, stated: Mapping[str, str]) -> str:
    """Write the card of all stores in the folder, then its catalogue; returns the card's path or address."""
    card = write_card(place, stated)
    if card != CARD:
        warn(f"{place.show(CARD)} was written or changed by hand and is left as it is: the card is in {card}")
    write_catalogue(place)
    return place.show(card)
