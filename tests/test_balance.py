"""Balances, their Hadamard matrices, teacher dropping and the relational loss."""

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard
from scipy.stats import ortho_group

from sak_core.losses.balance import Balance, ChannelStatistics, phi_s, standardize
from sak_core.losses.dropping import TeacherDropping
from sak_core.losses.hadamard import hadamard
from sak_core.losses.step import distillation_loss
from sak_core.noise import RowNoise
from tests import students


def statistics(tokens: torch.Tensor) -> ChannelStatistics:
    return ChannelStatistics(tokens.mean(0), torch.cov(tokens.T, correction=0))


def anisotropic(width: int, rows: int = 4000) -> torch.Tensor:
    """Tokens whose principal deviations span four orders of magnitude, around a mean far from 0."""
    g = torch.Generator().manual_seed(width)
    spread = torch.logspace(-2, 2, width, dtype=torch.float64)
    rotation = torch.from_numpy(ortho_group.rvs(width, random_state=0))
    return torch.randn(rows, width, generator=g, dtype=torch.float64) * spread @ rotation + 50


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 28, 36, 44, 64, 96, 128, 192, 384, 768, 1024])
def test_hadamard_rows_are_orthogonal(order):
    matrix = hadamard(order).astype(np.int64)
    assert set(np.unique(matrix)) <= {-1, 1}
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order, dtype=np.int64))


def test_hadamard_of_widths_of_common_towers_exist_and_others_are_refused():
    for width in (1152, 1280, 1408, 1536, 1664, 2048):
        probe = hadamard(width)[[0, 1, width // 3, -1]].astype(np.int64)
        assert np.array_equal(probe @ probe.T, width * np.eye(4, dtype=np.int64))
    for order in (3, 6, 92):
        with pytest.raises(ValueError, match=f"order {order}"):
            hadamard(order)
    assert np.array_equal(hadamard(2), scipy_hadamard(2))


@pytest.mark.parametrize("width", [12, 16, 36])
def test_phi_s_gives_every_channel_variance_one_by_a_rotation(width):
    tokens = anisotropic(width)
    balance = phi_s(statistics(tokens))
    maps = tokens.float().reshape(40, 10, 10, width).permute(0, 3, 1, 2)
    balanced = balance(maps).permute(0, 2, 3, 1).reshape(-1, width).double()
    torch.testing.assert_close(balanced.mean(0), torch.zeros(width).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(balanced.var(0, correction=0), torch.ones(width).double(), atol=1e-3, rtol=1e-3)
    # all distances shrink by one factor
    factor = torch.cdist(balanced[:50], balanced[:50]) / torch.cdist(tokens[:50], tokens[:50])
    upper = factor[torch.triu_indices(50, 50, 1).unbind()]
    torch.testing.assert_close(upper, upper.mean().expand_as(upper), rtol=1e-3, atol=0)
    torch.testing.assert_close(balance.inverse(balance(maps)), maps, rtol=1e-3, atol=1e-2)


def test_phi_s_by_hand():
    """Covariance diag(1, 7): mean variance 4, and the Hadamard matrix of order 2 mixes both axes evenly."""
    balance = phi_s(ChannelStatistics(torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([1.0, 7.0]))))
    point = torch.tensor([1.0 + 4.0, 2.0 + 6.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(balance(point).flatten(), torch.tensor([10.0, -2.0]) / 2 / 2**0.5)


def test_standardize_gives_every_channel_mean_0_and_variance_1():
    tokens = anisotropic(6)
    balanced = standardize(statistics(tokens))(tokens.float().T.reshape(1, 6, 40, 100)).flatten(2)[0]
    torch.testing.assert_close(balanced.mean(1), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(balanced.var(1, correction=0), torch.ones(6), atol=1e-3, rtol=1e-3)


def test_balance_maps_all_levels_and_names_what_is_wrong():
    features = students.features()
    made = {
        name: [statistics(m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]).double()) for m in maps]
        for name, maps in features.items()
    }
    same = Balance("none", {})(features)
    assert all(a is b for name in features for a, b in zip(same[name], features[name], strict=True))
    balanced = Balance("phi-s", made)(features)
    for name, maps in balanced.items():
        for m, original in zip(maps, features[name], strict=True):
            assert m.shape == original.shape
            torch.testing.assert_close(m.var((0, 2, 3), correction=0), torch.ones(m.shape[1]), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="unknown balance 'phis'; did you mean phi-s"):
        Balance("phis", made)
    with pytest.raises(ValueError, match="no statistics of teacher 'clip'"):
        Balance("standardize", {"dino": made["dino"]})(features)
    with pytest.raises(ValueError, match="dino level 1: no Hadamard matrix of order 6"):
        wide = ChannelStatistics(torch.zeros(6), torch.eye(6))
        Balance("phi-s", {"dino": [made["dino"][0], wide]})
    with pytest.raises(ValueError, match=r"clip level 0: channels \[1\] are constant"):
        flat = ChannelStatistics(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.0])))
        Balance("standardize", {"clip": [flat]})
    with pytest.raises(ValueError, match="covariance of 3 channels"):
        ChannelStatistics(torch.zeros(3), torch.eye(2))


