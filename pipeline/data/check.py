"""`sak data check`: every sample of a data set read once; counts, sizes, ranges, and all that is wrong, by file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.advice import advised
from pipeline.console import progress, say, start_worker, worker_pool
from pipeline.data.sample import LabelSeen, SampleSeen, look
from pipeline.data.sheet import SHEET_ROWS, sheet_rows
from pipeline.pictures import save_sheet
from sak_common.names import UnknownName, unknown
from sak_core.datasets import DATASETS, open_dataset
from sak_core.datasets.folder import files_below
from sak_core.datasets.recognise import nearby, recognise
from sak_core.errors import DatasetError, NoSuchSplit
from sak_core.images import EXTENSIONS, OTHER_EXTENSIONS
from sak_core.interfaces.dataset import Dataset, Described, LeavesImages
from sak_core.labels import FARTHEST_M
from sak_core.tasks import Task

CHUNK = 8
"""Samples that a worker process reads at a time."""


VOID_ADVICE = (
    "say so in dataset.toml by ignore = [255], which then decides alone; a mask of 0 and 255 is read by "
    'kind = "saliency", or as two classes where it is saved as 0 and 1'
)


@dataclass(frozen=True)
class Problem:
    """Something wrong.

    Attributes:
        sample: its id, empty where a whole split is at fault.
        file: or what stands for it.
    """

    split: str
    sample: str
    file: str
    what: str


def check_dataset(
    name: str,
    root: Path | None = None,
    splits: Sequence[str] = (),
    limit: int | None = None,
    sheet: Path | None = None,
    workers: int | None = None,
    images: str | None = None,
) -> dict[str, Any]:
    """Read every sample of a data set, JSON-able; "problems" is empty where all is well.

    Args:
        name: a key of `DATASETS`, or a folder, whose kind is then recognised.
        splits: those to check; all that there are when empty.
        limit: the first so many samples a split.
        sheet: where the contact sheet goes.
        workers: processes; all cores when None, none for 0 or 1.
        images: which of a sample's images is the input, see `open_dataset`.

    Raises:
        DatasetError, UnknownName: no split can be opened at all.
    """
    if name not in DATASETS and (root is not None or not (Path(name).exists() or os.sep in name)):
        raise UnknownName(f"{unknown('data set', name, DATASETS)}; a folder's path may stand in its place")
    if name not in DATASETS:
        root = Path(name)
        name = recognise(root)
        say(f"{root}: read as {name}")
    opened, problems = _open_splits(name, root, splits, images)
    report: dict[str, Any] = {"dataset": name, "root": str(root) if root else None, "splits": {}}
    rows = []
    for split, dataset in opened.items():
        seen = list(_read(dataset, limit, workers))
        ids = dataset.ids
        problems += [Problem(split, ids[i], *told) for i, sample in enumerate(seen) for told in sample.problems]
        report["splits"][split] = _summary(dataset, seen)
        problems += [Problem(split, "", f"task {task}", what) for task, what in _doubts(dataset, seen)]
        good = [i for i, sample in enumerate(seen) if not sample.problems]
        rows += sheet_rows(dataset, good, max(1, SHEET_ROWS // len(opened)))
    report["problems"] = [vars(problem) for problem in problems]
    report["left_alone"] = left_alone(root) if name == "folder" and root is not None else _left(opened.values())
    report["sheet"] = None
    if sheet and rows:
        tasks = next(dataset.tasks for dataset in opened.values())
        report["sheet"] = str(save_sheet(rows, ["image", *(task.name for task in tasks)], sheet))
    return report


def _open_splits(
    name: str, root: Path | None, asked: Sequence[str], images: str | None
) -> tuple[dict[str, Dataset], list[Problem]]:
    """The splits that open, and what keeps the others from it."""
    row = DATASETS[name]
    splits = tuple(asked) or row.splits or _described_splits(root)
    opened: dict[str, Dataset] = {}
    problems: list[Problem] = []
    errors: list[DatasetError] = []
    for split in splits:
        try:
            dataset = open_dataset(name, split, root=root, images=images)
        except DatasetError as error:
            errors.append(error)
            # of an unlabelled data set, a split that is not there is none
            if asked or row.needs_all_splits or not isinstance(error, NoSuchSplit):
                problems.append(Problem(split, "", str(root), advised(error)))
            continue
        if not asked and any(_are_the_same(dataset, other) for other in opened.values()):
            continue
        opened[split] = dataset
    if not opened:
        hint = nearby(root, name) if root is not None else None
        raise DatasetError(f"{errors[0]}" + (f"; did you mean {hint}?" if hint else ""))
    return opened, problems


def left_alone(root: Path) -> dict[str, int]:
    """How many images of other formats lie in a folder of images, by ending: people expect them to be read."""
    endings = Counter(Path(path).suffix.lower() for path in files_below(root))
    return {ending: endings[ending] for ending in OTHER_EXTENSIONS if endings[ending]}


def _left(opened: Iterable[Dataset]) -> dict[str, int]:
    counts = Counter[str]()
    for dataset in opened:
        if isinstance(dataset, LeavesImages):
            counts.update(dataset.left_alone)
    return dict(counts)


def _are_the_same(one: Dataset, other: Dataset) -> bool:
    """Whether two unlabelled splits are the same images under two names. Ids alone may be row numbers."""
    if one.tasks or list(one.ids) != list(other.ids):
        return False
    return list(one.fingerprints) == list(other.fingerprints)


def _described_splits(root: Path | None) -> tuple[str, ...]:
    from sak_core.datasets.labelled import DESCRIPTION, read_description

    if root is None:
        raise DatasetError("dataset 'labelled' lies in a folder: say which (--root DIR)")
    return tuple(read_description(root / DESCRIPTION).splits) or ("train",)


def _read(dataset: Dataset, limit: int | None, workers: int | None) -> Iterator[SampleSeen]:
    """What is seen of every sample, in order, read by worker processes."""
    count = len(dataset.ids) if limit is None else min(limit, len(dataset.ids))
    chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    workers = min(len(chunks), (os.cpu_count() or 1) if workers is None else workers)
    with progress(f"{dataset.name} {dataset.split}", count, "samples") as advance:
        if workers <= 1:
            for i in range(count):
                yield look(dataset, i)
                advance(1)
            return
        pool = worker_pool(workers, _start, dataset)
        try:
            for seen in pool.map(_look_at, chunks):
                yield from seen
                advance(len(seen))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Dataset] = {}


def _start(dataset: Dataset) -> None:
    start_worker()
    _worker["dataset"] = dataset


def _look_at(samples: range) -> list[SampleSeen]:
    return [look(_worker["dataset"], i) for i in samples]


def _summary(dataset: Dataset, seen: Sequence[SampleSeen]) -> dict[str, Any]:
    sizes = Counter(sample.size for sample in seen if sample.size)
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    return {
        "samples": len(seen),
        "readable": sum(1 for sample in seen if not sample.problems),
        "sizes": {
            "different": len(sizes),
            "smallest": list(ordered[0]) if ordered else None,
            "largest": list(ordered[-1]) if ordered else None,
            "most_common": list(sizes.most_common(1)[0][0]) if sizes else None,
        },
        "labels": {
            task.name: _label_summary(task, [s.labels[task.name] for s in seen if s.labels]) for task in dataset.tasks
        },
    }


def _label_summary(task: Task, seen: Sequence[LabelSeen]) -> dict[str, Any]:
    valid = [label for label in seen if label.valid]
    pixels = sum(label.pixels for label in seen)
    result: dict[str, Any] = {
        "kind": task.kind,
        "range": [min(label.low for label in valid), max(label.high for label in valid)] if valid else None,
        "valid_share": sum(label.valid for label in seen) / pixels if pixels else 0.0,
        "seen": len(seen),
        "labelled": len(valid),
    }
    if task.kind == "classes":
        totals = np.sum([label.classes for label in seen], axis=0).tolist() if seen else [0] * len(task.classes)
        result["pixels"] = dict(zip(task.class_keys, totals, strict=True))
    return result


def _doubts(dataset: Dataset, seen: Sequence[SampleSeen]) -> Iterator[tuple[str, str]]:
    """(task, what) of labels that are read without a fault, and together cannot be what was meant."""
    labels = _summary(dataset, [sample for sample in seen if not sample.problems])["labels"]
    assumed = dataset.assumes_ignored if isinstance(dataset, Described) else frozenset()
    for task, told in labels.items():
        if not told["seen"]:
            continue
        if told["range"] is None:
            yield task, "no pixel of any sample has a label"
            continue
        low, high = told["range"]
        unseen = [name for name, count in told.get("pixels", {}).items() if not count]
        if unseen and task in assumed and told["valid_share"] < 1:
            yield task, f"class {unseen[0]!r} is never seen, while 255 is there and taken for no label; {VOID_ADVICE}"
        if told["kind"] == "depth" and low >= FARTHEST_M:
            yield (
                task,
                f"depths are {low:g} to {high:g} m, all beyond the {FARTHEST_M:g} m that scores count: see scale",
            )
        if told["kind"] in ("saliency", "boundary") and low == high:
            yield task, f"every labelled pixel is {low:g}, so there is nothing to tell it from: see threshold"


def _which_are_read(dataset: str) -> str:
    if DATASETS[dataset].several_images:
        return "masks, or of other formats (--images says which endings are photographs')"
    return f"only {', '.join(EXTENSIONS)} are read"


def check_text(report: Mapping[str, Any]) -> str:
    """`check_dataset` for people."""
    lines = [f"{report['dataset']}{' in ' + report['root'] if report['root'] else ''}"]
    for split, told in report["splits"].items():
        sizes = told["sizes"]
        lines.append(f"  {split}: {told['samples']} samples, {told['readable']} without a fault")
        if sizes["different"]:
            (a, b), (c, d), (e, f) = sizes["smallest"], sizes["largest"], sizes["most_common"]
            lines.append(
                f"    sizes: {sizes['different']} different, {a}x{b} to {c}x{d} px, most often {e}x{f}"
                if sizes["different"] > 1
                else f"    size: {a}x{b} px"
            )
        for name, label in told["labels"].items():
            span = "no valid pixel" if label["range"] is None else "{:g} to {:g}".format(*label["range"])
            unseen = [c for c, n in label.get("pixels", {}).items() if not n]
            never = f"; never seen: {', '.join(unseen[:5])}{' ...' if len(unseen) > 5 else ''}" if unseen else ""
            lines.append(f"    {name} ({label['kind']}): {span}, {label['valid_share']:.1%} of pixels labelled{never}")
            if without := label["seen"] - label["labelled"]:
                lines.append(f"      {without} of {label['seen']} samples have no label of it")
    if report["left_alone"]:
        counts = ", ".join(f"{count} {ending}" for ending, count in report["left_alone"].items())
        lines.append(f"  left alone: {counts}; {_which_are_read(report['dataset'])}")
    if report["sheet"]:
        lines.append(f"  contact sheet: {report['sheet']}")
    lines.append(f"{len(report['problems'])} problems" if report["problems"] else "no problems")
    for problem in report["problems"]:
        where = f"{problem['split']}{'/' + problem['sample'] if problem['sample'] else ''}"
        lines.append(f"  {where}: {problem['file']}: {problem['what']}")
    return "\n".join(lines)
