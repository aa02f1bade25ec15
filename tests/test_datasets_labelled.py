"""A dataset of one's own, described by a TOML file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cache.format.spec import encode_ids
from pipeline.extraction.prepare import prepare
from pipeline.extraction.samples import DatasetRequest
from pipeline.recipes.stores import row_of, store_tasks
from sak_common.names import UnknownName
from sak_core.datasets import open_dataset
from sak_core.errors import DatasetError, UnreadableSample
from sak_core.tasks import TAKEN_NAMES
from sak_core.views.view import EVALUATION, STAGE2, apply_view, draw_view

DESCRIPTION = """
name = "kitchens"
size = [64, 80]
images = "pictures/{id}.png"

[splits]
train = "train.txt"
held_out = "held_out.txt"

[tasks.semseg]
kind = "classes"
classes = ["wall", "floor", "pan"]
files = "semseg/{id}.png"
ignore = 0
offset = -1

[tasks.depth]
kind = "depth"
files = "depth/{id}.png"
scale = 0.001
ignore = [0]

[tasks.normals]
kind = "normals"
files = "normals/{id}.npy"
ignore = [0]
weight = 3.0

[tasks.saliency]
kind = "saliency"
files = "saliency/{id}.png"
threshold = 128

[views]
scale = [0.75, 1.5]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("b/2", "a", "c"):
        for folder, array in {
            "pictures": rng.integers(0, 256, (20, 24, 3), dtype=np.uint8),
            "semseg": np.tile(np.arange(24, dtype=np.uint8) % 4, (20, 1)),
            "depth": np.tile(np.arange(24, dtype=np.uint16) * 500, (20, 1)),
            "saliency": np.tile(np.arange(24, dtype=np.uint8) * 10, (20, 1)),
        }.items():
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        normals = np.zeros((20, 24, 3), np.float64)
        normals[:, 1:, 2] = -1
        (tmp_path / "normals" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "normals" / f"{name}.npy", normals)
    (tmp_path / "dataset.toml").write_text(DESCRIPTION)
    (tmp_path / "train.txt").write_text("b/2\na\n")
    (tmp_path / "held_out.txt").write_text("c\n")
    return tmp_path


def test_labels_are_read_as_described(root):
    data = open_dataset("labelled", "train", root)
    assert (data.name, data.default_size, list(data.ids)) == ("kitchens", (64, 80), ["b/2", "a"])
    assert [(t.name, t.kind, t.weight) for t in data.tasks] == [
        ("semseg", "classes", 1.0),
        ("depth", "depth", 1.0),
        ("normals", "normals", 3.0),
        ("saliency", "saliency", 5.0),
    ]
    assert data.tasks[0].classes == ("wall", "floor", "pan")
    assert data.policy.scale == (0.75, 1.5) and data.policy.hue == STAGE2.hue
    sample = data.load(0)
    x = np.arange(24)
    assert (sample.labels["semseg"] == np.where(x % 4 == 0, 255, x % 4 - 1)).all()
    assert np.allclose(sample.labels["depth"], np.where(x == 0, 255, x * 0.5))
    assert (sample.labels["normals"][:, 0] == 255).all() and (sample.labels["normals"][:, 1:, 2] == -1).all()
    assert (sample.labels["saliency"] == (x >= 13)).all()
    assert all(sample.labels[t.name].dtype == t.spec.label_dtype for t in data.tasks)
    kinds = {t.name: t.kind for t in data.tasks}
    view = draw_view(data.policy, 0, 0, 0, (20, 24), (64, 80), sample.labels["semseg"])
    apply_view(data.policy, view, sample.image, sample.labels, kinds, (64, 80))
    held_out = open_dataset("labelled", "held_out", root)
    assert list(held_out.ids) == ["c"] and held_out.policy == EVALUATION
    files = list(root.rglob("c.*"))
    assert held_out.fingerprints == [sum(p.stat().st_size for p in files)] and len(files) == 5


def test_endings_in_capitals_are_no_other_format(root):
    """As cameras and Windows write them; the description with a byte order mark."""
    colours = np.full((20, 24, 3), 255, np.uint8)
    for name in ("a", "b/2"):
        Image.fromarray(colours).save(root / "normals" / f"{name}.PNG")
    text = DESCRIPTION.replace("normals/{id}.npy", "normals/{id}.PNG")
    (root / "dataset.toml").write_text(text, encoding="utf-8-sig")
    assert (open_dataset("labelled", "train", root).load(0).labels["normals"] == 1).all()


