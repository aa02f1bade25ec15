"""A set of which some images lack some labels, from its folder to its scores, as a person runs it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cache.store import Store
from pipeline.training.labels_seen import labels_lack
from pipeline.training.validation import mean_loss
from sak_core.tasks import Task
from tests.conftest import logged, sak
from tests.fields import STEM

DESCRIPTION = """name = "part"
size = [64, 64]
images = "images/{id}.png"
[tasks.semseg]
kind = "classes"
classes = ["a", "b"]
files = "semseg/{id}.png"
[tasks.depth]
kind = "depth"
files = "depth/{id}.png"
scale = 0.001
ignore = [0]
"""
RECIPE = f"""arm = "multi-task"
threads = 1
batch_size = 1
[optimizer]
lr = 1e-12
{STEM}[finetune]
data = {{ dataset = "part", split = "train", views = 1 }}
"""


def make(root: Path, images: int, depths: int, optional: bool) -> Path:
    """A set of `images` images of which the first `depths` have depth."""
    rng = np.random.default_rng(0)
    for folder in ("images", "semseg", "depth"):
        (root / folder).mkdir(parents=True)
    for n in range(images):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(root / "images" / f"{n}.png")
        semseg = rng.integers(0, 2, (64, 64), np.uint8)
        Image.fromarray(semseg).save(root / "semseg" / f"{n}.png")
        if n < depths:
            Image.fromarray(np.where(semseg, 2500, 2000).astype(np.uint16)).save(root / "depth" / f"{n}.png")
    (root / "dataset.toml").write_text(DESCRIPTION + ("optional = true\n" if optional else ""))
    return root


def cache(root: Path, out: Path) -> tuple[Store, str]:
    options = ["--views", "1", "--threads", "1", "--decoders", "0", "--out", out]
    done = sak("cache", "--dataset", "labelled", "--root", root, *options)
    return Store.open(next(out.glob("*.zarr"))), done.stderr


def problems(root: Path, folder: Path) -> str:
    """What `sak data check` says of a set that has problems."""
    done = sak("data", "check", root, "--sheet", folder / "sheet.png", check=False)
    assert done.returncode == 1, done.stderr
    return done.stdout


def finetune(folder: Path, steps: int) -> str:
    """Fine-tune on the cache in `folder`, at a learning rate of next to 0; what was said."""
    (folder / "recipe.toml").write_text(f"{RECIPE}steps = {steps}\nlog_every = {steps}\n")
    return sak("finetune", folder / "recipe.toml", "--out", folder, "--run", folder / "run").stderr


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A set of six images with depth for three, the folder of its cache, and what `sak cache` said."""
    folder = tmp_path_factory.mktemp("partly")
    root = make(folder / "data", 6, 3, optional=True)
    return root, folder / "features", cache(root, folder / "features")[1]


def test_an_absent_optional_label_is_none_of_that_task_alone(partly: tuple[Path, Path, str]) -> None:
    root, out, said = partly
    store = Store.open(next(out.glob("*.zarr")))
    assert store.valid(1).all()
    for sample in range(6):
        depth, semseg = store.labels["depth"][sample, 0], store.labels["semseg"][sample, 0]
        assert (depth == 255).all() == (sample >= 3) and (semseg != 255).any()
    assert f"depth: 3 samples have no file, such as {root / 'depth' / '3.png'}; they are kept" in said
    done = sak("data", "check", root, "--json", "--sheet", out.parent / "sheet.png")
    told = json.loads(done.stdout)
    depth = told["splits"]["train"]["labels"]["depth"]
    assert told["problems"] == [] and (depth["labelled"], depth["seen"], depth["valid_share"]) == (3, 6, 0.5)


def test_absent_labels_count_in_no_loss_and_no_score(partly: tuple[Path, Path, str], tmp_path: Path) -> None:
    """Next to nothing is learned: the mean loss of depth is that of the three images alone."""
    _, out, _ = partly
    said = finetune(out, 6)
    assert "warning: depth" not in said
    cache(make(tmp_path / "three", 3, 3, optional=False), tmp_path / "features")
    finetune(tmp_path / "features", 3)
    assert logged(out / "run")[-1]["depth"] == pytest.approx(logged(tmp_path / "features/run")[-1]["depth"], rel=1e-5)

    done = sak("evaluate", out / "run", "--split", "train", "--out", out, "--json")
    scores = json.loads(done.stdout)["depth"]
    own = scores["details"]["per_image"]
    assert [name for name, value in own.items() if value is None] == ["3", "4", "5"]
    squares = [value**2 for value in own.values() if value is not None]
    assert scores["RMSE"] == pytest.approx(math.sqrt(sum(squares) / 3), rel=1e-3)


def test_a_missing_label_names_task_and_file_and_what_to_say(tmp_path: Path) -> None:
    root = make(tmp_path / "data", 4, 3, optional=False)
    store, said = cache(root, tmp_path / "features")
    advice = "optional = true in [tasks.depth] keeps samples without it"
    assert f"3: depth, depth/3.png: cannot be read: No such file or directory; {advice}" in said
    assert str(root) not in store.invalid(1)[3], "a store does not depend on where a data set lies"
    assert f"depth/3.png: is missing: expected the sample's depth ({advice})" in problems(root, tmp_path)


