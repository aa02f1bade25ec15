"""Caches from Python: made, planned, published, and joined with the pixels that were left out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.advice import with_advice
from pipeline.api.arguments import Names, Paths, as_names, as_size
from pipeline.errors import UserError
from pipeline.results import CacheResult

if TYPE_CHECKING:
    from pipeline.extraction.request import CacheRequest

TRAINING_VIEWS = 4
"""Views a sample of a training split, unless asked otherwise; evaluation splits have the one padded view."""


def cache_request(
    teachers: Names = (),
    dataset: str = "rooms",
    split: str = "train",
    *,
    root: Path | str | None = None,
    size: str | int | tuple[int, int] | None = None,
    views: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    images: str | None = None,
    out: Path | str = "features",
    grid: str | tuple[int, int] | None = None,
    decoders: int | None = None,
    strict: bool = False,
    scheduler: str | None = None,
    workers: int = 0,
    **options: Any,
) -> CacheRequest:
    """What `cache` and `plan` are asked for, checked; parameters as of `cache`.

    Raises:
        UserError: values that cannot be, or do not go together.
    """
    from pipeline.extraction.request import CacheRequest, teacher_options
    from pipeline.extraction.samples import DatasetRequest

    names, is_scored = as_names(teachers), split in ("val", "test")
    if is_scored and views not in (None, 1):
        raise UserError(f"split {split} has one padded evaluation view; leave VIEWS out")
    if options.get("weights") and len(names) != 1:
        raise UserError("--weights FILE goes with exactly one teacher")
    if scheduler and workers:
        raise UserError("--scheduler uses the workers that are there; leave --workers out")
    source = DatasetRequest(
        dataset, split, as_size(size), Path(root).expanduser() if root else None, limit, seed, images
    )
    return CacheRequest(
        source,
        names,
        views or (1 if is_scored else TRAINING_VIEWS),
        out,
        teacher_options(grid=None if grid in (None, "native") else as_size(grid), **options),
        decoders=decoders,
        strict=strict,
        scheduler=scheduler,
        workers=workers,
    )


@with_advice
def cache(teachers: Names = (), dataset: str = "rooms", split: str = "train", **options: Any) -> CacheResult:
    """Run teachers once over a data set and store their features; goes on where an earlier call stopped.

    Args:
        teachers: names, as `sak teachers` lists them; none prepares pixels and labels alone.
        dataset, split: such as "folder", "train".
        options: root (the data set's folder), size ("S", "HxW" or (H, W), px), views, limit, seed, images (which of a
            sample's images is the input), out (folder or address of the caches), grid ("hxw"), decoders, strict,
            scheduler, workers; and those of `pipeline.extraction.request.TeacherOptions`: codec, probes, fidelity (or,
            as text, what tasks may lose: "semseg=0.5"), levels, weights, device, ...

    Raises:
        SakError: what is asked cannot be, or what it needs is missing.
    """
    from pipeline.extraction.caching import run_cache

    made = run_cache(cache_request(teachers, dataset, split, **options))
    return CacheResult(made.pop("store"), **{**made, "teachers": tuple(made["teachers"])})


@with_advice
def plan(teachers: Names = (), dataset: str = "rooms", split: str = "train", **options: Any) -> dict[str, Any]:
    """What `cache` with these arguments would write, hold and take; nothing of it is done. JSON-able.

    Raises:
        SakError: as `cache`.
    """
    from pipeline.extraction.plan import plan as planned

    # all that this process has done so far a run does, too
    return planned(cache_request(teachers, dataset, split, **options), time.process_time())


@with_advice
def publish(stores: Paths, target: Path | str, **options: Any) -> dict[str, Any]:
    """Copy stores for others to read, with a card each; returns what was published. JSON-able.

    Args:
        stores: stores, or folders of them.
        target: a folder or an address.
        options: as of `pipeline.maintenance.publish.PublishRequest`.

    Raises:
        SakError: a licence forbids it, nobody confirmed, or a place cannot be read or written.
    """
    from pipeline.maintenance import publish as publishing

    return publishing.publish(publishing.PublishRequest(stores, target, **options))


@with_advice
def join(features: Path | str, root: Path | str | None = None, out: Path | str | None = None) -> dict[str, Any]:
    """Render pixels and labels of stores that were published without them; returns what was made. JSON-able.

    Args:
        features: a store, or a folder of them; a path or an address.
        root: the data set's folder; None for one that needs none.
        out: the folder of caches that whole stores go into; they are completed where they lie when None.

    Raises:
        SakError: an image is another than the one that the features are of, or a place cannot be read or written.
    """
    from pipeline.maintenance import join as joining

    return joining.join(joining.JoinRequest(features, None if root is None else Path(root), out))
