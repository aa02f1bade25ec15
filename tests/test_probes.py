"""Probes: linear heads that say what a task loses to a codec, against values by hand and from other libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.store import Store
from pipeline.errors import UserError
from pipeline.export.card import model_card
from pipeline.extraction.probed import OWN, labelled_rows
from pipeline.extraction.request import CacheRequest, teacher_options
from pipeline.extraction.samples import DatasetRequest
from pipeline.probes import linear
from pipeline.probes.linear import Probe, ProbeFitter, side_by_side
from pipeline.probes.loss import Loss
from pipeline.probes.losses import compare, draws, image_sums, scores
from pipeline.runs import lineage
from pipeline.runs.lineage import TeacherOrigin
from sak_core.student.pretrained_config import PretrainedConfig
from sak_core.tasks import Task
from tests import students
from tests.conftest import answer, sak

CLASSES = Task("semseg", "classes", ("floor", "wall", "lamp"))
DEPTH = Task("depth", "depth")
NORMALS = Task("normals", "normals")
BOUNDARY = Task("boundary", "boundary")
GRID, PX = (3, 4), 2


def cells(number: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(number, width, *GRID)).astype(np.float32))


def to_pixels(per_cell: torch.Tensor) -> torch.Tensor:
    """(..., h, w) with each cell repeated as 2x2 pixels."""
    return per_cell.repeat_interleave(PX, -2).repeat_interleave(PX, -1)


def fitted(task: Task, features: torch.Tensor, labels: torch.Tensor) -> Probe:
    fitter = ProbeFitter(task)
    for one, label in zip(features, labels, strict=True):
        fitter.update(one, label)
    return fitter.fit()


def rows(features: torch.Tensor) -> np.ndarray:
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).double().numpy()


def test_least_squares_is_numpys() -> None:
    """Depth is the ridge's solution over cells, of those with a label; unlabelled pixels change nothing."""
    features = cells(12, 5)
    depth = 20 + features[:, 0] - 2 * features[:, 3] + 0.1 * cells(12, 1, 1)[:, 0]
    labels = to_pixels(depth)
    labels[:, :2, :2] = 255  # no label: the first cell
    labels[:, 0, 2] = 255  # of the second cell a pixel
    labels[:, 5, 7] = 100  # beyond what is scored: of the last cell a pixel
    probe = fitted(DEPTH, features, labels)
    x, y = rows(features), depth.reshape(-1).double().numpy()
    w = np.tile([0, 0.75, *[1] * 9, 0.75], 12)
    mean, target = np.average(x, axis=0, weights=w), np.average(y, weights=w)
    covariance = (x - mean).T @ (w[:, None] * (x - mean)) / w.sum()
    ridge = covariance + linear.RIDGE * np.diag(np.diag(covariance))
    weight = np.linalg.solve(ridge, (x - mean).T @ (w * (y - target)) / w.sum())
    np.testing.assert_allclose(probe.weight[:, 0], weight, rtol=1e-5)
    np.testing.assert_allclose(probe.bias[0], target - mean @ weight, rtol=1e-5)


def test_the_discriminant_is_fishers() -> None:
    """Two classes and many channels; a class that no row has is never said, and boundaries are the two in one."""
    features = cells(20, 4)
    truth = (features[:, 0] + features[:, 1] + cells(20, 1, 1)[:, 0] > 0.5).long()
    probe = fitted(CLASSES, features, to_pixels(truth))
    x, y = rows(features), truth.reshape(-1).numpy()
    means = [x[y == k].mean(0) for k in (0, 1)]
    within = sum((x[y == k] - means[k]).T @ (x[y == k] - means[k]) for k in (0, 1)) / len(x)
    direction = np.linalg.solve(within + linear.RIDGE * np.diag(x.var(0)), means[1] - means[0])
    theirs = (x - (means[0] + means[1]) / 2) @ direction + np.log(y.mean() / (1 - y.mean()))
    ours = x @ probe.weight.double().numpy() + probe.bias.double().numpy()
    np.testing.assert_allclose(ours[:, 1] - ours[:, 0], theirs, rtol=1e-4, atol=1e-4)
    assert (ours.argmax(1) < 2).all()
    boundary = fitted(BOUNDARY, features, to_pixels(truth))
    said = x @ boundary.weight.double().numpy() + boundary.bias.double().numpy()
    np.testing.assert_allclose(said[:, 0], theirs, rtol=1e-4, atol=1e-4)


