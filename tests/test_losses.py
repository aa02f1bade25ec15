"""Losses against torch's own modules, worked numbers and finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sak_core.labels import IGNORE
from sak_core.losses.rows import cosine, on_finer_grid
from sak_core.losses.step import distillation_loss, task_loss, task_losses
from sak_core.tasks import KINDS, Task, published_weight
from tests import students


def maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["cos+l1", "cos", "l2"])
def test_distillation_equals_torchs_modules(kind):
    student, teacher = maps(0, 3, 5, 4, 6), maps(1, 3, 5, 4, 6)
    angle = torch.nn.CosineEmbeddingLoss()(student.flatten(1), teacher.flatten(1), torch.ones(3))
    expected = {
        "cos+l1": 0.9 * angle + 0.1 * torch.nn.SmoothL1Loss()(student, teacher),
        "cos": angle,
        "l2": torch.nn.MSELoss()(student, teacher),
    }[kind]
    total, terms = distillation_loss({"t": [student]}, {"t": [teacher]}, kind)
    torch.testing.assert_close(total, expected)
    assert list(terms) == ["t_level1"]


def test_the_cosine_of_a_large_map_keeps_its_digits():
    student, teacher = maps(0, 1, 1280, 48, 48) + 1, maps(1, 1, 1280, 48, 48) + 1
    for memory in (torch.contiguous_format, torch.channels_last):
        a, b = student.contiguous(memory_format=memory), teacher.contiguous(memory_format=memory)
        expected = 1 - F.cosine_similarity(a.double().flatten(1), b.double().flatten(1))
        torch.testing.assert_close(cosine(a, b).double(), expected, rtol=0, atol=2e-6)
        assert abs(cosine(a, a).item()) < 2e-6


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_distillation_does_not_depend_on_memory_layout(memory):
    student, teacher = maps(0, 2, 5, 4, 6), maps(1, 2, 5, 4, 6).to(memory_format=memory)
    a = distillation_loss({"t": [student]}, {"t": [teacher.contiguous()]})[0]
    torch.testing.assert_close(distillation_loss({"t": [student]}, {"t": [teacher]})[0], a)


@pytest.mark.parametrize(
    "student,teacher,resized",
    [
        ((4, 6), (8, 12), "student"),
        ((4, 6), (2, 3), "teacher"),
        # height alone decides, and at equal heights the teacher is resized
        ((4, 6), (5, 2), "student"),
        ((4, 6), (4, 9), "teacher"),
        ((4, 6), (4, 6), None),
    ],
)
def test_grids_meet_by_height(student, teacher, resized):
    s, t = maps(0, 2, 3, *student), maps(1, 2, 3, *teacher)
    a, b = on_finer_grid(s, t)
    if resized == "student":
        assert b is t
        torch.testing.assert_close(a, F.interpolate(s, teacher, mode="bilinear", align_corners=False))
    elif resized == "teacher":
        assert a is s
        torch.testing.assert_close(b, F.interpolate(t, student, mode="bilinear", align_corners=False))
    else:
        assert a is s and b is t


def test_distillation_sums_teachers_and_levels_with_weights():
    student, teacher = students.features(seed=5), students.features(seed=6)
    total, terms = distillation_loss(student, teacher)
    torch.testing.assert_close(total, sum(terms.values()))
    weighted, same = distillation_loss(student, teacher, level_weights={"clip": (0.0, 0.0, 0.0, 2.0)})
    assert all(torch.equal(terms[name], same[name]) for name in terms)
    expected = sum(v for n, v in terms.items() if n.startswith("dino")) + 2 * terms["clip_level4"]
    torch.testing.assert_close(weighted, expected)


def test_a_map_of_zeros_gives_finite_gradients():
    student = torch.zeros(1, 3, 2, 2, requires_grad=True)
    distillation_loss({"t": [student]}, {"t": [maps(0, 1, 3, 2, 2)]})[0].backward()
    assert student.grad.isfinite().all()


def test_distillation_names_what_does_not_fit():
    student, teacher = students.features(), students.features()
    with pytest.raises(ValueError, match="unknown distillation loss 'cosl1'; did you mean cos"):
        distillation_loss(student, teacher, "cosl1")
    with pytest.raises(ValueError, match=r"\['clip', 'dino'\], the batch for \['dino'\]"):
        distillation_loss(student, {"dino": teacher["dino"]})
    with pytest.raises(ValueError, match="clip: 4 levels of the student, 3"):
        distillation_loss(student, {**teacher, "clip": teacher["clip"][:3]})
    with pytest.raises(ValueError, match="clip level 2"):
        wrong = [*teacher["clip"][:2], maps(0, 2, 13, 6, 9), teacher["clip"][3]]
        distillation_loss(student, {**teacher, "clip": wrong})
    with pytest.raises(ValueError, match="at least one teacher"):
        distillation_loss({}, {})


def test_task_losses_by_hand():
    """Two valid pixels a task, computed with a pencil; a third is ignored."""
    log = np.log
    # classes: scores (0, ln 3) say 1/4, 3/4
    output = torch.tensor([[0.0, 0.0, 7.0], [log(3), log(3), 7.0]]).reshape(1, 2, 1, 3)
    semseg = Task("s", "classes", ("a", "b"))
    label = torch.tensor([1, 0, IGNORE], dtype=torch.uint8).reshape(1, 1, 3)
    assert task_loss(semseg, output, label).item() == pytest.approx((log(4 / 3) + log(4)) / 2)
    # saliency: one of two negative, p = 1/2, so both weights are 1/2; then both positive: p = 0, weight of class 1 is 0
    saliency = Task("s", "saliency")
    assert task_loss(saliency, output, label).item() == pytest.approx((log(4 / 3) + log(4)) / 4)
    ones = torch.tensor([1, 1, IGNORE], dtype=torch.uint8).reshape(1, 1, 3)
    assert task_loss(saliency, output, ones).item() == 0
    # boundary: logit ln 3 says 3/4
    logits = torch.full((1, 1, 1, 3), log(3))
    expected = (0.95 * log(4 / 3) + 0.05 * log(4)) / 2
    assert task_loss(Task("b", "boundary"), logits, label).item() == pytest.approx(expected)
    # depth: |2 - 5| and |2 - 1|; 2.5 m off does not get clamped
    depth = torch.tensor([5.0, 1.0, IGNORE]).reshape(1, 1, 3)
    assert task_loss(Task("d", "depth"), torch.full((1, 1, 1, 3), 2.0), depth).item() == pytest.approx(2)
    assert task_loss(Task("d", "depth"), torch.full((1, 1, 1, 3), -2.0), depth).item() == pytest.approx(5)
    # normals: (3, 0, 4) becomes (.6, 0, .8): .6 + .2 from z and .4 + .8 from x
    out = torch.tensor([3.0, 0.0, 4.0]).reshape(1, 3, 1, 1).expand(1, 3, 1, 3)
    normals = torch.tensor([[0, 0, 1.0], [1.0, 0, 0], [IGNORE] * 3]).reshape(1, 1, 3, 3)
    assert task_loss(Task("n", "normals"), out, normals).item() == pytest.approx((0.8 + 1.2) / 2)


@pytest.mark.parametrize("task", students.TASKS, ids=lambda t: t.name)
def test_a_batch_without_valid_pixels_gives_zero_and_finite_gradients(task):
    output = maps(0, 2, task.channels, 4, 4).requires_grad_()
    label = torch.full((2, 4, 4, 3) if task.kind == "normals" else (2, 4, 4), IGNORE)
    label = label.to(torch.uint8 if task.spec.label_dtype == np.uint8 else torch.float32)
    loss = task_loss(task, output, label)
    loss.backward()
    assert loss.item() == 0 and not output.grad.any()


@pytest.mark.parametrize("task", students.TASKS, ids=lambda t: t.name)
def test_task_gradients_equal_finite_differences(task):
    label = students.labels(2, (4, 5))[task.name]
    output = maps(3, 2, task.channels, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda o: task_loss(task, o, label), output, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("kind", ["cos+l1", "cos", "l2"])
def test_distillation_gradients_equal_finite_differences(kind):
    student = maps(0, 2, 3, 2, 3).double().requires_grad_()
    teacher = maps(1, 2, 3, 4, 5).double()
    assert torch.autograd.gradcheck(
        lambda s: distillation_loss({"t": [s]}, {"t": [teacher]}, kind)[0], student, eps=1e-7, atol=1e-5
    )


@pytest.mark.parametrize("task", students.TASKS, ids=lambda t: t.name)
def test_normalisers_over_ranks_give_the_global_batch(task):
    """Two processes with unequal rows: the mean of their losses, each with global normalisers, is the whole
    batch's.
    """
    output, label = maps(0, 5, task.channels, 8, 8), students.labels(5, (8, 8))[task.name]
    label[1, 2:6] = IGNORE
    halves = [(output[:2], label[:2]), (output[2:], label[2:])]
    calls: list[list[torch.Tensor]] = []

    def record(part: int):
        calls.append([])

        def over_ranks(value):
            calls[part].append(value)
            return value

        return over_ranks

    for part, (o, y) in enumerate(halves):
        task_loss(task, o, y, record(part))
    means = [torch.stack(pair).float().mean(0) for pair in zip(*calls, strict=True)]

    def replay():
        values = iter(means)
        return lambda value: next(values)

    losses = [task_loss(task, o, y, replay()) for o, y in halves]
    torch.testing.assert_close(sum(losses) / 2, task_loss(task, output, label))


def test_total_is_the_weighted_sum():
    outputs = {t.name: maps(i, 2, t.channels, *students.SIZE) for i, t in enumerate(students.TASKS)}
    labels = students.labels()
    total, terms = task_losses(students.TASKS, outputs, labels)
    for task in students.TASKS:
        torch.testing.assert_close(
            terms[task.name], task.weight * task_loss(task, outputs[task.name], labels[task.name])
        )
    torch.testing.assert_close(total, torch.stack(list(terms.values())).sum())


def test_half_precision_outputs_do_not_overflow():
    task = Task("d", "depth")
    output = torch.full((1, 1, 300, 300), 100.0, dtype=torch.float16)
    assert task_loss(task, output, torch.ones(1, 300, 300)).item() == pytest.approx(99)


def test_tasks_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match="unknown kind 'normal'; did you mean normals"):
        Task("n", "normal")
    with pytest.raises(ValueError, match="needs them"):
        Task("s", "classes")
    with pytest.raises(ValueError, match="takes them"):
        Task("s", "depth", ("a",))
    with pytest.raises(ValueError, match="256 classes"):
        Task("s", "classes", tuple(map(str, range(256))))
    task = Task("s", "classes", ("a", "b"), 2.0)
    assert Task.from_dict(task.to_dict()) == task
    assert published_weight("edge") == 50 and published_weight("semseg") == 1
    assert all(kind == row.name for kind, row in KINDS.items())
    published = {"semseg": "classes", "sal": "saliency", "edge": "boundary", "normals": "normals", "depth": "depth"}
    assert all(KINDS[kind].weight == published_weight(name) for name, kind in published.items())
