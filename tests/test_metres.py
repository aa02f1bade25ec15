"""Depth and normals in the units of the image itself, at whatever size and aspect ratio a network saw it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from cache.store import Store
from pipeline.extraction.prepare import prepare
from pipeline.extraction.samples import DatasetRequest
from pipeline.recipes.config import Data, load_recipe
from pipeline.recipes.stores import store_tasks
from pipeline.recipes.tables import Boundary
from pipeline.runs import Places
from pipeline.training.evaluate import constant_scores, evaluation_loader
from pipeline.training.scales import seen_labels
from pipeline.training.scoring import score
from sak_core.student.network import StudentOutput
from sak_core.student.pretrained import PretrainedConfig, Student, save_pretrained
from sak_core.tasks import Task
from sak_core.tasks.own_units import own_label, own_output, seen_normals
from sak_core.views.view import EVALUATION, apply_view, draw_view, sources, view_scales
from tests import students
from tests.conftest import answer, logged, sak
from tests.fields import STEM

DEPTH, NORMALS = Task("depth", "depth"), Task("normals", "normals")
RECIPE = f"""
arm = "multi-task"
batch_size = 2
threads = 1
validation = {{ dataset = "room", split = "val", every = 2, best_by = "depth" }}
{STEM}[finetune]
data = {{ dataset = "room", split = "train", views = 1 }}
steps = 4
"""


def folder(root: Path, metres: Mapping[str, float], views: str = "", size: tuple[int, int] = (150, 200)) -> Path:
    """Two training images and one of validation, `size` px, everything as far away as `metres` says by split; views of
    32x32 px."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            name = f"{split}{number}"
            for kind in ("images", "depth", "normals"):
                (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(root / "images" / f"{name}.png")
            np.save(root / "depth" / f"{name}.npy", np.full(size, metres[split], np.float32))
            np.save(root / "normals" / f"{name}.npy", np.full((*size, 3), [0.6, 0, 0.8], np.float32))
        (root / f"{split}.txt").write_text("\n".join(f"{split}{number}" for number in range(count)))
    (root / "dataset.toml").write_text(
        'name = "room"\nsize = [32, 32]\nimages = "images/{id}.png"\n'
        '[splits]\ntrain = "train.txt"\nval = "val.txt"\n'
        '[tasks.depth]\nkind = "depth"\nfiles = "depth/{id}.npy"\nignore = [0]\n'
        f'[tasks.normals]\nkind = "normals"\nfiles = "normals/{{id}}.npy"\n[views]\n{views}\n'
    )
    return root


def stored(root: Path, features: Path) -> dict[str, Store]:
    requests = {split: DatasetRequest("labelled", split, (32, 32), root) for split in ("train", "val")}
    return {split: prepare(request, features, 2, decoders=0) for split, request in requests.items()}


@pytest.mark.parametrize("metres", [3.0, 12.0])
def test_scores_of_images_larger_than_the_view_are_in_metres(tmp_path: Path, metres: float) -> None:
    """Seen at 0.16 of its size, what is 12 m away has the label 75 m, and what is 13 m away lies beyond 80 m."""
    store = stored(folder(tmp_path / "r", {"train": 9, "val": metres}), tmp_path / "f")["val"]
    tasks = store_tasks(store)
    scale = 32 / 200
    for found in (2.0, metres):
        outputs = {
            "depth": torch.full((1, 1, 32, 32), found / scale),
            "normals": torch.tensor([0.6, 0, 0.8])[None, :, None, None].expand(1, 3, 32, 32),
        }
        (batch,) = (batch.to("cpu") for batch in evaluation_loader(store, (), ["depth", "normals"], 1))
        scores, details = score(tasks, Boundary(), store, [(batch, outputs)])
        assert scores["depth"]["RMSE"] == pytest.approx(abs(metres - found), abs=1e-5)
        assert details["depth"]["per_image"] == {"val0": pytest.approx(abs(metres - found), abs=1e-4)}
        assert scores["normals"]["mErr"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("metres", [13.0, 79.9])
def test_the_line_scores_and_validates_in_metres(tmp_path: Path, metres: float) -> None:
    root = folder(tmp_path / "r", {"train": metres, "val": metres})
    (tmp_path / "my.toml").write_text(RECIPE)
    places = ["--out", tmp_path / "features", "--runs", tmp_path]
    for split in ("train", "val"):
        sak("cache", "--dataset", "labelled", "--root", root, "--split", split, "--out", places[1])
    sak("finetune", tmp_path / "my.toml", "--run", tmp_path / "run", *places)
    result = answer("evaluate", tmp_path / "run", "--split", "val", *places)
    # four steps leave the network near 0 m
    assert 0.8 * metres < result["depth"]["RMSE"] < 1.2 * metres
    validated = [line["validation/depth/RMSE"] for line in logged(tmp_path / "run") if "validation/depth/RMSE" in line]
    assert len(validated) == 2
    assert min(validated) == pytest.approx(result["depth"]["RMSE"], rel=1e-6)


def test_the_best_constant_is_in_metres_of_the_images(tmp_path: Path) -> None:
    """Training views of random scale and shrunken evaluation views, of the same room 4 m away."""
    stored(folder(tmp_path / "r", {"train": 4, "val": 4}), tmp_path / "f")
    (tmp_path / "my.toml").write_text(RECIPE)
    recipe = load_recipe(str(tmp_path / "my.toml"), "finetune")
    scores = constant_scores(recipe, Data(dataset="room", split="val"), Places(tmp_path / "f"))
    assert scores["depth"]["RMSE"] == pytest.approx(0, abs=1e-5) and scores["depth"]["delta1"] == 100


@given(
    metres=st.sampled_from([0.5, 31.875, 79.999, 80.0, 80.01, 254.0]),
    image_size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
)
@example(metres=80.0, image_size=(23, 53))
def test_labels_come_back_as_they_were(metres: float, image_size: tuple[int, int]) -> None:
    """The limit of 80 m, too: what a sensor gives for all that is far must not be scored at some sizes only."""
    view = draw_view(EVALUATION, 0, 0, 0, image_size, (16, 16))
    depth, image = np.full(image_size, metres, np.float32), np.zeros((*image_size, 3), np.uint8)
    _, labels = apply_view(EVALUATION, view, image, {"depth": depth}, {"depth": "depth"}, (16, 16))
    seen = torch.from_numpy(labels["depth"])[None]
    rows, columns = (torch.from_numpy(there >= 0) for there in sources(view, image_size, (16, 16)))
    assert bool((seen[0] != 255).equal(rows[:, None] & columns[None, :]))
    own = own_label(DEPTH, seen, torch.from_numpy(view_scales(np.array([view.box], np.float32), (16, 16))))
    there = own[seen != 255]
    np.testing.assert_allclose(there, metres, rtol=1e-6)
    assert bool(((there < 80) == (metres < 80)).all())
    assert own[seen == 255].eq(255).all()


def test_what_was_seen_as_it_is_keeps_every_bit() -> None:
    output, label = torch.randn(2, 1, 4, 4).half(), torch.rand(2, 4, 4)
    ones = torch.ones(2, 2, dtype=torch.float64)
    assert own_output(DEPTH, output, ones) is output and own_label(DEPTH, label, ones) is label
    normals = torch.randn(2, 3, 4, 4)
    assert own_output(NORMALS, normals, 0.25 * ones) is normals
    for kind in ("saliency", "boundary"):
        assert own_output(Task("t", kind), output, 3 * ones) is output


def test_normals_of_what_is_seen_twice_as_wide() -> None:
    """A wall that recedes 1 m each metre to the side recedes 1 m in two metres then; √2 of that is the scale."""
    wall, floor = torch.tensor([1.0, 0, 1]) / 2**0.5, torch.tensor([0, 1.0, 0])
    own = torch.stack([wall, floor, torch.full((3,), 255.0)])[None, None]
    scales = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    seen = seen_normals(own, scales)
    expected = torch.tensor([0.5**0.5, 0, 1]) / 1.5**0.5
    torch.testing.assert_close(seen[0, 0], torch.stack([expected, floor, torch.full((3,), 255.0)]))
    back = own_output(NORMALS, 7 * seen[:, :, :2].permute(0, 3, 1, 2), scales)
    torch.testing.assert_close(F.normalize(back, dim=1)[0, :, 0].T, torch.stack([wall, floor]))


def test_views_of_other_aspect_ratios_teach_the_normals_that_are_seen(tmp_path: Path) -> None:
    """And what a network then says of such views is scored against the image's own normals."""
    views = 'kind = "random-resized-crop"\nscale = [0.2, 1.0]\nratio = [0.3, 0.4]\nflip = 0.0'
    store = stored(folder(tmp_path / "r", {"train": 3, "val": 3}, views), tmp_path / "f")["train"]
    (batch,) = (batch.to("cpu") for batch in evaluation_loader(store, (), ["depth", "normals"], 2))
    tasks = store_tasks(store)
    seen = seen_labels(tasks, store, batch)
    assert seen["depth"] is batch.labels["depth"]
    height, width = store.views["box"][:, 0][:, 2:].T
    # the box is taller than wide, so the square canvas shows it wider than it is
    slope = 0.6 / 0.8 / np.sqrt(height / width)
    np.testing.assert_allclose(seen["normals"][:, 5, 5, 0] / seen["normals"][:, 5, 5, 2], slope, rtol=1e-5)
    np.testing.assert_allclose(seen["normals"].norm(dim=-1), 1, rtol=1e-5)
    outputs = {"depth": batch.labels["depth"][:, None], "normals": seen["normals"].permute(0, 3, 1, 2)}
    scores, _ = score(tasks, Boundary(), store, [(batch, outputs)])
    assert scores["depth"]["RMSE"] == pytest.approx(0, abs=1e-5)
    assert scores["normals"]["mErr"] == pytest.approx(0, abs=0.01)


class Stripes(nn.Module):
    """Takes for near what is seen large: 100 m over the mean width of stripes, px; a wall seen slanted."""

    fixed_size = None

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(1, 1)
        self.stem.patch = self.stem.multiple = 1

    def forward(self, images: Tensor) -> StudentOutput:
        """images (B, 3, H, W)."""
        edges = (images[:, 0].diff(dim=2).abs() > 0.5).sum((1, 2)) / images.shape[2]
        depth = 100 * edges / images.shape[3]
        normals = torch.tensor([0.6, 0.0, 0.8])[None, :, None, None].expand(len(images), 3, *images.shape[2:])
        outputs = {"depth": depth[:, None, None, None].expand(-1, 1, *images.shape[2:]), "normals": normals}
        return StudentOutput([], {}, outputs, {})


def test_a_smaller_image_is_as_far_away() -> None:
    config = PretrainedConfig(students.config(teachers={}, tasks=(DEPTH, NORMALS)))
    student = Student(Stripes(), config)
    row = np.where(np.arange(96) // 8 % 2, 255, 0).astype(np.uint8)
    image = np.broadcast_to(row[None, :, None], (64, 96, 3)).copy()
    whole, half = student(image), student(image, size=48)
    assert whole["depth"] == pytest.approx(100 * 11 / 96)
    np.testing.assert_allclose(half["depth"], whole["depth"], rtol=1e-5)
    np.testing.assert_allclose(half["normals"], whole["normals"], atol=1e-6)
    # 3 px of 96 high are 1 of 24: a third more than a quarter
    strip = student(np.ascontiguousarray(image[:3]), size=24)["normals"][0, 0]
    assert strip[0] / strip[2] == pytest.approx(0.75 * np.sqrt((24 / 96) / (1 / 3)))


def test_predictions_at_another_size_are_in_metres(tmp_path: Path) -> None:
    network = students.student(teachers={}, tasks=(DEPTH,))
    torch.nn.init.constant_(network.heads["depth"].last.bias, 500)  # above 0 m everywhere
    save_pretrained(network, PretrainedConfig(network.config), tmp_path / "model")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).resize(
        (96, 96), Image.Resampling.BICUBIC
    )
    small = image.resize((48, 48), Image.Resampling.BILINEAR)
    for name, picture in (("large", image), ("small", small)):
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "x.png")
    common = ["--model", tmp_path / "model", "--raw"]
    sak("predict", tmp_path / "large", *common, "--size", "48", "--out", tmp_path / "a")
    sak("predict", tmp_path / "small", *common, "--out", tmp_path / "b")
    ours, seen = (np.load(tmp_path / out / "raw" / "x.npz")["depth"] for out in ("a", "b"))
    assert ours.shape == (96, 96) and seen.shape == (48, 48) and seen.min() > 0
    expected = F.interpolate(torch.from_numpy(seen)[None, None], size=(96, 96), mode="bilinear")[0, 0] * 0.5
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
