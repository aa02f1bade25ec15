"""`sak info` and `sak verify`: what a store holds, and whether its bytes are what was committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from cache.calibration.stored import calibration_folder
from cache.codecs import get_codec
from cache.codecs.fidelity import Fidelity
from cache.format.manifest import FOLDER, LOG, SOURCE, teacher_part
from cache.maintenance.verification import Problem, verify_store
from cache.places.addresses import as_place, pinned
from cache.store import Store
from pipeline.console import amount, progress, red
from pipeline.extraction.stored_fidelity import logged_fidelity
from pipeline.probes.kept import told_lines, told_losses
from pipeline.probes.loss import Loss
from pipeline.recipes.stores import random_teachers, weights_of


class _MadeBy(BaseModel):
    """What is told of a teacher; it may have been written by anyone."""

    library: str
    model: str
    weights: str
    licence: str
    input_size: tuple[int, int]
    interpolation: str
    mean: Any
    std: Any
    levels: Any


class _Made(BaseModel):
    """What is told of a provenance."""

    teacher: _MadeBy
    versions: dict[str, Any]
    precision: str
    batch_size: int
    threads: int | None
    grid: Literal["native"] | tuple[int, int]
    device: str


_MOST_SHOWN = 20
"""Unreadable samples that `info_text` lists."""


def store_info(path: Path | str) -> dict[str, Any]:
    """What the store holds, what of it is committed, its bytes and what made it, JSON-able."""
    store = Store.open(path)
    spec = store.spec
    sizes = store.place.sizes()
    parts = {part: _part_info(store, part, sizes) for part in (SOURCE, *map(teacher_part, store.teachers))}
    invalid = store.invalid(store.num_views)
    return {
        "store": str(path),
        **({"read_at": store.place.pinned} if store.place.pinned else {}),
        "dataset": spec.dataset,
        "split": spec.split,
        "size": list(spec.size),
        "samples": spec.num_samples,
        "views": store.num_views,
        "rows": spec.num_samples * store.num_views,
        "invalid": {store.ids(sample)[0]: why for sample, why in invalid.items()},
        "labels": sorted(spec.labels),
        "left_out": sorted(store.left_out),
        "bytes": sum(sizes.values()),
        "source": parts[SOURCE],
        "teachers": {name: {**parts[teacher_part(name)], **_teacher_info(store, name)} for name in store.teachers},
        "spec": spec.to_dict(),
    }


def _part_info(store: Store, part: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """How much of a part is committed, in views of the store, and its bytes."""
    manifest = store.part(part)
    metadata = manifest.metadata
    shards = [(view, shard) for view in range(metadata.num_views) for shard in manifest.view(view).shards]
    if part == SOURCE:
        mine = [name for name in sizes if not name.startswith(("teachers/", f"{FOLDER}/")) and name != LOG]
    else:
        mine = [name for name in sizes if name.startswith(f"{part}/")]
    return {
        "views": metadata.num_views,
        "committed_rows": sum(len(store.spec.rows(shard)) for _, shard in shards),
        "pending_shards": metadata.num_shards * store.num_views - len(shards),
        "bytes": sum(sizes[name] for name in mine),
    }


def _teacher_info(store: Store, name: str) -> dict[str, Any]:
    info = store.teacher(name)
    fidelity = store.calibration(name, [f"{level.array}/fidelity" for level in info.levels]) or {}
    return {
        "levels": [level.to_dict() for level in info.levels],
        "fidelity": {
            key.partition("/")[0]: asdict(Fidelity.from_array(value)) for key, value in sorted(fidelity.items())
        },
        "grid_transforms": _grid_transforms(store, name),
        "stored_fidelity": logged_fidelity(store, name),
        "probes": told_losses(store, name),
        "clipped": _clipped(store, name),
        "random_weights": bool(random_teachers(store, [name])),
        "provenance": dict(info.provenance),
    }


def _grid_transforms(store: Store, name: str) -> dict[str, str]:
    """``dct`` or ``none``, a level each; only calibrated levels whose codec can be transformed over its grid."""
    committed = store.part(teacher_part(name)).calibration()
    levels = [level for level in store.teacher(name).levels if get_codec(level.codec).may_need]
    return {
        level.array: "dct" if f"{calibration_folder(name)}/{level.array}/dct_y/zarr.json" in committed else "none"
        for level in levels
        if committed is not None
    }


def _clipped(store: Store, name: str) -> dict[str, int]:
    """Values that did not fit their codec's range, a level each; only levels whose codec can clip."""
    manifest = store.part(teacher_part(name))
    counts: dict[str, int] = {}
    for view in range(manifest.metadata.num_views):
        for array, clipped in manifest.view(view).clipped.items():
            level = array.rpartition("/")[2]
            counts[level] = counts.get(level, 0) + sum(clipped)
    return counts