def test_without_splits_all_images_are_train(root):
    text = DESCRIPTION.replace('train = "train.txt"\nheld_out = "held_out.txt"', "").replace("[splits]", "")
    (root / "dataset.toml").write_text(text)
    assert list(open_dataset("labelled", "train", root).ids) == ["a", "b/2", "c"]
    with pytest.raises(DatasetError, match=r"no \[splits\]"):
        open_dataset("labelled", "val", root)
    (root / "dataset.toml").write_text(text.replace("pictures/{id}.png", "pictures/x{id}.png"))
    with pytest.raises(DatasetError, match="no file below"):
        open_dataset("labelled", "train", root)


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("images = ", "image = ", UnknownName, "did you mean images"),
        ('images = "pictures/{id}.png"', "", DatasetError, "images = .* is missing"),
        ("{id}.npy", "x.npy", DatasetError, r"tasks\.normals\.files.*one \{id\}"),
        ('kind = "depth"', 'kind = "dept"', UnknownName, r"\[tasks\.depth\].*did you mean depth"),
        ('kind = "depth"', "", DatasetError, r"\[tasks\.depth\]: kind is missing"),
        ("offset", "ofset", UnknownName, r"\[tasks\.semseg\].*did you mean offset"),
        ("offset = -1", 'offset = "one"', DatasetError, r"\[tasks\.semseg\].*'one'"),
        ("scale = 0.001", "scale = -0.001", DatasetError, r"\[tasks\.depth\]: scale must be above 0.*-0\.001"),
        ("scale = 0.001", 'scale = "mm"', DatasetError, r"\[tasks\.depth\].*'mm'"),
        ('classes = ["wall", "floor", "pan"]', "", DatasetError, "0 class names"),
        ("scale = [0.75, 1.5]", "scale = [1.5, 0.75]", DatasetError, r"\[views\].*scale"),
        ("scale = [0.75, 1.5]", "scales = [1.5, 0.75]", DatasetError, r"\[views\].*did you mean scale"),
        ("size = [64, 80]", "size = 64", DatasetError, r"\[H, W\]"),
        ('"kitchens"', '"a/b"', DatasetError, "name 'a/b'"),
        ("[splits]", "[splits", DatasetError, "cannot read"),
        ('held_out = "held', 'held_out = "help', DatasetError, "held_out|help_out"),
    ],
)
def test_wrong_descriptions_are_named(root, old, new, error, words):
    assert old in DESCRIPTION
    (root / "dataset.toml").write_text(DESCRIPTION.replace(old, new))
    with pytest.raises(error, match=words):
        open_dataset("labelled", "held_out", root)


def test_unknown_splits_and_missing_descriptions(root):
    with pytest.raises(UnknownName, match="did you mean held_out"):
        open_dataset("labelled", "heldout", root)
    (root / "dataset.toml").unlink()
    with pytest.raises(DatasetError, match=r"no .*dataset\.toml"):
        open_dataset("labelled", "train", root)


def test_wrong_labels_are_named(root):
    data = open_dataset("labelled", "held_out", root)

    def refused(words: str) -> None:
        with pytest.raises(UnreadableSample, match=words):
            data.load(0)

    semseg = root / "semseg" / "c.png"
    kept = semseg.read_bytes()
    Image.fromarray(np.full((20, 24), 9, np.uint8)).save(semseg)
    refused(r"semseg/c\.png: holds 9, beyond the 3 classes \(offset -1\)")
    Image.fromarray(np.ones((20, 23), np.uint8)).save(semseg)
    refused(r"semseg/c\.png: .*\(20, 23\).*20x24")
    semseg.write_bytes(kept)
    np.save(root / "normals" / "c.npy", np.zeros((20, 24)))
    refused(r"normals/c\.npy: has shape \(20, 24\)")
    (root / "normals" / "c.npy").unlink()
    refused(r"normals/c\.npy: cannot be read: No such file")


def test_a_described_weight_is_the_one_trained_with(root: Path, tmp_path: Path) -> None:
    store = prepare(DatasetRequest("labelled", "train", (16, 16), root), tmp_path / "features", 1, decoders=0)
    assert {task.name: task.weight for task in store_tasks(store)} == {
        "semseg": 1.0,
        "depth": 1.0,
        "normals": 3.0,  # as the description says
        "saliency": 5.0,
    }
    assert store_tasks(store, ["normals"], {"normals": 7.0})[0].weight == 7.0


