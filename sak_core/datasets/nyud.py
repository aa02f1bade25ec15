"""NYUD-v2 in the layout that multi-task papers share: semantic segmentation, depth, normals, boundaries.

    gt_sets/{train,val}.txt    ids, one a line
    images/<id>.png            RGB
    segmentation/<id>.png      grey 0..40; 0 is no label, v means class v − 1
    depth/<id>.npy             metres; 0 is no label
    normals/<id>.png           2 v / 255 − 1 a channel
    edge/<id>.png              0 or 255

The dataset is Silberman et al., ECCV 2012; this layout is ASTMT's and MTI-Net's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sak_core.datasets.folder import check_root
from sak_core.datasets.labels import normals_of, read_array, read_colours, read_grey, read_ids, read_mask
from sak_core.datasets.published import Stage2Benchmark
from sak_core.errors import UnreadableSample
from sak_core.images import read_image
from sak_core.interfaces.dataset import Label, Sample, check_labels
from sak_core.labels import IGNORE
from sak_core.tasks import Task, published_max_dist, published_weight
from sak_core.views.view import NYUD_SIZE

CLASSES = tuple(
    """wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk,
    shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refrigerator, television,
    paper, towel, shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag,
    other structure, other furniture, other prop""".replace("\n    ", " ").split(", ")
)
"""The 40 classes of Gupta et al., CVPR 2013, in label order."""

TASKS = (
    Task("semseg", "classes", CLASSES, published_weight("semseg")),
    Task("depth", "depth", weight=published_weight("depth")),
    Task("normals", "normals", weight=published_weight("normals")),
    Task("edge", "boundary", weight=published_weight("edge"), max_dist=published_max_dist("nyud")),
)


@dataclass(frozen=True)
class Nyud(Stage2Benchmark):
    """One split of NYUD-v2.

    Args:
        root: the folder above.
        split: "train" or "val".

    Raises:
        DatasetError: no such folder, or no list of the split.
    """

    name = "nyud"
    tasks = TASKS
    default_size = NYUD_SIZE
    root: Path
    split: str
    ids: Sequence[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_root(self.root)
        object.__setattr__(self, "ids", read_ids(self.root / "gt_sets" / f"{self.split}.txt"))

    def load(self, index: int) -> Sample:
        """Read one image and its labels.

        Raises:
            UnreadableSample: one cannot be read; names the file.
        """
        files = self.files(index)
        stored = read_grey(files["semseg"])
        if stored.max() > len(CLASSES):
            raise UnreadableSample(files["semseg"], f"holds {stored.max()}: expected 0 (no label) to {len(CLASSES)}")
        # classes count from 0; what was 0, no label, wraps to 255
        semseg = (stored.astype(np.int64) - 1).astype(np.uint8)
        depth = read_array(files["depth"]).astype(np.float32)
        labels: dict[str, Label] = {
            "semseg": semseg,
            "depth": np.where(depth == 0, np.float32(IGNORE), depth),
            "normals": normals_of(read_colours(files["normals"])),
            "edge": read_mask(files["edge"]),
        }
        return check_labels(Sample(read_image(files["image"], as_stored=True), labels), TASKS, files)

    def files(self, index: int) -> dict[str, Path]:
        """The image and four labels, by task."""
        name = self.ids[index]
        return {
            "image": self.root / "images" / f"{name}.png",
            "semseg": self.root / "segmentation" / f"{name}.png",
            "depth": self.root / "depth" / f"{name}.npy",
            "normals": self.root / "normals" / f"{name}.png",
            "edge": self.root / "edge" / f"{name}.png",
        }
