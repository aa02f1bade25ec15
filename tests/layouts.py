"""Compare datasets in the field's layouts with what the reference loaders read: `python -m tests.layouts
DIR`.

DIR holds `nyud/` and `nyud.npz`, `pascal-context/` and `pascal-context.npz` (or one of the pairs). The
archives hold `<split>/<id>/<what>`. Prints the largest difference per label; exits 0 only if all are within
tolerance.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sak_core.datasets import open_dataset
from sak_core.errors import DatasetError, UnreadableSample

DATASETS = {"nyud": "nyud", "pascal-context": "pascal_context"}
TOLERANCE = 1e-6
JPEG_LEVELS = 2.0
EDGE_SHARE = 2e-4


@dataclass
class Comparison:
    """Largest difference and share of differing values, by label; what is wrong otherwise."""

    largest: dict[str, float] = field(default_factory=dict)
    differing: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, what: str, ours: np.ndarray, theirs: np.ndarray, where: str) -> None:
        theirs = theirs[..., 0] if theirs.ndim == 3 and theirs.shape[-1] == 1 else theirs
        if ours.shape != theirs.shape:
            self.problems.append(f"{where}: shape {ours.shape}, the reference has {theirs.shape}")
            return
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        self.largest[what] = max(self.largest.get(what, 0.0), float(difference.max(initial=0)))
        count, total = self.differing.get(what, (0, 0))
        self.differing[what] = (count + int((difference > TOLERANCE).sum()), total + difference.size)

    def within(self, what: str, dataset: str) -> bool:
        if what == "image":
            return self.largest[what] <= (JPEG_LEVELS if dataset == "pascal-context" else 0)
        if what == "edge" and dataset == "pascal-context":
            count, total = self.differing[what]
            return count <= EDGE_SHARE * total
        return self.largest[what] <= TOLERANCE


def struct(fields: dict[str, list]) -> np.ndarray:
    """A 1×N MATLAB struct array."""
    count = len(next(iter(fields.values())))
    made = np.empty((1, count), [(name, "O") for name in fields])
    for name, values in fields.items():
        for i, value in enumerate(values):
            made[0, i][name] = value
    return made


def compare(folder: Path, name: str) -> Comparison:
    """Every split and id of `<folder>/<name>` against `<folder>/<name>.npz`."""
    result = Comparison()
    with np.load(folder / f"{name}.npz") as reference:
        wanted: dict[str, dict[str, set[str]]] = {}
        for key in reference.files:
            split, sample, what = key.split("/")
            wanted.setdefault(split, {}).setdefault(sample, set()).add(what)
        for split, samples in sorted(wanted.items()):
            try:
                dataset = open_dataset(DATASETS[name], split, folder / name)
            except DatasetError as error:
                result.problems.append(f"{split}: {error}")
                continue
            if set(dataset.ids) != set(samples):
                result.problems.append(f"{split}: ids differ: {sorted(set(dataset.ids) ^ set(samples))}")
            for i, sample in enumerate(dataset.ids):
                where = f"{split}/{sample}"
                try:
                    loaded = dataset.load(i)
                except UnreadableSample as error:
                    result.problems.append(f"{where}: {error}")
                    continue
                ours = {"image": loaded.image, **loaded.labels}
                if set(ours) != samples.get(sample, set(ours)):
                    result.problems.append(f"{where}: has {sorted(ours)}, not {sorted(samples[sample])}")
                for what in sorted(samples.get(sample, set()) & set(ours)):
                    result.add(what, ours[what], reference[f"{where}/{what}"], f"{where}/{what}")
    return result


def main(folder: Path) -> int:
    """Compare all that `folder` holds; 0 if all is within tolerance."""
    names = [name for name in DATASETS if (folder / f"{name}.npz").is_file()]
    if not names:
        print(f"{folder} holds neither {' nor '.join(f'{name}.npz' for name in DATASETS)}")
        return 2
    right = True
    for name in names:
        result = compare(folder, name)
        for what in sorted(result.largest):
            count, total = result.differing[what]
            verdict = "ok" if result.within(what, name) else "BEYOND TOLERANCE"
            print(f"{name} {what}: largest difference {result.largest[what]:.3g}, {count}/{total} differ: {verdict}")
            right &= result.within(what, name)
        for problem in result.problems:
            print(f"{name} {problem}")
        right &= not result.problems and bool(result.largest)
    print("layouts: " + ("all within tolerance" if right else "NOT within tolerance"))
    return 0 if right else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.layouts DIR")
    sys.exit(main(Path(sys.argv[1])))
