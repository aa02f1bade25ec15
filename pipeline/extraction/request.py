"""What a person asks of `sak cache` and `sak plan`, from the command line's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.commands.options import numbers
from pipeline.errors import UserError
from pipeline.extraction.samples import DatasetRequest
from pipeline.recipes.stores import parse_size

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
    decoders: int | None = None
    strict: bool = False
    dry_run: bool = False
    scheduler: str | None = None
    workers: int = 0

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
            **{key: options[key] for key in ("codec", "fidelity", "together", "prefix")},
            "levels": numbers("--levels", options["levels"]),
            "grid": None if options["grid"] == "native" else parse_size(options["grid"]),
            **{
                key: options[key]
                for key in (
                    *("weights", "random_weights", "allow_code"),
                    *("device", "precision", "compile", "batch_size", "threads"),
                )
            },
        }
        flags = (options["decoders"], options["strict"], options["dry_run"])
        cluster = {key: options[key] for key in ("scheduler", "workers") if key in options}
        if cluster.get("scheduler") and cluster.get("workers"):
            raise UserError("--scheduler uses the workers that are there; leave --workers out")
        return cls(source, teachers, views, options["features"], run, *flags, **cluster)
