"""`sak join`: pixels and labels rendered again from the data set, beside features that were published without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import RemadeDiffers
from cache.format.manifest import SOURCE
from cache.format.spec import SourceSpec
from cache.maintenance.left_out import missing_files, put_back
from cache.maintenance.store_copy import plan_copy, select
from cache.places.addresses import as_target, folder_of, pinned
from cache.places.web import refresh_catalogue
from cache.store import Store
from cache.writing.source_writer import SourceWriter
from pipeline.console import progress, say, warn
from pipeline.errors import UserError
from pipeline.extraction.amounts import check_disk
from pipeline.extraction.prepare import shards, source_spec
from pipeline.extraction.samples import Block, DatasetRequest
from pipeline.extraction.samples import join as joined
from pipeline.extraction.unchanged import open_again
from pipeline.maintenance.copy_caches import make_copies, stores_at
from pipeline.maintenance.store_card import carry_card
from sak_common.differences import first_difference
from sak_core.interfaces.dataset import Dataset, FirstSamples

_MOST_SHOWN = 20
"""Images that `join_text` lists."""


@dataclass(frozen=True)
class JoinRequest:
    """What `sak join` was asked for.

    Attributes:
        features: a store that was published without its images, or a folder of such.
        root: the data set's folder, where it has one.
        out: the folder of caches that the whole stores go into; they are completed where they lie when None.
    """

    features: Path | str
    root: Path | None = None
    out: Path | str | None = None


def join(request: JoinRequest) -> dict[str, Any]:
    """Render what was left out of the stores that `request` names; returns how each ended, JSON-able.

    A store is whole, byte for byte the one that was published from, when every image has its recorded digest and every
    file its recorded SHA-256; until then it says of itself that it is not. What was interrupted goes on.

    Raises:
        UserError: the data set is not there, or has other labels.
    """
    stores = stores_at(pinned(request.features))
    left_out = [store for store in stores if store.left_out]
    if request.out is None:
        for store in left_out:
            store.place.check_writable()
    if len(names := {store.spec.dataset for store in left_out}) > 1:
        raise UserError(f"{request.features} holds stores of {', '.join(sorted(names))}: join one data set at a time")
    return {"stores": [_join(store, request) for store in stores]}


def is_joined(result: Mapping[str, Any]) -> bool:
    """Whether every store is whole."""
    return all(store["joined"] for store in result["stores"])


def join_text(result: Mapping[str, Any]) -> str:
    """`join`'s result for people."""
    return "\n".join(line for store in result["stores"] for line in _lines(store))


def _lines(store: Mapping[str, Any]) -> list[str]:
    if store["joined"]:
        done = f"{store['rows']} rows rendered, " if store["rows"] else ""
        return [f"{store['store']}: whole: {done}every image and every file is the one that was published"]
    images, files = store["images"], store["files"]
    shown = [f"  {name}: {why}" for name, why in list(images.items())[:_MOST_SHOWN]]
    more = [f"  and {len(images) - _MOST_SHOWN} more; --json lists them all"] if len(images) > _MOST_SHOWN else []
    return [
        f"{store['store']}: NOT whole: {len(images)} images and {len(files)} files differ; put them right and run the "
        "same command again",
        *shown,
        *more,
        *(f"  {text}" for text in files),
    ]


def _join(published: Store, request: JoinRequest) -> dict[str, Any]:
    store = published
    asked: DatasetRequest | None = None
    if store.left_out:
        asked, dataset = open_again(store, request.root, "pixels and labels")
        if absent := _absent(store, dataset):  # then nothing is copied or rendered
            return _ended(store, images=absent)
        _check_labels(store, source_spec(dataset, asked))
    folder = folder_of(store.place) if request.out is None else as_target(request.out)
    if request.out is not None:
        assert folder
        plan = plan_copy(store, folder, select(store))
        make_copies([plan], folder)
        store = Store.open(plan.target)
    rows, images, files = 0, dict[str, str](), list[str]()
    if asked and store.left_out:  # else it lay there whole, and has these teachers now
        with store.lock(SOURCE, on_wait=say):
            rows, images, files = _render(store, asked)
            if not (images or files):
                put_back(store)
        store.place.finish()
    if folder is not None and (asked or request.out):
        carry_card([published], folder)  # also where it lies: the images are here now
        refresh_catalogue(folder)
    return _ended(store, rows, images, files)


