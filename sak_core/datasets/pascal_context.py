"""PASCAL-Context in the layout that multi-task papers share: semantic segmentation, human parts, saliency,
normals, boundaries.

    ImageSets/Context/{train,val}.txt   ids, one a line
    ImageSets/Parts/{train,val}.txt     JSON: id to the classes of its objects
    JPEGImages/<id>.jpg
    semseg/VOC12/<id>.png, else semseg/pascal-context/<id>.png    palette indices 0..20, 255
    pascal-context/trainval/<id>.mat    LabelMap, for boundaries and for where normals are valid
    human_parts/<id>.mat                anno
    sal_distill/<id>.png, normals_distill/<id>.png
    json/{context_classes,nyu_classes}.json

The dataset is Mottaghi et al., CVPR 2014 and Chen et al., CVPR 2014 (parts); labels of saliency and normals
and the layout are ASTMT's (Maninis et al., CVPR 2019).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sak_core.datasets.folder import check_root
from sak_core.datasets.labels import normals_of, read_colours, read_grey, read_ids, read_mat
from sak_core.datasets.pascal_parts import PART_CLASSES, PERSON, draw_parts
from sak_core.datasets.published import Stage2Benchmark
from sak_core.errors import DatasetError, UnreadableSample
from sak_core.images import read_image
from sak_core.interfaces.dataset import Label, Sample, check_labels
from sak_core.labels import IGNORE
from sak_core.tasks import Task, published_weight
from sak_core.views.view import PASCAL_SIZE

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train"),
    "tv monitor",
)
"""VOC's 20 classes and background, in label order."""

TASKS = (
    Task("semseg", "classes", CLASSES, published_weight("semseg")),
    Task("human_parts", "classes", PART_CLASSES, published_weight("human_parts")),
    Task("sal", "saliency", weight=published_weight("sal")),
    Task("normals", "normals", weight=published_weight("normals")),
    Task("edge", "boundary", weight=published_weight("edge")),
)


@dataclass(frozen=True)
class PascalContext(Stage2Benchmark):
    """One split of PASCAL-Context.

    Args:
        root: the folder above.
        split: "train" or "val".

    Raises:
        DatasetError: no such folder, or a list or table missing or damaged.
    """

    name = "pascal_context"
    tasks = TASKS
    default_size = PASCAL_SIZE
    root: Path
    split: str
    ids: Sequence[str] = field(init=False, repr=False)
    _objects: Mapping[str, Sequence[int]] = field(init=False, repr=False)
    _valid_normals: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_root(self.root)
        lists = self.root / "ImageSets"
        object.__setattr__(self, "ids", read_ids(lists / "Context" / f"{self.split}.txt"))
        object.__setattr__(self, "_objects", _read_json(lists / "Parts" / f"{self.split}.txt", dict))
        object.__setattr__(self, "_valid_normals", _classes_with_normals(self.root / "json"))

    def load(self, index: int) -> Sample:
        """Read one image and its labels.

        Raises:
            UnreadableSample: one cannot be read; names the file.
        """
        name, files = self.ids[index], self.files(index)
        image = read_image(files["image"], as_stored=True)
        label_map = read_mat(files["context"], "LabelMap")
        if label_map.shape != image.shape[:2] or label_map.dtype.kind not in "ui":
            raise UnreadableSample(
                files["context"],
                f"LabelMap is {label_map.dtype} {label_map.shape}, its image {image.shape[:2]}",
            )
        labels: dict[str, Label] = {
            "semseg": _eight_bits(files["semseg"]),
            "human_parts": self._parts(name, files["parts"], image.shape[:2]),
            "sal": (_eight_bits(files["sal"]) > 127).astype(np.uint8),
            "normals": self._normals(files["normals"], label_map),
            "edge": boundaries(label_map),
        }
        places = {**files, "human_parts": files["parts"], "edge": files["context"]}
        return check_labels(Sample(image, labels), TASKS, places)

    def _parts(self, name: str, path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
        if name not in self._objects:
            raise UnreadableSample(
                self.root / "ImageSets" / "Parts" / f"{self.split}.txt", f"has no entry for {name!r}"
            )
        objects = read_mat(path, "anno")
        return draw_parts(path, objects, size, has_person=PERSON in self._objects[name])

    def _normals(self, path: Path, label_map: NDArray[Any]) -> NDArray[np.float32]:
        normals = normals_of(read_colours(path))
        if normals.shape[:2] != label_map.shape:
            raise UnreadableSample(path, f"is {normals.shape[:2]}, its image {label_map.shape}")
        normals[~np.isin(label_map, self._valid_normals)] = IGNORE
        return normals

    def files(self, index: int) -> dict[str, Path]:
        """The image, and five files that the labels are read from."""
        name = self.ids[index]
        semseg = self.root / "semseg" / "VOC12" / f"{name}.png"
        if not semseg.is_file():
            semseg = self.root / "semseg" / "pascal-context" / f"{name}.png"
        return {
            "image": self.root / "JPEGImages" / f"{name}.jpg",
            "semseg": semseg,
            "context": self.root / "pascal-context" / "trainval" / f"{name}.mat",
            "parts": self.root / "human_parts" / f"{name}.mat",
            "sal": self.root / "sal_distill" / f"{name}.png",
            "normals": self.root / "normals_distill" / f"{name}.png",
        }


def _eight_bits(path: Path) -> NDArray[np.uint8]:
    stored = read_grey(path)
    if stored.dtype != np.uint8:
        raise UnreadableSample(path, f"is {stored.dtype}: 8 bits are expected")
    return stored.astype(np.uint8)


def boundaries(label_map: NDArray[Any]) -> NDArray[np.uint8]:
    """Boundaries of a label map (h, w): its Laplacian's support, thinned to convergence; (h, w) uint8, 0 or
    1.

    Differences of labels can cancel in the Laplacian, and do so in the published labels.
    """
    from skimage.morphology import thin

    padded = np.pad(label_map.astype(np.float64), 1, mode="reflect")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    support = around - 4 * padded[1:-1, 1:-1] != 0
    edges: NDArray[np.uint8] = thin(support).astype(np.uint8)  # type: ignore[no-untyped-call]
    return edges


def _classes_with_normals(folder: Path) -> tuple[int, ...]:
    """LabelMap values whose normals are trusted: indoor classes (those that NYUD has too) and screens."""
    context = _read_json(folder / "context_classes.json", dict)
    indoor = set(_read_json(folder / "nyu_classes.json", list)) - {"unknown"}
    return tuple(int(value) for name, value in context.items() if name in indoor or name == "tvmonitor")


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read {path}: {error}") from error
    if not isinstance(value, kind):
        raise DatasetError(f"{path} holds a {type(value).__name__}, expected a {kind.__name__}")
    return value