def test_the_kind_decides_a_tasks_weight_and_not_its_name(root: Path, tmp_path: Path) -> None:
    """A boundary task trains with the published weight whatever it is called; nothing else does for being called so."""
    text = (root / "dataset.toml").read_text()
    text = text.replace("[tasks.saliency]", "[tasks.outline]").replace('"saliency"', '"boundary"')
    (root / "dataset.toml").write_text(
        text.replace("[tasks.semseg]", "[tasks.human_parts]").replace("weight = 3.0", "")
    )
    opened = open_dataset("labelled", "train", root)
    store = prepare(DatasetRequest("labelled", "train", (16, 16), root), tmp_path / "features", 1, decoders=0)
    expected = {"human_parts": 1.0, "depth": 1.0, "normals": 10.0, "outline": 50.0}
    for tasks in (opened.tasks, store_tasks(store)):
        assert {task.name: task.weight for task in tasks} == expected


@pytest.mark.parametrize("name", ["nyud", "pascal_context"])
def test_a_description_that_calls_itself_like_a_benchmark_is_none(name: str, root: Path, tmp_path: Path) -> None:
    """What is published for NYUD-v2 (weights of tasks, how far boundaries may be off) is of NYUD-v2."""
    text = (root / "dataset.toml").read_text().replace("[tasks.saliency]", "[tasks.edge]")
    text = re.sub('name *= *"[^"]*"', f'name = "{name}"', text, count=1).replace("weight = 3.0", "")
    (root / "dataset.toml").write_text(text)
    store = prepare(DatasetRequest("labelled", "train", (16, 16), root), tmp_path / "features", 1, decoders=0)
    assert store.spec.dataset == name and row_of(store.spec) == "labelled"
    assert {task.name: task.weight for task in store_tasks(store)}["edge"] == 5.0, "of its kind, saliency"


@pytest.mark.parametrize("name", ["sem.seg", "items", "train", "image", "x/y"])
def test_a_task_that_no_network_could_have_a_part_for_is_refused(root: Path, name: str) -> None:
    text = (root / "dataset.toml").read_text()
    (root / "dataset.toml").write_text(text.replace("[tasks.depth]", f'[tasks."{name}"]'))
    with pytest.raises(DatasetError, match=re.escape(repr(name))):
        open_dataset("labelled", "train", root)


def test_names_that_networks_take_for_themselves_are_known() -> None:
    for name in sorted(TAKEN_NAMES):
        with pytest.raises(KeyError, match="already exists"):
            torch.nn.ModuleDict({name: torch.nn.Identity()})


def test_names_that_are_no_utf8_can_be_stored(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    name = os.fsdecode(b"caf\xe9")  # as Latin-1 has it
    for folder, array in (("images", image), ("semseg", image[..., 0] % 2)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "dataset.toml").write_text(
        'images = "images/{id}.png"\n[tasks.semseg]\nkind = "classes"\nclasses = ["a", "b"]\nfiles = "semseg/{id}.png"'
    )
    data = open_dataset("labelled", "train", tmp_path)
    assert encode_ids(data.ids, 16).shape == (1, 16) and list(data.ids) == ["caf\\xe9"]
    assert np.array_equal(data.load(0).image, image)


def test_what_a_store_keeps_of_a_description_is_as_before(root: Path) -> None:
    """Stores of before these settings are found again; JSON has no NaN."""
    coding = open_dataset("labelled", "train", root).info["coding"]
    assert coding["depth"] == {
        "kind": "depth",
        "files": "depth/{id}.png",
        "classes": [],
        "ignore": [0],
        "offset": 0,
        "scale": 0.001,
        "threshold": 1.0,
        "weight": None,
    }
    assert coding["saliency"]["ignore"] == []
    text = (
        (root / "dataset.toml")
        .read_text()
        .replace("ignore = [0]\nweight", "ignore = [nan, 0]\noptional = true\nweight")
    )
    (root / "dataset.toml").write_text(text)
    told = open_dataset("labelled", "train", root).info["coding"]["normals"]
    assert told["ignore"] == ["nan", 0] and told["optional"] is True