def rows(number: int) -> RowNoise:
    return RowNoise(0, 1, torch.arange(number))


def test_the_hardest_teacher_is_never_dropped():
    losses = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    kept = TeacherDropping(1.0, rows(500)).kept(losses)
    assert torch.equal(kept, torch.nn.functional.one_hot(losses.argmax(1), 3).float())
    assert torch.equal(TeacherDropping(0.0, rows(500)).kept(losses), torch.ones(500, 3))


def test_others_are_dropped_with_the_probability_independently():
    losses = torch.tensor([3.0, 2.0, 1.0]).expand(20000, 3)
    kept = TeacherDropping(0.3, rows(20000)).kept(losses)
    assert kept[:, 0].all()
    assert kept[:, 1:].mean(0).tolist() == pytest.approx([0.7, 0.7], abs=0.015)
    assert abs(torch.corrcoef(kept[:, 1:].T)[0, 1]) < 0.03
    with pytest.raises(ValueError, match=r"probability in \[0, 1\]"):
        TeacherDropping(1.5)


def test_dropping_none_changes_nothing_and_dropping_all_keeps_the_hardest():
    aligned, targets = students.features(seed=5), students.features(seed=6)
    total, terms = distillation_loss(aligned, targets)
    same, _ = distillation_loss(aligned, targets, dropping=TeacherDropping(0.0, rows(2)))
    torch.testing.assert_close(same, total)
    one_row = {n: [m[:1] for m in maps] for n, maps in aligned.items()}
    target_row = {n: [m[:1] for m in maps] for n, maps in targets.items()}
    dropped, kept_terms = distillation_loss(one_row, target_row, dropping=TeacherDropping(1.0, rows(1)))
    sums = {name: sum(v for n, v in kept_terms.items() if n.startswith(name)) for name in aligned}
    torch.testing.assert_close(dropped, 2 * max(sums.values()))
    assert set(terms) == set(kept_terms)


def relational(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return distillation_loss({"t": [student]}, {"t": [teacher]}, "relational")[0]


def test_relational_by_hand():
    """Two tokens: at right angles for the student, alike for the teacher; Gram matrices differ by 1 in two of
    four places.
    """
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).reshape(1, 2, 1, 2)
    teacher = torch.tensor([[1.0, 5.0], [1.0, 5.0]]).reshape(1, 2, 1, 2)
    assert relational(student, teacher).item() == pytest.approx(0.5)


def test_relational_ignores_rotations_and_lengths_but_not_images():
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 5, 4, 6, generator=g)
    rotation = torch.from_numpy(ortho_group.rvs(5, random_state=1)).float()
    turned = torch.einsum("dc,bchw->bdhw", rotation, teacher) * torch.rand(3, 1, 4, 6, generator=g).add(0.5)
    assert relational(turned, teacher).item() == pytest.approx(0, abs=1e-10)
    assert relational(teacher.roll(1, 0), teacher) > 0.1


def test_relational_compares_on_the_students_grid_and_its_gradient_is_right():
    g = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 2, 3, generator=g, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(2, 3, 4, 6, generator=g, dtype=torch.float64)
    resized = torch.nn.functional.interpolate(teacher, (2, 3), mode="bilinear")
    torch.testing.assert_close(relational(student, teacher), relational(student, resized))
    assert torch.autograd.gradcheck(lambda s: relational(s, teacher), student)


def test_relational_adds_to_the_published_loss():
    aligned, targets = students.features(seed=5), students.features(seed=6)
    both = distillation_loss(aligned, targets, "cos+l1", relational=1.0)[0]
    parts = sum(distillation_loss(aligned, targets, kind)[0] for kind in ("cos+l1", "relational"))
    torch.testing.assert_close(both, parts)
