"""Heads and routers beyond the published ones."""

import pytest
import torch
import torch.nn.functional as F

from sak_core.losses.step import task_losses
from sak_core.noise import RowNoise
from sak_core.student.decoder import to_map
from sak_core.student.heads import HEADS, build_head
from sak_core.student.router import Router, TokenRouter
from tests import students


def levels(number: int = 4, width: int = 16, grid=(4, 6)) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, width, *grid, generator=g) for _ in range(number)]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("number", [1, 3, 4, 6])
def test_any_head_takes_any_levels_sizes_and_odd_grids(name, number):
    torch.manual_seed(0)
    head = build_head(name, 16, number, 5)
    for grid, size in (((4, 6), (32, 48)), ((3, 5), (48, 80)), ((5, 5), (37, 41))):
        assert head(levels(number, grid=grid), size).shape == (2, 5, *size)


@pytest.mark.parametrize("name", HEADS)
def test_all_parameters_of_a_head_learn(name):
    torch.manual_seed(0)
    head = build_head(name, 16, 4, 5)
    head(levels(), (32, 48)).square().sum().backward()
    # a bias right before BatchNorm has no effect, so it gets no gradient beyond rounding
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", HEADS)
def test_gradients_of_heads_equal_finite_differences(name):
    torch.manual_seed(0)
    head = build_head(name, 16, 4, 2).double().train()
    maps = [m.double().requires_grad_() for m in levels(grid=(2, 2))]
    assert torch.autograd.gradcheck(lambda *m: head(m, (8, 8)).tanh().mean(), maps, eps=1e-6, atol=1e-6)


def test_the_linear_head_is_one_linear_map_of_all_levels():
    torch.manual_seed(0)
    head = build_head("linear", 16, 4, 5).eval()
    maps = levels()
    joined = torch.cat(maps, 1)
    by_conv = F.conv2d(joined / (1 + 1e-5) ** 0.5, head.last.weight[:, :, None, None], head.last.bias)
    torch.testing.assert_close(head(maps, (4, 6)), by_conv)


def test_the_dpt_head_reassembles_at_published_scales():
    head = build_head("dpt", 16, 4, 5)
    sizes = []
    for module in head.reassembled:
        module.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[2:])))
    head(levels(), (32, 48))
    assert sizes == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("name", HEADS)
def test_a_student_with_any_head_fits_a_batch(name):
    student = students.student(head=name)
    x, y = students.images(), students.labels()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        total, _ = task_losses(students.TASKS, student(x, generator=RowNoise(0, step, torch.arange(2))).outputs, y)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    # the labels are noise a pixel, which no head of a coarse grid can fit further in so few steps
    assert losses[-1] < 0.9 * losses[0]


def routers(kind, width=16, experts=3):
    torch.manual_seed(0)
    made = kind(width, experts).eval()
    torch.nn.init.normal_(made.gates.weight)
    return made


def test_published_router_averages_the_logits_over_tokens():
    router, tokens = routers(Router), torch.randn(2, 24, 16)
    by_token = router.gates(F.gelu(router.norm(router.hidden(tokens))))
    expected = by_token.mean(1)[:, :3].softmax(1)
    torch.testing.assert_close(router(tokens)[:, :, 0], expected)


def test_token_router_weighs_each_token_by_itself():
    router, tokens = routers(TokenRouter), torch.randn(2, 24, 16)
    weights = router(tokens)
    assert weights.shape == (2, 3, 24)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 24))
    order = torch.randperm(24)
    torch.testing.assert_close(router(tokens[:, order]), weights[:, :, order])
    shared = routers(Router)
    for i in range(0, 24, 7):
        torch.testing.assert_close(shared(tokens[:, i : i + 1]), weights[:, :, i : i + 1])


@pytest.mark.parametrize("kind", [Router, TokenRouter])
def test_training_noise_has_the_learned_spread(kind):
    router = routers(kind).train()
    tokens = torch.randn(1, 1, 16).expand(1, 40_000, 16)
    with torch.no_grad():
        weights = router(tokens, RowNoise(0, 0, torch.zeros(1, dtype=torch.int64)), "x")[0]
        logits, raw = router.gates(F.gelu(router.norm(router.hidden(tokens[0, 0])))).chunk(2)
    # differences of logits are normal, with variances that add up
    difference = weights[0].log() - weights[1].log()
    spread = F.softplus(raw) + 0.01
    assert difference.mean().item() == pytest.approx((logits[0] - logits[1]).item(), abs=0.03)
    assert difference.std().item() == pytest.approx((spread[0] ** 2 + spread[1] ** 2).sqrt().item(), rel=0.03)


def test_a_student_with_token_routers():
    student = students.student(router="token").eval()
    out = student(students.images())
    assert [tuple(w.shape) for w in out.router_weights["depth"]] == [(2, 3)] * 4
    with torch.no_grad():
        tokens = student.stem(students.images())
        stem = tokens[student.levels[0] + 1][:, 1:]
        paths = student.path_features(tokens)
        weights = student.routers["depth"][0](stem)
        experts = torch.stack([stem, paths["dino"][0], paths["clip"][0]], 1)
        mixed = to_map((experts * weights[..., None]).sum(1), (4, 6))
    seen = []
    student.heads["depth"].register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
    student(students.images())
    torch.testing.assert_close(seen[0], mixed)
