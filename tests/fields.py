"""A few small pictures with two classes, described by a dataset.toml, and the smallest of recipes for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import sak

STEM = """[student.stem]
name = "custom"
patch_size = 8
width = 16
depth = 4
heads = 2
"""
"""The smallest of students, in a recipe."""
RECIPE = f"""
arm = "multi-task"
batch_size = 2
threads = 1
{STEM}[finetune]
data = {{ dataset = "fields", split = "train", size = "64x64", views = 1 }}
steps = 3
"""
DESCRIPTION = """
name = "fields"
size = [64, 64]
images = "images/{id}.png"
[splits]
train = "train.txt"
val = "val.txt"
[tasks.semseg]
kind = "classes"
classes = ["soil", "crop"]
files = "labels/{id}.npy"
"""


def toml(value: object) -> str:
    """A value as TOML, of what JSON holds; tables stand in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def make_fields(root: Path, crops: bool, only_in_val: bool = False) -> Path:
    """Six pictures; the labels, always files of one size, show crops or (as if forgotten) soil alone."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for n in range(6):
        image = root / f"images/{n}.png"
        pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        if not image.exists():
            Image.fromarray(pixels).save(image)
        label = np.zeros((64, 64), np.uint8)
        if crops and not only_in_val:
            label[10:50, 10:40] = 1
        elif crops and n == 5:
            label[:] = 1
        np.save(root / f"labels/{n}.npy", label)
    (root / "train.txt").write_text("0\n1\n2\n3\n4\n")
    (root / "val.txt").write_text("5\n")
    (root / "dataset.toml").write_text(DESCRIPTION)
    return root


def cache_fields(root: Path, features: Path, *extra: str, check: bool = True) -> list:
    """`sak cache` of both splits."""
    options = ["--dataset", "labelled", "--root", root, "--views", "1", "--threads", "1", "--decoders", "0"]
    return [sak("cache", *options, "--split", s, "--out", features, *extra, check=check) for s in ("train", "val")]


def write_recipe(folder: Path, *extra: str) -> Path:
    """The recipe `fields.toml`, with lines added to its stage."""
    path = folder / "fields.toml"
    path.write_text("\n".join([RECIPE, *extra]) + "\n")
    return path


def write_study(folder: Path, recipe: Path, *extra: str) -> Path:
    """A study of one arm, scored on val."""
    path = folder / "study.toml"
    test = 'test = { dataset = "fields", split = "val", size = "64x64" }'
    path.write_text("\n".join([f'recipe = "{recipe}"', 'arms = ["multi-task"]', test, *extra]) + "\n")
    return path