def _ended(
    store: Store, rows: int = 0, images: Mapping[str, str] | None = None, files: Sequence[str] = ()
) -> dict[str, Any]:
    """How joining a store ended: rows rendered, images that differ and why, files that are not as published."""
    is_whole = not store.left_out
    return {"store": str(store), "joined": is_whole, "rows": rows, "images": dict(images or {}), "files": list(files)}


def _absent(store: Store, dataset: Dataset) -> dict[str, str]:
    """Images that the store has and the data set has not, or the other way round, where they are not the data set's
    first ones: views are drawn by their number."""
    ids = store.ids()
    if ids == list(dataset.ids):
        return {}
    whole = dataset.dataset if isinstance(dataset, FirstSamples) else dataset
    there, wanted = set(whole.ids), set(ids)
    missing = {name: "it is not in the data set" for name in ids if name not in there}
    surplus = {name: "it is in the data set, and not in the store" for name in whole.ids if name not in wanted}
    if not (missing or surplus):
        raise UserError(f"the images of {store.spec.dataset} are in another order than {store.name} has them in")
    return missing | surplus


def _check_labels(store: Store, now: SourceSpec) -> None:
    """Refuse a data set that has other tasks than a store; say what else is not as it was."""
    was, name = store.spec, store.spec.dataset
    if difference := first_difference(was.to_dict()["labels"], now.to_dict()["labels"]):
        field, stored, found = difference
        raise UserError(f"labels of {name} are not those of {store.name}: {field} was {stored!r}, is {found!r}")
    if difference := first_difference(was.to_dict()["dataset_info"], now.to_dict()["dataset_info"]):
        field, stored, found = difference
        warn(f"{field} of {name} was {stored!r}, is {found!r}; what it gives is held to the recorded digests")


def _render(store: Store, asked: DatasetRequest) -> tuple[int, dict[str, str], list[str]]:
    """Write the files that are missing; returns rows rendered, images that are not the recorded ones and why, and
    files that would not be."""
    missing = missing_files(store)
    num_bytes = sum(file.num_bytes for files in missing.values() for file in files.values())
    check_disk(str(store), num_bytes, "pixels and labels")
    todo = sorted(missing, key=lambda place: place[::-1])
    writer = SourceWriter(store)
    rows, images, files = 0, dict[str, str](), list[str]()
    with progress(f"join {store.name}", len(todo), "shards") as advance:
        for shard, blocks in shards(asked, store.spec, todo):
            wrong = {name: why for block in blocks for name, why in _differing(store, block).items()}
            images |= wrong
            for view in blocks[0].task.views:
                advance()
                if wrong:
                    continue
                try:
                    writer.write_shard(view, shard, joined(blocks, view), _invalid(store, view, shard))
                    rows += len(store.spec.rows(shard))
                except RemadeDiffers as error:
                    files.append(str(error))
    return rows, images, files


def _differing(store: Store, block: Block) -> dict[str, str]:
    """Images of a block that are not those that the store was made from, and why."""
    samples = list(block.task.samples)
    names, recorded = store.ids(samples), store.samples["digest"][samples]
    valid = store.samples["valid"][samples].astype(bool)
    shard = samples[0] // store.spec.rows_per_shard
    has_rows = {s for view in block.task.views for s in samples if s not in _invalid(store, view, shard)}
    wrong = {}
    for i, sample in enumerate(samples):
        if sample in block.invalid and sample in has_rows:
            wrong[names[i]] = f"it cannot be read: {block.invalid[sample]}"
        elif sample in block.digests and valid[i] and not np.array_equal(block.digests[sample], recorded[i]):
            wrong[names[i]] = "it decodes to other pixels than those that the store was made from"
    return wrong


def _invalid(store: Store, view: int, shard: int) -> dict[int, str]:
    """Samples of a shard whose rows were filled, as what was published says; here they may be readable."""
    rows = store.spec.rows(shard)
    return {sample: why for sample, why in store.part(SOURCE).view(view).invalid.items() if sample in rows}