def test_the_discriminant_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One channel: classes at -1 and 3 (plus or minus 1), three cells of the one to one of the other."""
    monkeypatch.setattr(linear, "RIDGE", 0.0)
    value = torch.tensor([[-2.0, 0.0, -2.0, 0.0], [-2.0, 0.0, 2.0, 4.0], [2.0, 4.0, -1.0, -1.0]])
    label = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 255, 255]])
    probe = fitted(CLASSES, value.expand(8, 1, 3, 4), to_pixels(label).expand(8, 6, 8))
    # within: variance 1; means -1 and 3, shares 0.6 and 0.4: logit 1 - logit 0 = 4 x - 4 + log(0.4 / 0.6)
    weight, bias = probe.weight[0, 1] - probe.weight[0, 0], probe.bias[1] - probe.bias[0]
    assert float(weight) == pytest.approx(4, rel=1e-5)
    assert float(bias) == pytest.approx(-4 + np.log(0.4 / 0.6), rel=1e-5)


def test_a_channel_that_does_not_vary_counts_nothing() -> None:
    features = cells(10, 3)
    features[:, 1] = 300
    probe = fitted(DEPTH, features, to_pixels(20 + features[:, 0]))
    assert float(probe.weight[1, 0]) == 0 and float(probe.weight[0, 0]) == pytest.approx(1, abs=0.05)


def test_normals_are_fitted_as_vectors() -> None:
    features = cells(10, 3)
    truth = torch.nn.functional.normalize(features, dim=1)
    label = to_pixels(truth).permute(0, 2, 3, 1).clone()
    label[:, 0, 0] = 255
    probe = fitted(NORMALS, features, label)
    assert (probe.weight.diagonal() > 0.3).all() and (probe.weight - probe.weight.diagonal().diag()).abs().max() < 0.1


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (torch.full((9, 6, 8), 255), "0 of the rows have a label, 8 are needed"),
        (torch.cat([torch.zeros(5, 6, 8), torch.full((4, 6, 8), 255)]).long(), "5 of the rows have a label"),
        (torch.ones(9, 6, 8).long(), "all labels of its rows are one class"),
    ],
)
def test_what_cannot_be_fitted_says_why(labels: torch.Tensor, why: str) -> None:
    with pytest.raises(UserError, match=rf"semseg: no probe can be fitted: {why}"):
        fitted(CLASSES, cells(9, 3), labels)


def test_levels_side_by_side_on_the_finest_grid() -> None:
    fine, coarse = torch.zeros(2, 3, 4, 4), torch.ones(2, 5, 2, 2)
    both = side_by_side([coarse, fine])
    assert both.shape == (2, 8, 4, 4) and both[:, :5].eq(1).all() and both[:, 5:].eq(0).all()


def test_a_loss_by_hand() -> None:
    """Two images of four pixels: raw is right everywhere; decoded takes one lamp for floor in the second image."""
    truth = [torch.tensor([[0, 1], [0, 1]]), torch.tensor([[0, 1], [2, 255]])]
    said = [[torch.tensor([[0, 1], [0, 1]])] * 2, [truth[0], torch.tensor([[0, 1], [0, 0]])]]

    def outputs(classes: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.nn.functional.one_hot(c.clamp_max(2), 3).permute(2, 0, 1).float() for c in classes]

    right = image_sums(CLASSES, outputs([truth[0], torch.tensor([[0, 1], [2, 0]])]), truth)
    wrong = image_sums(CLASSES, outputs(said[1]), truth)
    counts = draws(2)
    loss = compare(CLASSES, scores(CLASSES, right, counts), scores(CLASSES, wrong, counts), 2)
    # decoded: floor 3 of 4, wall 3 of 3, lamp 0 of 1
    assert (loss.raw, loss.decoded, loss.images) == (pytest.approx(100), pytest.approx(100 * (0.75 + 1) / 3), 2)
    assert loss.loss == pytest.approx(100 - 175 / 3)
    # drawn twice, the first image has no lamp (100 * 2/3 both ways: nothing lost), the second floor 1 of 2 and no lamp
    assert (loss.low, loss.high) == (pytest.approx(0), pytest.approx(100 - 150 / 3))
    assert Loss.from_array("mIoU", loss.to_array()) == loss == Loss.from_dict(loss.to_dict())
    assert loss.unit == "points"


def test_what_is_lost_has_the_sense_of_the_score() -> None:
    """An error that grows is a loss, in metres; images without a label count nothing."""
    labels = [torch.full((2, 2), 2.0), torch.full((2, 2), 4.0), torch.full((2, 2), 255.0)]
    raw = image_sums(DEPTH, [torch.full((1, 2, 2), v) for v in (2.0, 4.0, 9.0)], labels)
    back = image_sums(DEPTH, [torch.full((1, 2, 2), v) for v in (2.5, 4.5, 9.0)], labels)
    counts = draws(2)
    loss = compare(DEPTH, scores(DEPTH, raw, counts), scores(DEPTH, back, counts), 2)
    assert (loss.raw, loss.decoded, loss.loss, loss.low, loss.high) == (0, 0.5, 0.5, 0.5, 0.5)
    assert (loss.score, loss.unit) == ("RMSE", "m")


@pytest.mark.parametrize("wrong", ["1.5", "semseg", "semseg=", "semseg=-1", "semseg=1,semseg=2", "=nan", "semseg=nan"])
def test_a_promise_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=r"expected a token cosine between 0 and 1, such as 0.995, or the most"):
        teacher_options(fidelity=wrong)


def test_a_promise_is_a_cosine_or_about_tasks() -> None:
    assert teacher_options(fidelity="0.98") == teacher_options(fidelity=0.98)
    asked = teacher_options(fidelity="semseg=0.5, depth=0.01")
    assert (asked.fidelity, asked.promised, asked.probes) == (None, (("depth", 0.01), ("semseg", 0.5)), OWN)
    with pytest.raises(UserError, match="probes are fitted in one process"):
        CacheRequest(DatasetRequest("rooms", "train"), ("mini-dino",), 1, "features", asked, workers=2)


# -- through the command line ------------------------------------------------------------------------------------------

SMALL = ["--teacher", "mini-dino", "--size", "48", "--threads", "1", "--decoders", "0", "--json"]
ROOMS = ["--split", "val", "--limit", "24", *SMALL]


def cached(out: Path, *options: str | Path, check: bool = True) -> Any:
    done = sak("cache", *ROOMS, *options, "--out", out, check=check)
    return json.loads(done.stdout) if check else done


def shown(path: Path) -> Any:
    return answer("info", path)["teachers"]["mini-dino"]


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pixels and labels alone."""
    out = tmp_path_factory.mktemp("labels")
    sak("cache", *ROOMS, "--out", out, "--teacher", "")
    return out