def test_an_optional_label_that_is_damaged_is_a_fault(tmp_path: Path) -> None:
    root = make(tmp_path / "data", 3, 1, optional=True)
    (root / "depth" / "1.png").write_bytes(b"\x89PNG")
    (root / "depth" / "2.png").symlink_to(root / "gone.png")
    store, said = cache(root, tmp_path / "features")
    assert store.valid(1).tolist() == [True, False, False]
    assert "1: depth, depth/1.png: is not an image" in said and "2: depth, depth/2.png: cannot be read" in said


def test_a_pattern_that_no_file_fits_is_a_problem(tmp_path: Path) -> None:
    root = make(tmp_path / "data", 3, 0, optional=True)
    assert "train: task depth: no pixel of any sample has a label" in problems(root, tmp_path)
    store, _ = cache(root, tmp_path / "features")
    said = finetune(tmp_path / "features", 2)
    assert (
        f"depth: no pixel of the 3 samples looked at has a label, so there is nothing to learn ({store.name})" in said
    )
    assert "depth" not in logged(tmp_path / "features/run")[-1], "a loss of 0 would look well"


def test_depths_beyond_the_limit_are_said_before_training(tmp_path: Path) -> None:
    root = make(tmp_path / "data", 2, 2, optional=False)
    text = (root / "dataset.toml").read_text()
    (root / "dataset.toml").write_text(text.replace("scale = 0.001", "scale = 0.05"))  # 100 and 125 m
    assert "task depth: depths are 100 to 125 m, all beyond the 80 m" in problems(root, tmp_path)
    cache(root, tmp_path / "features")
    assert "warning: depth: all depths of the 2 samples looked at are 80 m or more" in finetune(
        tmp_path / "features", 1
    )


def test_holes_of_0_m_are_a_problem_and_said_before_training(tmp_path: Path) -> None:
    root = make(tmp_path / "data", 2, 2, optional=False)
    depth = np.full((64, 64), 2000, np.uint16)
    depth[:8] = 0
    Image.fromarray(depth).save(root / "depth/1.png")
    sak("data", "check", root, "--sheet", tmp_path / "sheet.png")
    (root / "dataset.toml").write_text((root / "dataset.toml").read_text().replace("ignore = [0]", ""))
    assert "holds 0 to 2: expected metres above 0" in problems(root, tmp_path)
    cache(root, tmp_path / "features")
    assert "warning: depth: 1 has depths of 0 m: training takes 0 m and less for truth" in finetune(
        tmp_path / "features", 1
    )


def test_a_mask_of_0_and_255_is_a_problem_and_said_before_training(tmp_path: Path) -> None:
    root = make(tmp_path / "data", 3, 3, optional=False)
    for path in (root / "semseg").iterdir():
        Image.fromarray(np.array(Image.open(path)) * np.uint8(255)).save(path)
    told = problems(root, tmp_path)
    assert "task semseg: class 'b' is never seen, while 255 is there and taken for no label" in told
    store, _ = cache(root, tmp_path / "features")
    told = labels_lack(store, Task("semseg", "classes", ("a", "b")))
    assert told is not None and "every labelled pixel of the 3 samples looked at is 'a'" in told
    text = (root / "dataset.toml").read_text()
    (root / "dataset.toml").write_text(text.replace("[tasks.depth]", "ignore = [255]\n[tasks.depth]"))
    sak("data", "check", root, "--sheet", tmp_path / "sheet.png")


@pytest.mark.parametrize("kind", ["saliency", "boundary"])
def test_a_threshold_that_nothing_passes_is_a_problem(kind: str, tmp_path: Path) -> None:
    root = make(tmp_path / "data", 2, 2, optional=False)
    text = DESCRIPTION.partition("[tasks.semseg]")[0]
    described = f'{text}[tasks.mask]\nkind = "{kind}"\nfiles = "semseg/{{id}}.png"\nthreshold = 128\n'
    (root / "dataset.toml").write_text(described)
    assert "task mask: every labelled pixel is 0" in problems(root, tmp_path)


def test_a_validation_counts_a_task_where_it_is_labelled() -> None:
    def pairs(*values: tuple[float, int]) -> list[tuple[torch.Tensor, int]]:
        return [(torch.tensor(value), rows) for value, rows in values]

    semseg, depth = pairs((1.0, 4), (2.0, 2)), pairs((3.0, 1), (0.0, 0))
    total = pairs((4.0, 4), (2.0, 2))
    assert mean_loss(total, {"semseg": semseg, "depth": depth}) == pytest.approx((1 * 4 + 2 * 2) / 6 + 3)
    assert mean_loss(total, {"semseg": semseg}) == pytest.approx((4 * 4 + 2 * 2) / 6), "whole sets as ever"
    assert math.isnan(mean_loss(total, {"depth": pairs((0.0, 0), (0.0, 0))}))


def test_classes_of_one_name_keep_their_scores(tmp_path: Path) -> None:
    """Of stores and students of before such names were refused."""
    task = Task("semseg", "classes", ("wall", "other", "other"))
    assert task.class_keys == ("wall", "other (class 1)", "other (class 2)")
    assert Task("semseg", "classes", ("wall", "floor")).class_keys == ("wall", "floor")
