"""`sak repair`: what is damaged is made again, from the store's own pixels or from the data set, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import CacheError
from cache.faults import fault_point
from cache.format.manifest import FOLDER, SOURCE, teacher_part
from cache.format.spec import deciding
from cache.maintenance.metadata_repair import mend_metadata
from cache.maintenance.verification import Problem
from cache.store import Store
from cache.writing.shard_files import clean_part
from cache.writing.source_writer import SourceWriter
from cache.writing.teacher_writer import TeacherWriter
from pipeline.advice import advised
from pipeline.console import progress, say, warn
from pipeline.errors import UserError
from pipeline.extraction.prepare import shards
from pipeline.extraction.samples import join
from pipeline.extraction.unchanged import unchanged_dataset
from pipeline.maintenance.inspect import find_problems, problem_dict
from pipeline.recipes.stores import weights_of
from sak_common.differences import first_difference
from sak_common.names import UnknownName
from sak_core.errors import DatasetError


@dataclass(frozen=True)
class RepairRequest:
    """What `sak repair` may use.

    Attributes:
        root: the data set's folder, for damaged pixels and labels.
        weights: teacher -> file of its weights, for teachers that were extracted with one.
        device: where teachers run.
        allow_code: whether teachers of a user's own module may run.
        dry_run: say what would be done, and do nothing.
    """

    root: Path | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    device: str = "auto"
    allow_code: bool = False
    dry_run: bool = False


@dataclass
class _Damage:
    """What is to be made again of a part.

    Attributes:
        calibration: its calibration.
        shards: (view, shard) whose files are damaged.
        entries: (view, shard) whose manifest file is beyond mending; shard None is the whole view's.
        hopeless: what nothing here can make again.
    """

    calibration: bool = False
    shards: set[tuple[int, int]] = field(default_factory=set)
    entries: set[tuple[int, int | None]] = field(default_factory=set)
    hopeless: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """Take in one problem of the part."""
        if problem.level is not None and problem.view is not None and problem.shard is not None:
            self.shards.add((problem.view, problem.shard))
        elif "/calibration/" in problem.file and not problem.file.startswith(f"{FOLDER}/"):
            self.calibration = True
        elif problem.view is not None:
            self.entries.add((problem.view, problem.shard))
        else:
            self.hopeless.append(problem)


def repair_store(path: Path | str, request: RepairRequest) -> dict[str, Any]:
    """Mend the store at `path`; returns what was damaged, what was mended and what is left and why, JSON-able.

    A repaired file is the one that was committed, byte for byte: what is made again is held to its recorded SHA-256
    before it is written. What cannot be repaired is left as it is. After a kill the same call goes on; of what
    the killed one took back, because a manifest file was beyond mending, it makes again what rows of teachers need, and
    `sak cache` makes the rest.
    """
    found = find_problems(path)
    if request.dry_run or not found:
        return {"store": str(path), "damaged": [problem_dict(p) for p in found], "mended": [], "left": []}
    mended, left = mend_metadata(path)
    if mended:
        say(f"mended from the store itself: {', '.join(mended)}")
        left = find_problems(path)
    else:
        left = found
    parts: dict[str, _Damage] = {}
    for problem in left:
        parts.setdefault(problem.part, _Damage()).add(problem)
    if taken_back := _taken_back(path):
        parts.setdefault(SOURCE, _Damage()).shards |= taken_back
    reasons: dict[str, str] = {}
    for part in sorted(parts, key=lambda name: (name != SOURCE, name)):  # teachers are made from the source's pixels
        try:
            _refuse_hopeless(part, parts[part])
            store = Store.open(path)
            with store.lock(part, on_wait=say):
                _remake(store, part, parts[part], request)
        except (CacheError, UserError, DatasetError, UnknownName) as error:
            reasons[part] = advised(error)
    _tidy(path, sorted({problem.part for problem in found}))
    if parts:
        left = find_problems(path)
    remaining = {problem.file for problem in left}
    return {
        "store": str(path),
        "damaged": [problem_dict(problem) for problem in found],
        "mended": sorted({*mended, *(problem.file for problem in found)} - remaining),
        "left": [{**problem_dict(problem), "why": reasons.get(problem.part, "")} for problem in left],
    }


def repair_text(result: Mapping[str, Any]) -> str:
    """`repair_store` for people."""
    if not result["damaged"]:
        return f"{result['store']}: nothing is damaged"
    if not (result["mended"] or result["left"]):
        return "\n".join([f"{result['store']}: would repair", *(problem["text"] for problem in result["damaged"])])
    lines = [f"{result['store']}: {len(result['mended'])} files mended, {len(result['left'])} problems left"]
    lines += [f"  {problem['text']}" for problem in result["left"]]
    return "\n".join(lines + [f"  {why}" for why in dict.fromkeys(p["why"] for p in result["left"]) if why])


def _taken_back(path: Path | str) -> set[tuple[int, int]]:
    """The (view, shard) that a teacher has and the source has not: a repair took them back, and was killed."""
    taken_back: set[tuple[int, int]] = set()
    with suppress(CacheError):
        store = Store.open(path)
        for name in store.teachers:
            with suppress(CacheError):
                for view in range(store.teacher(name).num_views):
                    ours, theirs = (store.part(part).view(view).shards for part in (SOURCE, teacher_part(name)))
                    taken_back |= {(view, shard) for shard in theirs.keys() - ours.keys()}
    return taken_back


def _tidy(path: Path | str, parts: Sequence[str]) -> None:
    """Delete the half-written files that a killed repair left of these parts, where the store opens again."""
    with suppress(CacheError):
        store = Store.open(path)
        for part in parts:
            with store.lock(part, on_wait=say), suppress(CacheError):
                clean_part(store, store.part(part))


def _refuse_hopeless(part: str, damage: _Damage) -> None:
    """Refuse a part of which nothing here can make what is damaged again."""
    if damage.hopeless:
        files = ", ".join(problem.file for problem in damage.hopeless)
        name = part.removeprefix("teachers/")
        what = "make the store again" if part == SOURCE else f"`sak drop --teacher {name}` and extract it again"
        raise UserError(
            f"{files}: nothing in the store says what was there; put the file of another copy of this store in its "
            f"place, or {what}"
        )


def _remake(store: Store, part: str, damage: _Damage, request: RepairRequest) -> None:
    if part == SOURCE:
        _remake_source(store, damage, request)
    else:
        _remake_teacher(store, part, damage, request)


def _remake_source(store: Store, damage: _Damage, request: RepairRequest) -> None:
    asked = unchanged_dataset(store, request.root, "damaged pixels and labels")
    _forget(store, SOURCE, damage)
    writer = SourceWriter(store)
    todo = _todo(store, SOURCE, damage)
    with progress("source, again", len(todo), "shards") as advance:
        for shard, blocks in shards(asked, store.spec, todo):
            invalid = {sample: why for block in blocks for sample, why in block.invalid.items()}
            for view in blocks[0].task.views:
                writer.write_shard(view, shard, join(blocks, view), invalid)
                advance()


def _remake_teacher(store: Store, part: str, damage: _Damage, request: RepairRequest) -> None:
    from pipeline.extraction.extract import calibrate_and_probe, shard_features
    from pipeline.extraction.running import request_of, start_teacher
    from sak_core.errors import TeacherUnavailable

    name = part.removeprefix("teachers/")
    info = store.teacher(name)
    try:
        weights = weights_of(store, request.weights).get(name)
        asked = request_of(info.provenance, weights, request.device, request.allow_code)
        running = start_teacher(asked, store.spec.size)
    except TeacherUnavailable as error:
        raise UserError(advised(error)) from error
    if difference := first_difference(deciding(info.provenance), deciding(running.provenance)):
        what, stored, now = difference
        message = f"{name} was made with {what} = {stored!r}, here it is {now!r}"
        if damage.entries:
            raise UserError(f"{message}, and no digest is left to hold its features to")
        warn(f"{message}; what it gives is held to the recorded digests")
    _forget(store, part, damage)
    writer = TeacherWriter(store, info.provenance, info.levels)
    if damage.calibration:
        writer.write_calibration(calibrate_and_probe(store, running))
    todo = _todo(store, part, damage)
    with progress(f"{name}, again", len(todo), "shards") as advance:
        for view, shard in todo:
            writer.write_shard(view, shard, shard_features(store, running, view, shard))
            advance()


def _forget(store: Store, part: str, damage: _Damage) -> None:
    """Take back the commitments that can no longer be read, so that these shards are committed anew."""
    for view, shard in sorted(damage.entries, key=str):
        store.part(part).uncommit(view, shard)
        fault_point("repair")


def _todo(store: Store, part: str, damage: _Damage) -> list[tuple[int, int]]:
    """The shards to write again: those with damaged files, and those whose manifest file was beyond mending."""
    lost = {
        (view, shard)
        for view, entry in damage.entries
        for at, shard in store.part(part).pending(view + 1)
        if at == view and entry in (None, shard)
    }
    return sorted(damage.shards | lost)