@pytest.fixture(scope="module")
def kept(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with klt, and a promise about two tasks that leaves room."""
    out = tmp_path_factory.mktemp("kept") / "features"
    shutil.copytree(labels, out)
    made = cached(out, "--codec", "klt", "--fidelity", "semseg=4,depth=0.1")
    return Path(made["store"])


def test_a_promise_about_tasks_becomes_a_cosine(kept: Path) -> None:
    """The store keeps it: on the scored rows as they lie in it, and at no more bits than the default takes."""
    told = shown(kept)
    probes, fidelity = told["probes"], told["provenance"]["fidelity"]
    assert set(probes) == {"boundary", "depth", "normals", "parts", "saliency", "semseg"}
    assert probes["semseg"]["promised"] == 4 and probes["depth"]["promised"] == 0.1
    assert "promised" not in probes["normals"] and probes["normals"]["unit"] == "degrees"
    for task in ("semseg", "depth"):
        assert probes[task]["low"] <= probes[task]["loss"] <= probes[task]["high"] <= probes[task]["promised"]
        assert probes[task]["images"] == 12
    assert 0.6 < fidelity < 0.995 and {level["fidelity"] for level in told["levels"]} == {fidelity}
    assert told["provenance"]["notes"]["probes"] == {"rows": "own", "promised": {"depth": 0.1, "semseg": 4.0}}
    text = sak("info", kept).stdout
    assert "probe of semseg: loses" in text and "; at most 4 promised" in text
    again = cached(kept.parent, "--codec", "klt", "--fidelity", "semseg=4,depth=0.1")
    assert again["timings"] == {}, "what is there keeps the promise already"
    other = cached(kept.parent, "--codec", "klt", "--fidelity", "semseg=3", check=False)
    assert other.returncode and "was made with --fidelity depth=0.1,semseg=4, not semseg=3" in other.stderr


def test_verify_measures_the_same_on_rows_as_they_lie_there(kept: Path) -> None:
    """With the probes that are kept; and says so where a promise does not hold."""
    told = shown(kept)["probes"]
    done = answer("verify", kept, "--probes", "own")["probes"]["mini-dino"]
    assert (done["fitted"], done["problems"]) == (False, [])
    for task, loss in done["losses"].items():
        for name, value in loss.items():
            assert value == (pytest.approx(told[task][name], abs=1e-3) if name in ("loss", "raw") else value)
    before = Store.open(kept)
    probe = before.calibration("mini-dino", ["probe_depth/weight", "probe_depth/RMSE"])
    assert probe is not None and probe["probe_depth/weight"].shape == (4 * 128, 1)
    rows = labelled_rows(OWN, before)
    assert len(rows.fit) == len(rows.scored) == 12 and not set(rows.fit) & set(rows.scored)


def test_a_damaged_probe_is_found_and_mended(kept: Path, tmp_path: Path) -> None:
    store = tmp_path / kept.name
    shutil.copytree(kept, store)
    file = store / "teachers/mini-dino/calibration/probe_depth/weight/c.0.0"
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert sak("verify", store, check=False).returncode == 1
    sak("repair", store)
    assert file.read_bytes() == whole


def test_a_promise_that_cannot_be_kept_is_refused(labels: Path, tmp_path: Path) -> None:
    """Nothing is written of the teacher, and the words say what was reached."""
    out = tmp_path / "features"
    shutil.copytree(labels, out)
    done = cached(out, "--codec", "int4", "--fidelity", "normals=0.0001", check=False)
    assert done.returncode and "int4 does not keep what is promised: normals loses " in done.stderr
    assert "promised is at most 0.0001. Use a codec with more bits" in done.stderr
    done = cached(out, "--codec", "klt", "--fidelity", "normals=1e-9", check=False)
    assert done.returncode and "klt at its finest (token cosine 0.99999) does not keep what is promised" in done.stderr
    assert Store.open(next(out.glob("*.zarr"))).teachers == []
    done = cached(out, "--codec", "klt", "--fidelity", "sematics=1", check=False)
    assert done.returncode and "has no labels of it; it has boundary, depth" in done.stderr


def test_probes_of_another_cache(images: Path, labels: Path, tmp_path: Path) -> None:
    """An unlabelled store is probed on a labelled one's pixels; without probes its bytes are the same."""
    other = next(labels.glob("*.zarr"))
    folder = ["--dataset", "folder", "--root", images, "--limit", "12", "--views", "1", *SMALL, "--codec", "klt"]
    plain = json.loads(sak("cache", *folder, "--out", tmp_path / "plain").stdout)["store"]
    done = sak("cache", *folder, "--out", tmp_path / "own", "--probes", "own", check=False)
    assert done.returncode and "has no labels to fit probes on: name a labelled cache" in done.stderr
    assert not list((tmp_path / "own").glob("*.zarr")), "said before the first row"
    probed = json.loads(sak("cache", *folder, "--out", tmp_path / "probed", "--probes", other).stdout)["store"]
    told = shown(Path(probed))
    assert set(told["probes"]) >= {"semseg", "depth"} and told["provenance"]["notes"]["probes"] == {"rows": other.name}
    assert shown(Path(plain))["probes"] == {}
    same = [file.relative_to(plain) for file in Path(plain).glob("teachers/mini-dino/level_*/**/*") if file.is_file()]
    assert same and all((Path(plain) / file).read_bytes() == (Path(probed) / file).read_bytes() for file in same)
    verified = sak("verify", plain, "--probes", other).stdout
    assert "mini-dino, probe fitted now: semseg loses" in verified


def test_a_card_tells_what_caching_cost(kept: Path) -> None:
    """Of probed caches; what a run keeps of others, and their students' cards, are as they were."""
    origin = lineage._teacher(Store.open(kept), "mini-dino", None)
    told = shown(kept)
    assert origin.probed is not None and origin.probed.losses == {
        task: {key: value for key, value in loss.items() if key != "promised"} for task, loss in told["probes"].items()
    }
    assert TeacherOrigin.model_validate_json(origin.model_dump_json()) == origin
    plain = origin.model_copy(update={"probed": None})
    assert set(json.loads(plain.model_dump_json())) == {"name", "library", "model", "weights", "licence"}
    card, plain_card = (
        model_card(PretrainedConfig(students.config(), about=about_of(teacher)), "me/model")
        for teacher in (origin, plain)
    )
    loss = Loss.from_dict(told["probes"]["depth"])
    row = next(line for line in card.splitlines() if "depth RMSE" in line and "token cosine" in line)
    assert f"mini-dino (klt, token cosine {origin.probed.cosine:.4f})" in row and f"{loss.decoded:.4g}" in row
    least = min(min(figures["cosine"], figures["centred_cosine"]) for figures in told["fidelity"].values())
    assert origin.probed.cosine == least >= told["provenance"]["fidelity"]
    assert "token cosine" not in plain_card and "from sak_core.student import Student\n" in plain_card


def about_of(teacher: TeacherOrigin) -> dict[str, Any]:
    return {
        "run": "a", "made_with": "sak", "arm": "sak", "stem_weights": None, "teachers": [teacher.model_dump()],
        "data": [], "parameters": 1, "seconds": 1.0, "recipe": {"seed": 0},
    }  # fmt: skip


def test_the_frontier_tells_what_tasks_lose(tmp_path: Path) -> None:
    """Of each codec, and of klt at each fidelity: fp16 loses next to nothing, and klt more at fewer bits."""
    exact = tmp_path / "features"
    path = Path(cached(exact, "--codec", "fp32", "--limit", "40")["store"])
    asked = [
        "frontier",
        path,
        "--teacher",
        "mini-dino",
        "--level",
        "3",
        "--probes",
        "--fidelity",
        "0.99",
        "--fidelity",
        "0.8",
    ]
    results = {row["codec"]: row for row in answer(*asked)["results"]}
    assert {"fp16", "int8", "klt at 0.99", "klt at 0.8"} <= set(results)
    losses = {codec: row["probes"]["normals"] for codec, row in results.items()}
    assert abs(losses["fp16"]["loss"]) < 0.01 < losses["klt at 0.8"]["loss"]
    assert losses["klt at 0.8"]["loss"] > losses["klt at 0.99"]["loss"]
    assert results["klt at 0.8"]["bits"] < results["klt at 0.99"]["bits"]
    assert len({loss["raw"] for loss in losses.values()}) == 1
    np.save(tmp_path / "a.npy", np.ones((4, 3, 2), np.float32))
    refused = sak("frontier", tmp_path / "a.npy", "--probes", check=False)
    assert refused.returncode and "--probes goes with a cache" in refused.stderr
