"""`python -m tests.layouts` on folders that are made up anew: other names, sizes, splits and annotations, with what the
layouts' description says the reference reads from them, written down a second time.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
from PIL import Image
from skimage.morphology import thin

from tests import layouts

NAMES = (
    ("head", 1), ("hair", 1), ("leye", 1), ("reye", 1), ("lear", 1), ("rear", 1), ("lebrow", 1), ("rebrow", 1),
    ("nose", 1), ("mouth", 1), ("torso", 2), ("neck", 2), ("luarm", 3), ("ruarm", 3), ("llarm", 4), ("rlarm", 4),
    ("lhand", 4), ("rhand", 4), ("luleg", 5), ("ruleg", 5), ("llleg", 6), ("rlleg", 6), ("lfoot", 6), ("rfoot", 6),
)  # fmt: skip
IDS = ("a", "img 7", "2010_000001", "x.y-z", "00000000042")


def blobs(rng: np.random.Generator, size: tuple[int, int], values: list[int]) -> np.ndarray:
    """Overlapping rectangles and ellipses of the values."""
    y, x = np.mgrid[: size[0], : size[1]]
    made = np.full(size, rng.choice(values), np.int64)
    for _ in range(12):
        cy, cx = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        ry, rx = rng.uniform(2, size[0] / 2), rng.uniform(2, size[1] / 2)
        inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        if rng.random() < 0.5:
            inside = (abs(y - cy) < ry / 2) & (abs(x - cx) < rx / 2)
        made[inside] = rng.choice(values)
    return made


def splits(rng: np.random.Generator) -> dict[str, list[str]]:
    ids = [str(name) for name in rng.permutation(IDS)]
    cut = int(rng.integers(1, len(ids)))
    return {"train": ids[:cut], "val": ids[cut:]}


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write_nyud(root: Path, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = {}
    for split, ids in splits(rng).items():
        (root / "gt_sets").mkdir(parents=True, exist_ok=True)
        ending = rng.choice(["\n", "\r\n"])
        (root / "gt_sets" / f"{split}.txt").write_bytes((ending.join(ids) + rng.choice(["", ending])).encode())
        for name in ids:
            size = tuple(int(n) for n in rng.integers(20, 90, 2))
            image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            semseg = blobs(rng, size, list(range(41))).astype(np.uint8)
            normals = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            edge = ((rng.random(size) < 0.1) * 255).astype(np.uint8)
            depth = np.where(rng.random(size) < 0.1, 0, rng.uniform(0.5, 10, size)).astype(np.float32)
            for what, pixels in (("images", image), ("segmentation", semseg), ("normals", normals), ("edge", edge)):
                save(root / what / f"{name}.png", pixels)
            (root / "depth").mkdir(exist_ok=True)
            np.save(root / "depth" / f"{name}.npy", depth)
            shifted = semseg.astype(np.float32) - 1
            shifted[shifted == -1] = 255
            reference[f"{split}/{name}/image"] = image
            reference[f"{split}/{name}/semseg"] = shifted[..., None]
            reference[f"{split}/{name}/normals"] = (2.0 * normals / 255.0 - 1.0).astype(np.float32)
            reference[f"{split}/{name}/edge"] = (edge / 255.0).astype(np.float32)[..., None]
            reference[f"{split}/{name}/depth"] = np.where(depth == 0, 255, depth).astype(np.float32)[..., None]
    return reference


def people(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, list[int], np.ndarray]:
    """An annotation, the classes in the split's list, and the parts that the reference draws from them.

    Lists and annotations may disagree, persons overlap, and some have no parts.
    """
    drawn = np.zeros(size, np.float32)
    classes, masks, parts = [], [], []
    listed: list[int] = []
    for _ in range(int(rng.integers(1, 5))):
        kind = 15 if rng.random() < 0.7 else int(rng.integers(1, 15))
        listed.append(-1 if rng.random() < 0.2 else kind)
        own = []
        if rng.random() < 0.8:
            for _ in range(int(rng.integers(1, 6))):
                name, value = NAMES[int(rng.integers(len(NAMES)))] if kind == 15 else ("wheel", 0)
                own.append((name, value, (blobs(rng, size, [0, 0, 1])).astype(np.uint8)))
        classes.append(kind)
        masks.append(np.ones(size, np.uint8))
        parts.append(own)
    for kind, own in zip(classes, parts, strict=True):
        if kind == 15 and 15 in listed:
            for _, value, mask in own:
                drawn[mask != 0] = value
    if not drawn.any():
        drawn[:] = 255
    cells = [
        layouts.struct({"part_name": [n for n, _, _ in own], "mask": [m for _, _, m in own]})
        if own
        else np.zeros((0, 0))
        for own in parts
    ]
    objects = layouts.struct({"class": ["x"] * len(classes), "class_ind": classes, "mask": masks, "parts": cells})
    return layouts.struct({"imname": ["x"], "objects": [objects]}), listed, drawn


def write_pascal(root: Path, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = {}
    for folder in ("ImageSets/Context", "ImageSets/Parts", "pascal-context/trainval", "human_parts", "json"):
        (root / folder).mkdir(parents=True)
    names = ["wall", "sky", "tvmonitor", "unknown", "floor", "dog"]
    values = [int(v) for v in rng.choice(np.arange(1, 460), len(names), replace=False)]
    (root / "json" / "context_classes.json").write_text(json.dumps(dict(zip(names, values, strict=True))))
    (root / "json" / "nyu_classes.json").write_text(json.dumps(["floor", "wall", "unknown", "lamp"]))
    trusted = [value for name, value in zip(names, values, strict=True) if name in ("wall", "floor", "tvmonitor")]
    for split, ids in splits(rng).items():
        lists = {}
        (root / "ImageSets/Context" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for name in ids:
            size = tuple(int(n) for n in rng.integers(20, 90, 2))
            smooth = scipy.ndimage.gaussian_filter(rng.uniform(0, 255, (*size, 3)), (3, 3, 0))
            save(root / "JPEGImages" / f"{name}.jpg", smooth.astype(np.uint8), quality=95)
            semseg = blobs(rng, size, [*range(21), 255]).astype(np.uint8)
            for folder, seen in (("VOC12", semseg), ("pascal-context", blobs(rng, size, [3]).astype(np.uint8))):
                # in the second folder another picture, which counts where the first has none
                if folder == "VOC12" and rng.random() < 0.4:
                    continue
                picture = Image.fromarray(seen, "P")
                picture.putpalette([int(v) for v in rng.integers(0, 256, 768)])
                (root / "semseg" / folder).mkdir(parents=True, exist_ok=True)
                picture.save(root / "semseg" / folder / f"{name}.png")
            voc = root / "semseg" / "VOC12" / f"{name}.png"
            semseg = semseg if voc.exists() else np.full(size, 3, np.uint8)
            label_map = blobs(rng, size, values).astype(np.uint16)
            scipy.io.savemat(root / "pascal-context/trainval" / f"{name}.mat", {"LabelMap": label_map})
            anno, lists[name], parts = people(rng, size)
            scipy.io.savemat(root / "human_parts" / f"{name}.mat", {"anno": anno})
            sal = rng.integers(0, 256, size, dtype=np.uint8)
            normals = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            save(root / "sal_distill" / f"{name}.png", sal)
            save(root / "normals_distill" / f"{name}.png", normals)
            kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
            laplacian = scipy.ndimage.convolve(label_map.astype(np.float64), kernel, mode="mirror")
            decoded = (2.0 * normals / 255.0 - 1.0).astype(np.float32)
            decoded[~np.isin(label_map, trusted)] = 255
            key = f"{split}/{name}"
            reference[f"{key}/image"] = np.array(Image.open(root / "JPEGImages" / f"{name}.jpg").convert("RGB"))
            reference[f"{key}/semseg"] = semseg.astype(np.float32)[..., None]
            reference[f"{key}/human_parts"] = parts[..., None]
            reference[f"{key}/sal"] = (sal / 255.0 > 0.5).astype(np.float32)[..., None]
            reference[f"{key}/normals"] = decoded
            reference[f"{key}/edge"] = thin(laplacian != 0).astype(np.float32)[..., None]
        (root / "ImageSets/Parts" / f"{split}.txt").write_text(json.dumps(lists))
    return reference


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "write"), [("nyud", write_nyud), ("pascal-context", write_pascal)])
def test_folders_never_seen_are_within_tolerance(name, write, seed, tmp_path, capsys):
    np.savez(tmp_path / f"{name}.npz", **write(tmp_path / name, seed))
    assert layouts.main(tmp_path) == 0, capsys.readouterr().out
