"""The caches that runs read, with what their making took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cache.codecs import get_codec
from cache.errors import CacheError
from cache.format.spec import LevelSpec
from cache.store import Store
from pipeline.advice import advised
from pipeline.extraction.stored_fidelity import log_events
from pipeline.maintenance.inspect import store_info
from pipeline.recipes.stores import Caches, each_place, stores_below
from pipeline.report.facts import CacheFacts, Extraction, RunFacts
from sak_common.errors import SakError

SHARES = ("busy", "pixels", "encoding", "disk")


def caches_read(runs: Sequence[RunFacts], features: Caches) -> tuple[dict[str, CacheFacts], list[str]]:
    """The caches of `features` that the runs name, by name; and in words what is not there or cannot be read."""
    wanted = {name: None for run in runs for name in _named(run)}
    asked = {_asked(run.recipe["data"]) for run in runs if not run.results and "data" in run.recipe}
    found: dict[str, CacheFacts] = {}
    troubles = []
    stores = list[Store]()
    for place in each_place(features):
        try:
            stores += stores_below(place)
        except CacheError as error:
            troubles.append(f"The caches below {place} cannot be read: {advised(error)}.")
    for store in stores:
        height, width = store.spec.size
        is_asked = (store.spec.dataset, store.spec.split, f"{height}x{width}") in asked
        if store.name not in wanted and not is_asked:
            continue
        try:
            found[store.name] = _together(found.get(store.name), _facts(store))
        except (SakError, LookupError, TypeError, ValueError) as error:
            troubles.append(f"The cache {store.name} cannot be read: {error}.")
    told = " ".join(troubles)
    if absent := [name for name in wanted if name not in found and name not in told]:
        troubles.append(
            f"Not below {', '.join(map(str, each_place(features)))}, so that what they took, and pictures of them, are "
            f"missing: {', '.join(absent)}."
        )
    return found, troubles


def _together(one: CacheFacts | None, other: CacheFacts) -> CacheFacts:
    """A cache that lies in two places, with each teacher as of the first that has it."""
    if one is None:
        return other
    return replace(one, teachers={**other.teachers, **one.teachers}, others=(*one.others, other.path))


def _named(run: RunFacts) -> Iterator[str]:
    """The caches that a run's results and scores name."""
    yield from run.results.get("caches", ())
    for origin in run.origins:
        yield from origin.get("caches", {})


def _asked(data: Mapping[str, Any]) -> tuple[str, str, str]:
    size = str(data.get("size") or "")
    return str(data["dataset"]), str(data["split"]), size if "x" in size or not size else f"{size}x{size}"


def _facts(store: Store) -> CacheFacts:
    info = store_info(store.place.shown)
    events = log_events(store)
    prepared = [event["seconds"] for event in events if event.get("stage") == "prepare"]
    return CacheFacts(
        name=store.name,
        path=store.place.shown,
        dataset=store.spec.dataset,
        split=store.spec.split,
        size=store.spec.size,
        samples=store.spec.num_samples,
        views=store.num_views,
        source_bytes=info["source"]["bytes"],
        prepare_seconds=sum(prepared) if prepared else None,
        teachers={name: _extraction(store, name, made, events) for name, made in info["teachers"].items()},
    )


def _extraction(store: Store, name: str, made: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Extraction:
    mine = [event for event in events if event.get("stage") == "extract" and event.get("teacher") == name]
    told = sum(event["rows"] for event in mine)
    seconds = sum(event["seconds"] for event in mine)
    rows = made["committed_rows"]
    levels = [LevelSpec(**level) for level in made["levels"]]
    promised = [level.fidelity or get_codec(level.codec).promised_cosine for level in levels]
    measured = (made["stored_fidelity"] or {"levels": {}})["levels"].values()
    return Extraction(
        store=store.name,
        teacher=name,
        rows=rows,
        bytes=made["bytes"],
        seconds=seconds * rows / told if told else None,  # rows that another machine's log tells of cost the same
        codecs=tuple(dict.fromkeys(level.codec for level in levels)),
        promised=min((value for value in promised if value is not None), default=None),
        measured=min((min(one["cosine"], one["centred_cosine"]) for one in measured), default=None),
        device=str(made["provenance"].get("device", "")),
        shares={share: sum(event[share] * event["seconds"] for event in mine) / seconds for share in SHARES if seconds},
        provenance=made["provenance"],
    )
