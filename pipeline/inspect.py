"""`sak info` and `sak verify`: what a store holds, and whether its bytes are what was committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cache.places import as_place
from cache.store import Store
from cache.verify import Problem, verify_store
from pipeline.console import amount, progress, red
from pipeline.stores import random_teachers, weights_of


def store_info(path: Path | str) -> dict[str, Any]:
    """What the store holds and what made it, JSON-able."""
    store = Store.open(path)
    spec = store.spec
    source = store.part("source")
    return {
        "store": str(path),
        "dataset": spec.dataset,
        "split": spec.split,
        "size": list(spec.size),
        "samples": spec.num_samples,
        "views": store.num_views,
        "invalid": len(store.invalid(store.num_views)) if store.is_complete("source", store.num_views) else None,
        "labels": sorted(spec.labels),
        "bytes": sum(store.place.sizes().values()),
        "source_pending_shards": len(source.pending(store.num_views)),
        "teachers": {name: _teacher_info(store, name) for name in store.teachers},
        "spec": spec.to_dict(),
    }


def _teacher_info(store: Store, name: str) -> dict[str, Any]:
    info = store.teacher(name)
    calibration = store.calibration(name) or {}
    return {
        "views": info.num_views,
        "pending_shards": len(store.part(f"teachers/{name}").pending(store.num_views)),
        "bytes": sum(store.place.sizes(f"teachers/{name}").values()),
        "levels": [level.to_dict() for level in info.levels],
        "fidelity": {
            key.partition("/")[0]: [float(v) for v in value.ravel()[:4]]
            for key, value in sorted(calibration.items())
            if key.endswith("/fidelity")
        },
        "random_weights": bool(random_teachers(store, [name])),
        "provenance": dict(info.provenance),
    }


def info_text(info: dict[str, Any]) -> str:
    """`store_info` for people."""
    height, width = info["size"]
    lines = [
        info["store"],
        f"  {info['dataset']} {info['split']}, {info['samples']} samples x {info['views']} views"
        f" of {height}x{width} px, {amount(info['bytes'])}",
        f"  labels: {', '.join(info['labels']) or 'none'}; invalid samples: {info['invalid']}",
    ]
    for name, teacher in info["teachers"].items():
        levels = ", ".join(f"{lv['grid'][0]}x{lv['grid'][1]}x{lv['width']}" for lv in teacher["levels"])
        state = "complete" if not teacher["pending_shards"] else f"{teacher['pending_shards']} shards to come"
        mark = red(", RANDOM WEIGHTS") if teacher["random_weights"] else ""
        codec = teacher["levels"][0]["codec"]
        lines.append(f"  {name}{mark}: {state}, {amount(teacher['bytes'])}, {codec}, levels {levels}")
        for level, values in teacher["fidelity"].items():
            lines.append(f"    {level}: token cosine {values[0]:.6f}, with the mean removed {values[1]:.6f}")
    return "\n".join(lines)


def find_problems(path: Path | str) -> list[Problem]:
    """Check the store, also one too damaged to open, and show how far it is."""
    size = sum(as_place(path).sizes().values())
    with progress("verify", max(size // 1_000_000, 1), "MB") as advance:
        shown = 0

        def tell(done_bytes: int, total_bytes: int) -> None:
            nonlocal shown
            if done_bytes // 1_000_000 > shown:
                advance(done_bytes // 1_000_000 - shown)
                shown = done_bytes // 1_000_000

        return verify_store(path, tell)


def problem_dict(problem: Problem) -> dict[str, Any]:
    """A problem as JSON holds it: its fields, and the sentence for people as ``text``."""
    return {**asdict(problem), "text": str(problem)}


def verify(
    path: Path | str,
    live: int = 0,
    weights: Mapping[str, Path] | None = None,
    device: str = "auto",
    allow_code: bool = False,
) -> dict[str, Any]:
    """Check the store, and with `live` so many rows of each teacher against the teacher; JSON-able.

    Rows are recomputed only where every digest holds: damage is said first, and repaired first.
    """
    problems = [problem_dict(problem) for problem in find_problems(path)]
    result: dict[str, Any] = {"store": str(path), "problems": problems}
    if live and not problems:
        from pipeline.recheck import recheck

        store = Store.open(path)
        result["live"] = recheck(store, live, weights_of(store, weights or {}), device, allow_code)
    return result


def is_well(result: Mapping[str, Any]) -> bool:
    """Whether `verify` found nothing."""
    return not result["problems"] and not any(teacher["problems"] for teacher in result.get("live", {}).values())


def verify_text(result: Mapping[str, Any]) -> str:
    """`verify` for people."""
    if result["problems"]:
        lines = [f"{result['store']}: {len(result['problems'])} problems; `sak repair` mends what it can"]
        return "\n".join([*lines, *(problem["text"] for problem in result["problems"])])
    lines = [f"{result['store']}: every digest and checksum holds"]
    for name, teacher in result.get("live", {}).items():
        rows = f"{len(teacher['rows'])} rows computed again"
        if not teacher["problems"]:
            least = min((min(level["cosine"], level["centred_cosine"]) for level in teacher["levels"]), default=1.0)
            lines.append(f"  {name}: {rows} agree, token cosines at least {least:.6f}")
        lines += [f"  {name}: {problem}" for problem in teacher["problems"]]
    return "\n".join(lines)
