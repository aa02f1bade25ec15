"""Teachers' features under heads, without a student."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from sak_core.losses.step import task_losses
from sak_core.noise import RowNoise
from sak_core.student.feature_model import FeatureModel
from tests import students

TEACHERS = {"dino": (20, 20, 24, 24), "clip": 12}


def model(teachers=None, **options) -> FeatureModel:
    torch.manual_seed(0)
    return FeatureModel(TEACHERS if teachers is None else teachers, students.TASKS, **options)


def test_one_teacher_keeps_its_grid_and_needs_no_router():
    alone = model({"clip": 12}).eval()
    out = alone(students.features(), students.SIZE)
    assert not len(alone.routers) and out.router_weights == {}
    assert {n: tuple(o.shape) for n, o in out.outputs.items()} == {
        t.name: (2, t.channels, *students.SIZE) for t in students.TASKS
    }
    normed = [F.layer_norm(m.permute(0, 2, 3, 1), (12,)).permute(0, 3, 1, 2) for m in students.features()["clip"]]
    torch.testing.assert_close(alone.heads["depth"](normed, students.SIZE), out.outputs["depth"])


def test_several_teachers_meet_on_the_finest_grid_and_widest_width():
    both = model().eval()
    assert both.width == 24
    out = both(students.features(), students.SIZE)
    assert [tuple(w.shape) for w in out.router_weights["depth"]] == [(2, 2)] * 4
    for w in out.router_weights["depth"]:
        torch.testing.assert_close(w.sum(1), torch.ones(2))


def test_a_features_scale_does_not_matter():
    both, features = model().eval(), students.features()
    scaled = {"dino": [m * 1000 for m in features["dino"]], "clip": features["clip"]}
    a, b = both(features, students.SIZE), both(scaled, students.SIZE)
    torch.testing.assert_close(a.outputs["semseg"], b.outputs["semseg"], rtol=1e-4, atol=1e-4)


def test_all_parameters_learn_and_noise_is_reproducible():
    both = model().train()
    noise = RowNoise(0, 0, torch.arange(2))
    out = both(students.features(), students.SIZE, generator=noise)
    task_losses(students.TASKS, out.outputs, students.labels())[0].backward()
    assert [n for n, p in both.named_parameters() if p.grad is None or not p.grad.any()] == []
    again = both(students.features(), students.SIZE, generator=noise)
    assert torch.equal(out.outputs["depth"], again.outputs["depth"])


def test_wrong_teachers_are_refused():
    with pytest.raises(
        ValueError, match=r"no features of teacher 'clip' in the batch, there are some of \['clip2', 'dino'\]"
    ):
        model()({"dino": students.features()["dino"], "clip2": []}, students.SIZE)
    with pytest.raises(ValueError, match="at least one teacher"):
        model({})
    with pytest.raises(ValueError, match="dino has no levels"):
        model({"dino": (), "clip": (4, 4, 4)})
    with pytest.raises(ValueError, match="clip: 3 levels in the batch, expected 4"):
        model()({**students.features(), "clip": students.features()["clip"][:3]}, students.SIZE)


@pytest.mark.parametrize("head", ["sak", "linear", "dpt"])
def test_teachers_of_other_numbers_of_levels_join(head):
    """Levels of the model are the first of those with the most; of others, each takes the nearest in depth."""
    teachers = {"five": (8, 8, 12, 12, 16), "clip": 12, "one": (20,)}
    joined = model({**teachers, "clip": (12, 12, 12, 12)}, head=head).eval()
    assert joined.taken == {"five": (0, 1, 2, 3, 4), "clip": (0, 1, 1, 2, 3), "one": (0, 0, 0, 0, 0)}
    g = torch.Generator().manual_seed(0)
    widths = {**teachers, "clip": (12,) * 4}
    features = {name: [torch.randn(2, w, 4, 6, generator=g) for w in ws] for name, ws in widths.items()}
    out = joined(features, students.SIZE)
    assert [tuple(w.shape) for w in out.router_weights["depth"]] == [(2, 3)] * 5
    alone = model({"one": (20,)}, head=head).eval()
    assert alone(features, students.SIZE).outputs["depth"].shape == (2, 1, *students.SIZE)
    shallow = model({"one": (8, 8), "five": teachers["five"]}, depths={"one": (Fraction(1, 4), Fraction(1, 2))})
    assert shallow.taken["one"] == (0, 1, 1, 1, 1), "where its levels lie, not how many they are"
