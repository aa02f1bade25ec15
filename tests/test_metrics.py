"""Scores against torchmetrics, scikit-image's and brute-force counterparts, and after merging processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from sak_core.labels import IGNORE
from sak_core.metrics import delta_m
from sak_core.tasks import Task
from sak_core.tasks.constant import ConstantPredictor
from tests import students

BY_NAME = {task.name: task for task in students.TASKS}


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batches(task: Task, number: int = 3):
    for b in range(number):
        yield random(b, 2, task.channels, 20, 28), students.labels(2, (20, 28), seed=10 + b)[task.name]


def scored(task: Task, pairs) -> dict[str, float]:
    metric = task.metric()
    for output, label in pairs:
        metric.update(output, label)
    return metric.compute()


def test_miou_equals_torchmetrics():
    task = BY_NAME["semseg"]
    theirs = MulticlassJaccardIndex(5, average=None, ignore_index=IGNORE)
    matrix = MulticlassConfusionMatrix(5, ignore_index=IGNORE)
    ours = task.metric()
    for output, label in batches(task):
        ours.update(output, label)
        theirs.update(output, label.long())
        matrix.update(output, label.long())
    assert ours.compute()["mIoU"] == pytest.approx(100 * theirs.compute().mean().item())
    assert torch.equal(ours.confusion, matrix.compute())
    assert ours.compute()["accuracy"] == pytest.approx(100 * (matrix.compute().diag().sum() / matrix.compute().sum()))


def test_a_class_that_never_occurs_counts_zero():
    output = F.one_hot(torch.tensor([[[0, 1]]]), 5).permute(0, 3, 1, 2).float()
    assert scored(BY_NAME["semseg"], [(output, torch.tensor([[[0, 1]]]))])["mIoU"] == pytest.approx(40)


def test_saliency_equals_brute_force():
    task = BY_NAME["saliency"]
    pairs = list(batches(task))
    best_f, ious = 0.0, []
    for threshold in np.arange(1, 20) / 20:
        hit = found = truth = 0
        per_image = []
        for output, label in pairs:
            for p, y in zip(F.softmax(output, 1)[:, 1].double().numpy(), label.numpy(), strict=True):
                on, positive = (p >= threshold)[y != IGNORE], (y == 1)[y != IGNORE]
                hit, found, truth = hit + (on & positive).sum(), found + on.sum(), truth + positive.sum()
                union = (on | positive).sum()
                per_image.append((on & positive).sum() / union if union else 1.0)
        precision, recall = hit / max(found, 1), hit / max(truth, 1)
        if hit:
            best_f = max(best_f, 1.3 * precision * recall / (0.3 * precision + recall))
        ious.append(np.mean(per_image))
    scores = scored(task, pairs)
    assert scores["maxF"] == pytest.approx(100 * best_f)
    assert scores["mIoU"] == pytest.approx(100 * max(ious))


def test_saliency_of_empty_images():
    task = BY_NAME["saliency"]
    nothing = torch.tensor([9.0, -9.0]).reshape(1, 2, 1, 1).expand(1, 2, 3, 3)
    assert scored(task, [(nothing, torch.zeros(1, 3, 3))]) == {"maxF": 0.0, "mIoU": 100.0}
    assert scored(task, [(nothing, torch.ones(1, 3, 3))]) == {"maxF": 0.0, "mIoU": 0.0}


def test_a_probability_on_the_threshold_is_salient():
    task = BY_NAME["saliency"]
    half = torch.zeros(1, 2, 1, 2)
    label = torch.tensor([[[1, 1]]])
    metric = task.metric()
    metric.update(half, label)
    assert metric.counts[0].tolist() == [2] * 10 + [0] * 9


def test_normals_equal_arc_cosines():
    task = BY_NAME["normals"]
    angles = []
    pairs = list(batches(task))
    for output, label in pairs:
        valid = (label != IGNORE).any(-1)
        a, b = F.normalize(output.double().permute(0, 2, 3, 1)[valid], dim=-1), label[valid].double()
        angles.append(torch.rad2deg(torch.acos((a * b).sum(-1).clamp(-1, 1))))
    angles = torch.cat(angles)
    scores = scored(task, pairs)
    assert scores["mErr"] == pytest.approx(angles.mean().item(), abs=1e-4)
    assert scores["median"] == pytest.approx(angles.median().item(), abs=0.1)
    for limit in (11.25, 22.5, 30):
        assert scores[f"<{limit:g}"] == pytest.approx(100 * (angles < limit).double().mean().item())


def test_small_angles_are_exact():
    tilt = np.deg2rad(0.01)
    output = torch.tensor([0, np.sin(tilt), np.cos(tilt)], dtype=torch.float32).reshape(1, 3, 1, 1)
    scores = scored(BY_NAME["normals"], [(output, torch.tensor([[[[0.0, 0.0, 2.0]]]]))])
    assert scores["mErr"] == pytest.approx(0.01, rel=1e-3)
    assert scores["median"] == pytest.approx(0.01, abs=0.006)


def test_depth_by_hand():
    output = torch.tensor([-1.0, 3.0, 100.0, 7.0, 7.0, 7.0]).reshape(1, 1, 1, 6)
    label = torch.tensor([2.0, 2.5, 50.0, 0.0, 80.0, IGNORE]).reshape(1, 1, 6)
    # counted: 0 for 2, 3 for 2.5, 100 for 50
    scores = scored(BY_NAME["depth"], [(output, label)])
    assert scores["RMSE"] == pytest.approx(np.sqrt((4 + 0.25 + 2500) / 3))
    assert scores["absRel"] == pytest.approx((1 + 0.2 + 1) / 3)
    assert scores["delta1"] == pytest.approx(100 / 3)
    assert scores["delta3"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("task", students.TASKS, ids=lambda t: t.name)
def test_batches_may_be_cut_and_merged_in_any_way(task):
    pairs = list(batches(task))
    whole = scored(task, [(torch.cat([o for o, _ in pairs]), torch.cat([y for _, y in pairs]))])
    assert scored(task, pairs) == pytest.approx(whole)
    a, b = task.metric(), task.metric()
    a.update(*pairs[0])
    for pair in pairs[1:]:
        b.update(*pair)
    a.merge_state(b)
    assert a.compute() == pytest.approx(whole)
    assert task.score in whole


@pytest.mark.parametrize("task", students.TASKS, ids=lambda t: t.name)
def test_ignored_pixels_change_nothing(task):
    (output, label), *_ = batches(task)
    other = output.clone()
    other[:, :, :2] = 1e3 * random(99, *other[:, :, :2].shape)
    assert scored(task, [(output, label)]) == scored(task, [(other, label)])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("task", students.TASKS, ids=lambda t: t.name)
def test_a_metric_without_data_computes(task):
    metric = task.metric()
    assert task.score in metric.compute()
    (output, label), *_ = batches(task)
    metric.update(output, torch.full_like(label, IGNORE))
    assert all(np.isnan(value) for value in metric.compute().values()), "no pixel was scored: there is no score"


def test_an_image_without_a_label_is_no_perfect_one():
    """Of saliency: nothing found where nothing is known was an IoU of 1."""
    task = BY_NAME["saliency"]
    (output, label), *_ = batches(task)
    unknown = (output, torch.full_like(label, IGNORE))
    assert scored(task, [(output, label), unknown, unknown]) == scored(task, [(output, label)])


@pytest.mark.parametrize("task", students.TASKS, ids=lambda t: t.name)
def test_the_truth_scores_best(task):
    label = students.labels(2, (40, 48))[task.name]
    if task.kind == "classes":
        output = F.one_hot(label.long() % 5, 5).permute(0, 3, 1, 2).float()
    elif task.kind == "saliency":
        output = F.one_hot((label == 1).long(), 2).permute(0, 3, 1, 2) * 50.0
    elif task.kind == "normals":
        output = label.permute(0, 3, 1, 2)
    elif task.kind == "boundary":
        label = torch.zeros(2, 40, 48, dtype=torch.uint8)
        label[:, 20, 8:40] = 1
        output = (label[:, None].float() - 0.5) * 20
    else:
        output = label[:, None]
    best = 100 if task.higher_is_better else 0
    # suppression takes the ends of the line
    error = 4 if task.kind == "boundary" else 1e-3
    assert scored(task, [(output, label)])[task.score] == pytest.approx(best, abs=error)


def test_delta_m_signs_and_names():
    senses = {"semseg": True, "depth": False}
    base = {"semseg": 50.0, "depth": 0.5}
    assert delta_m({"semseg": 55.0, "depth": 0.4}, base, senses) == pytest.approx(15)
    assert delta_m({"semseg": 45.0, "depth": 0.5}, base, senses) == pytest.approx(-5)
    with pytest.raises(ValueError, match="baseline of depth is 0"):
        delta_m(base, {"semseg": 50.0, "depth": 0.0}, senses)


def fitted(labels) -> ConstantPredictor:
    predictor = ConstantPredictor(students.TASKS)
    for part in labels:
        predictor.update(part)
    return predictor


def test_no_other_constant_scores_better():
    """On the labels it was fitted on, against a grid of other constants."""
    labels = [students.labels(4, (40, 48), seed=s) for s in range(2)]
    constants = fitted(labels).outputs(4, (40, 48))
    others = {
        "semseg": [F.one_hot(torch.tensor(c), 5).float() for c in range(5)],
        "saliency": [torch.tensor([-x, x]) for x in np.linspace(-2, 2, 9)],
        "depth": [torch.tensor([x]) for x in np.linspace(0.5, 5.5, 21)],
    }
    for name, values in others.items():
        task = BY_NAME[name]
        ours = scored(task, [(constants[name], part[name]) for part in labels])[task.score]
        for value in values:
            output = value.float().view(1, -1, 1, 1).expand(4, -1, 40, 48)
            score = scored(task, [(output, part[name]) for part in labels])[task.score]
            assert score <= ours + 1e-4 if task.higher_is_better else score >= ours - 1e-4


def test_constants_are_the_labels_statistics():
    label = {
        "semseg": torch.tensor([[[3, 3, 1, IGNORE]]]),
        "saliency": torch.tensor([[[1, 0, 0, 0]]]),
        "depth": torch.tensor([[[1.0, 2.0, 6.0, IGNORE]]]),
        "normals": torch.tensor([[[[0, 0, 2.0], [0, 1.0, 0], [IGNORE] * 3, [IGNORE] * 3]]]),
        "boundary": torch.tensor([[[1, 0, 0, IGNORE]]]),
    }
    out = {k: v[0, :, 0, 0] for k, v in fitted([label]).outputs(1, (1, 4)).items()}
    assert out["semseg"].argmax() == 3
    torch.testing.assert_close(out["saliency"].softmax(0), torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(out["depth"], torch.tensor([3.0]))
    torch.testing.assert_close(out["normals"], torch.tensor([0.0, 1.0, 1.0]) / 2**0.5)
    torch.testing.assert_close(out["boundary"].sigmoid(), torch.tensor([1 / 3]))
    with pytest.raises(ValueError, match="no valid label of semseg"):
        ConstantPredictor(students.TASKS).outputs(1, (2, 2))


@pytest.mark.parametrize("task", students.TASKS, ids=lambda t: t.name)
def test_an_images_own_score_is_that_of_the_image_alone(task):
    pairs = list(batches(task))
    metric = task.metric()
    for output, label in pairs:
        metric.update(output, label)
    alone = []
    for output, label in pairs:
        for i in range(len(label)):
            one = task.metric()
            one.update(output[i : i + 1], label[i : i + 1])
            if task.kind == "boundary":
                alone.append(one.compute()["oisF"])
            elif task.kind == "classes":  # over the classes that occur
                confusion = one.confusion.double()
                seen = (confusion.sum(0) + confusion.sum(1)) > 0
                alone.append(100 * one.iou()[seen].mean().item())
            else:
                alone.append(one.compute()[task.score])
    assert metric.details()["per_image"] == pytest.approx(alone, abs=1e-3)


def test_classes_and_confusions_are_in_the_details():
    task = BY_NAME["semseg"]
    metric = task.metric()
    matrix = MulticlassConfusionMatrix(5, ignore_index=IGNORE)
    for output, label in batches(task):
        metric.update(output, label)
        matrix.update(output, label.long())
    details = metric.details()
    assert details["confusion"] == matrix.compute().tolist()
    assert details["per_class"] == pytest.approx((100 * metric.iou()).tolist(), abs=1e-3)
    assert np.mean(details["per_class"]) == pytest.approx(metric.compute()["mIoU"], abs=1e-3)


@pytest.mark.parametrize("task", students.TASKS, ids=lambda t: t.name)
def test_an_image_without_a_valid_pixel_has_no_score_of_its_own(task):
    (output, label), *_ = batches(task)
    label = label.clone()
    label[0] = IGNORE
    metric = task.metric()
    metric.update(output, label)
    first, second = metric.details()["per_image"]
    assert first is None and second is not None


def _two_processes(rank: int, folder: str) -> None:
    """Process 0 scores one batch, process 1 the two others; then both know the scores of all."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    told = {}
    for task in students.TASKS:
        # boundaries leave process 0 without any image
        first = 0 if task.kind == "boundary" else 1
        metric = task.metric()
        for output, label in list(batches(task))[slice(0, first) if rank == 0 else slice(first, None)]:
            metric.update(output, label)
        told[task.name] = {"scores": metric.compute(), "details": metric.details()}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_uneven_parts_score_as_one(tmp_path):
    torch.multiprocessing.spawn(_two_processes, (str(tmp_path),), nprocs=2)
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for task in students.TASKS:
        metric = task.metric()
        for output, label in batches(task):
            metric.update(output, label)
        for told in both:
            assert told[task.name]["scores"] == pytest.approx(metric.compute()), task.name
            details = metric.details()
            assert told[task.name]["details"].keys() == details.keys()
            for key, value in details.items():
                same = told[task.name]["details"][key]
                assert same == value if key == "confusion" else same == pytest.approx(value, abs=1e-3), task.name
