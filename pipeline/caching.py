"""`sak cache`: the source part first, then each teacher's part, all in one store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.places import as_place
from pipeline.console import amount, say
from pipeline.errors import UserError
from pipeline.prepare import DatasetRequest, prepare, source_bytes, source_spec
from pipeline.stores import parse_size

TRAINING_VIEWS = 4
"""Views a sample of a training split, unless asked otherwise; evaluation splits have the one padded view."""


@dataclass(frozen=True)
class CacheRequest:
    """Everything `sak cache` was asked for."""

    source: DatasetRequest
    teachers: tuple[str, ...]
    views: int
    features: Path | str
    run: Mapping[str, Any]
    workers: int | None = None
    strict: bool = False
    dry_run: bool = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> CacheRequest:
        """From the command line's options, checked. Raises `UserError` for values that cannot be."""
        teachers = tuple(name.strip() for name in options["teachers"].split(",") if name.strip())
        split = options["split"]
        evaluation = split in ("val", "test")
        views = options["views"] or (1 if evaluation else TRAINING_VIEWS)
        if evaluation and views != 1:
            raise UserError(f"split {split} has one padded evaluation view; leave VIEWS out")
        if options["weights"] and len(teachers) != 1:
            raise UserError("--weights FILE goes with exactly one teacher")
        source = DatasetRequest(
            options["dataset"],
            split,
            parse_size(options["size"]) if options["size"] else None,
            options["root"],
            options["limit"],
            options["seed"],
        )
        run = {
            "codec": options["codec"],
            "levels": _numbers(options["levels"]),
            "grid": None if options["grid"] == "native" else parse_size(options["grid"]),
            **{
                key: options[key]
                for key in ("weights", "random_weights", "device", "precision", "batch_size", "threads")
            },
        }
        return cls(
            source, teachers, views, options["features"], run, options["workers"], options["strict"], options["dry_run"]
        )


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if not text:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--levels {text!r}: expected block numbers such as 2,5,8,11") from None


def run_cache(request: CacheRequest) -> dict[str, Any]:
    """Make, finish or extend the store that `request` describes; returns what it came to, JSON-able."""
    from cache.codecs import get_codec

    get_codec(request.run["codec"])
    if request.teachers:
        from sak_core.teachers import check_teacher

        for name in request.teachers:
            check_teacher(name)
    if request.dry_run:
        return _plan(request)
    store = prepare(request.source, request.features, request.views, workers=request.workers, strict=request.strict)
    for name in request.teachers:
        from pipeline.extract import TeacherRequest, extract

        extract(store, TeacherRequest(name, **request.run), request.views)
    invalid = store.invalid(request.views)
    say(f"{store}: {store.spec.num_samples - len(invalid)} of {store.spec.num_samples} samples valid")
    return {
        "store": str(store),
        "rows": store.spec.num_samples * request.views,
        "views": request.views,
        "teachers": store.teachers,
        "invalid": {store.ids(sample)[0]: reason for sample, reason in sorted(invalid.items())},
    }


def _plan(request: CacheRequest) -> dict[str, Any]:
    spec = source_spec(request.source.open(), request.source)
    needed = source_bytes(spec, request.views)
    say(f"would write {spec.num_samples} samples x {request.views} views, {amount(needed)} of pixels and labels")
    return {
        "store": as_place(request.features).child(spec.store_name).shown,
        "rows": spec.num_samples * request.views,
        "views": request.views,
        "teachers": list(request.teachers),
        "source_bytes": needed,
    }