def info_text(info: Mapping[str, Any]) -> str:
    """`store_info` for people."""
    height, width = info["size"]
    lines = [
        info["store"],
        *([f"  read at {info['read_at']}"] if "read_at" in info else []),
        f"  {info['dataset']} {info['split']}: {info['samples']} samples x {info['views']} views of {height}x{width} "
        f"px, {amount(info['bytes'])} in all",
        f"  labels: {', '.join(info['labels']) or 'none'}",
        f"  source: {_state(info['source'], info['rows'])}",
    ]
    if info["left_out"]:
        lines.append(f"  left out: {', '.join(info['left_out'])}; `sak join` renders them from the data set")
    if info["invalid"]:
        lines.append(f"  unreadable, left out of training: {len(info['invalid'])}")
        shown = list(info["invalid"].items())[:_MOST_SHOWN]
        lines += [f"    {name}: {why}" for name, why in shown]
        if len(shown) < len(info["invalid"]):
            lines.append(f"    and {len(info['invalid']) - len(shown)} more; --json lists them all")
    for name, teacher in info["teachers"].items():
        mark = red(", RANDOM WEIGHTS") if teacher["random_weights"] else ""
        lines.append(f"  {name}{mark}: {_state(teacher, info['rows'])}")
        lines += [f"    {line}" for line in _provenance_lines(teacher["provenance"])]
        for level in teacher["levels"]:
            lines.append(f"    {_level_line(level, teacher)}")
        lines += [f"    {line}" for line in told_lines(teacher["probes"])]
    return "\n".join(lines)


def _state(part: Mapping[str, Any], rows: int) -> str:
    done = part["committed_rows"]
    state = "complete" if not part["pending_shards"] else f"{part['pending_shards']} shards to come"
    return f"{done} of {rows} rows committed ({state}), {amount(part['bytes'])}"


def _provenance_lines(made: Mapping[str, Any]) -> list[str]:
    """What made a teacher's features, in words."""
    try:
        _Made.model_validate(made)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        return [f"its provenance is not as `sak cache` writes it: {where}: {error.errors()[0]['msg']}"]
    teacher = made["teacher"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    how = f"{made['precision']}, batches of {made['batch_size']}" + (", compiled" if made.get("compile") else "")
    threads = f", {made['threads']} thread{'s' if made['threads'] > 1 else ''}" if made["threads"] else ""
    grid = "" if made["grid"] == "native" else f", averaged to {made['grid'][0]}x{made['grid'][1]} cells"
    notes = made.get("notes")
    under = notes.get("weights_from") if isinstance(notes, dict) else None
    weights = teacher["weights"] + (f", in their file under {under!r}" if under else "")
    return [
        f"{teacher['library']} {teacher['model']}, weights {weights} ({teacher['licence']})",
        f"input {teacher['input_size'][0]}x{teacher['input_size'][1]} px, {teacher['interpolation']}, "
        f"mean {teacher['mean']}, std {teacher['std']}, blocks {teacher['levels']}{grid}",
        f"{how}, on {made['device']}{threads}; {versions}",
    ]


def _level_line(level: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    name = f"level_{level['level']}{'_prefix' if level.get('prefix') else ''}"
    line = f"{name}: {level['grid'][0]}x{level['grid'][1]}x{level['width']} {level['codec']}"
    if figures := teacher["fidelity"].get(name):
        line += (
            f", token cosine {figures['cosine']:.6f}, with the mean removed {figures['centred_cosine']:.6f}, relative "
            f"MSE {figures['relative_mse_median']:.2g} (worst channel {figures['relative_mse_worst']:.2g})"
        )
    if measured := (teacher["stored_fidelity"] or {"levels": {}})["levels"].get(name):
        line += (
            f"; {teacher['stored_fidelity']['rows']} stored rows: {measured['cosine']:.6f}, "
            f"{measured['centred_cosine']:.6f}, {measured['relative_mse_median']:.2g} "
            f"({measured['relative_mse_worst']:.2g})"
        )
    if "fidelity" in level:
        line += f"; {level['fidelity']} promised"
    if "standardized" in level:
        line += ", of standardized channels, too"
    if teacher["grid_transforms"].get(name) == "dct":
        line += "; cosine transform over the grid"
    if "predicts_from" in level:
        line += f"; coded against level {level['predicts_from']}"
    if name in teacher["clipped"]:
        line += f", {teacher['clipped'][name]} values clipped"
    return line


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
    live: int | None = None,
    weights: Mapping[str, Path] | None = None,
    device: str = "auto",
    allow_code: bool = False,
    probes: Path | str | None = None,
) -> dict[str, Any]:
    """Check the store, with `live` so many rows of each teacher against the teacher, and with `probes` ("own", or a
    labelled cache) what tasks lose to their codecs; JSON-able.

    Rows are recomputed only where every digest holds: damage is said first, and repaired first.
    """
    result: dict[str, Any] = {"store": str(path)}
    path = pinned(path)
    problems = result["problems"] = [problem_dict(problem) for problem in find_problems(path)]
    if problems:
        return result
    store = Store.open(path)
    if store.left_out:
        result["left_out"] = sorted(store.left_out)
    if live:
        from pipeline.maintenance.recheck import recheck

        result["live"] = recheck(store, live, weights_of(store, weights or {}), device, allow_code)
    if probes:
        from pipeline.maintenance.task_losses import task_losses

        result["probes"] = task_losses(store, probes, weights_of(store, weights or {}), device, allow_code)
    return result


def is_well(result: Mapping[str, Any]) -> bool:
    """Whether `verify` found nothing."""
    measured = [*result.get("live", {}).values(), *result.get("probes", {}).values()]
    return not result["problems"] and not any(teacher["problems"] for teacher in measured)


def verify_text(result: Mapping[str, Any]) -> str:
    """`verify` for people."""
    if result["problems"]:
        lines = [f"{result['store']}: {len(result['problems'])} problems; `sak repair` mends what it can"]
        return "\n".join([*lines, *(problem["text"] for problem in result["problems"])])
    left_out = f" of what is there; left out: {', '.join(result['left_out'])}" if "left_out" in result else ""
    lines = [f"{result['store']}: every digest and checksum holds{left_out}"]
    for name, teacher in result.get("live", {}).items():
        rows = f"{len(teacher['rows'])} rows computed again"
        if not teacher["problems"]:
            least = min((min(level["cosine"], level["centred_cosine"]) for level in teacher["levels"]), default=1.0)
            lines.append(f"  {name}: {rows} agree, token cosines at least {least:.6f}")
        lines += [f"  {name}: {problem}" for problem in teacher["problems"]]
    for name, teacher in result.get("probes", {}).items():
        how = "fitted now" if teacher["fitted"] else "kept with it"
        lines += [f"  {name}, probe {how}: {task} {Loss.from_dict(loss)}" for task, loss in teacher["losses"].items()]
        lines += [f"  {name}: {problem}" for problem in teacher["problems"]]
    return "\n".join(lines)
