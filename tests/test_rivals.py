"""InvPT and MLoRE: the releases' numbers, what their decoders take and refuse, and their releases' names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sak_core.losses.step import load_balance
from sak_core.noise import RowNoise
from sak_core.student.decoders import DECODERS, DecoderConfig, InvPTConfig, Levels, MLoREConfig
from sak_core.student.decoders.mlore import Block, ExpertRouter
from sak_core.student.decoders.release import read_release, write_release
from sak_core.weights.tensor_files import Misfit
from tests import formula, parity, rivals, students

FIXTURES = Path(__file__).parent / "fixtures" / "rivals"
CASES = sorted(path.stem for path in FIXTURES.glob("*.json"))
SMALL: dict[str, DecoderConfig] = {
    "invpt": InvPTConfig(embed=20, pred=4),
    "mlore": MLoREConfig(width=12, ranks=(1, 2, 3), task_rank=2, top_k=2),
}


def case(name: str) -> dict:
    found: dict = json.loads((FIXTURES / f"{name}.json").read_text())
    return found


def levels(width: int, grid: tuple[int, int], rows: int = 2) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(rows, width, *grid, generator=g) for _ in range(4)]


def test_every_key_is_within_tolerance() -> None:
    comparisons = parity.compare_folder(FIXTURES)
    assert len(comparisons) == sum(len(load_file(path)) for path in FIXTURES.glob("*.safetensors")) == 302
    assert max(c.share for c in comparisons) <= 1
    assert {c.kind for c in comparisons} >= {"gradient", "scores", "route", "train_loss", "train_running_mean"}


@pytest.mark.parametrize("key", ["gradient/level/1", "route/1/0/edge", "made-up/key"])
def test_the_command_fails_on_a_key_that_is_not_compared_or_wrong(key: str, tmp_path: Path, capsys) -> None:
    name = "mlore-nyud"
    shutil.copy(FIXTURES / f"{name}.json", tmp_path)
    expected = load_file(FIXTURES / f"{name}.safetensors")
    if key == "gradient/level/1":
        del expected[key]
    else:
        expected[key] = expected.get(key, torch.zeros(1)) + 1e-3
    save_file(expected, tmp_path / f"{name}.safetensors")
    assert parity.main([str(tmp_path)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert key in last and ("70 of 70" if key.startswith("route") else " of 7") in last


def _detached(decoder: nn.Module) -> None:
    for conv in decoder.initial.values():
        conv.register_forward_hook(lambda _m, _i, out: out.detach())


def _attached(decoder: nn.Module) -> None:
    class Attached(torch.Tensor):
        def detach(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    for block in [*decoder.first, *decoder.second]:
        for conv in block.enter.values():
            conv.register_forward_hook(lambda _m, _i, out: out.as_subclass(Attached))


def _norms_at(eps: float) -> Callable[[nn.Module], None]:
    def change(decoder: nn.Module) -> None:
        for module in decoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = eps

    return change


def _plain_dilation(decoder: nn.Module) -> None:
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d) and module.dilation == (2, 2):
            module.dilation = module.padding = (1, 1)


@pytest.mark.parametrize(
    ("name", "mistake", "seen_in"),
    [
        ("invpt-nyud", _detached, {"gradient"}),
        ("invpt-nyud", _norms_at(1e-3), {"output", "gradient"}),
        ("invpt-pascal", _plain_dilation, {"output", "up", "gradient"}),
        ("mlore-pascal", _attached, {"gradient"}),
        ("mlore-nyud", _norms_at(1e-3), {"output", "gradient"}),
    ],
)
def test_the_fixtures_show_mistakes(name: str, mistake, seen_in: set[str], monkeypatch) -> None:
    """Else their agreement would say little."""
    build = rivals.build

    def wrong(case: dict) -> tuple[nn.Module, list[str]]:
        decoder, unused = build(case)
        mistake(decoder)
        return decoder, unused

    monkeypatch.setattr(rivals, "build", wrong)
    found = rivals.compare_rival_case(case(name), load_file(FIXTURES / f"{name}.safetensors"))
    bad = {c.kind for c in found if c.share > 1}
    assert seen_in <= bad and (len(seen_in) > 1 or bad == seen_in)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(("width", "grid", "tasks"), [(16, (4, 4), 1), (24, (4, 12), 2), (40, (6, 5), 5)])
def test_decoders_take_other_widths_grids_and_numbers_of_tasks(name: str, width: int, grid, tasks: int) -> None:
    torch.manual_seed(0)
    chosen = students.TASKS[:tasks]
    decoder = SMALL[name].build(chosen, width, 4, grid)
    size = (16 * grid[0], 16 * grid[1])
    noise = RowNoise(0, 0, torch.arange(2))
    out = decoder(Levels(levels(width, grid)), size, noise)
    assert {t: tuple(o.shape) for t, o in out.outputs.items()} == {t.name: (2, t.channels, *size) for t in chosen}
    assert {t: o.shape for t, o in out.initial.items()} == (
        {t: o.shape for t, o in out.outputs.items()} if name == "invpt" else {}
    )
    assert [tuple(route.shape) for route in out.routes] == ([] if name == "invpt" else [(2, tasks, 3)] * 8)
    every = [*out.outputs.values(), *out.initial.values()]
    sum((value * torch.linspace(0, 1, value.numel()).view_as(value)).sum() for value in every).backward()
    # a bias right before BatchNorm has no effect; with it alone, of one image or a routed-out expert, gradients are 0
    assert [n for n, p in decoder.named_parameters() if p.grad is None] == []


def test_invpt_resizes_grids_that_do_not_fit_and_leaves_others_alone() -> None:
    torch.manual_seed(0)
    decoder = SMALL["invpt"].build(students.TASKS, 16, 4, (6, 6)).eval()
    maps = levels(16, (6, 6))
    enlarged = [nn.functional.interpolate(m, (8, 8), mode="bilinear") for m in maps]
    with torch.no_grad():
        ours, theirs = (decoder(Levels(m), (96, 96)).outputs for m in (maps, enlarged))
    assert all(torch.equal(ours[task], theirs[task]) for task in ours)


def test_a_task_may_have_levels_of_its_own() -> None:
    for name, config in SMALL.items():
        torch.manual_seed(0)
        decoder = config.build(students.TASKS, 16, 4, (4, 4)).eval()
        shared, other = levels(16, (4, 4)), [m + 1 for m in levels(16, (4, 4))]
        own = {task.name: shared for task in students.TASKS}
        with torch.no_grad():
            plain = decoder(Levels(shared), (64, 64)).outputs
            same = decoder(Levels(shared, own), (64, 64)).outputs
            changed = decoder(Levels(shared, {**own, "depth": other}), (64, 64)).outputs
        assert all(torch.equal(plain[task], same[task]) for task in plain), name
        assert not torch.equal(plain["depth"], changed["depth"])
        # MLoRE's tasks meet in weights alone, InvPT's in attention, too
        assert torch.equal(plain["normals"], changed["normals"]) == (name == "mlore")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: InvPTConfig(embed=128, pred=10), "multiple of 8; pred = 16 fits"),
        (lambda: InvPTConfig(embed=0), "at least 1"),
        (lambda: MLoREConfig(top_k=16), "there are 15 experts"),
        (lambda: MLoREConfig(ranks=(4,), top_k=1), "at least two experts"),
        (lambda: MLoREConfig(width=2), "at least 4"),
        (lambda: InvPTConfig().build(students.TASKS, 16, 3, (4, 4)), "reads 4 levels of the stem, not 3"),
        (
            lambda: SMALL["mlore"].build(students.TASKS, 16, 4, (4, 4))(Levels(levels(16, (4, 6))), (64, 96)),
            "built for a grid of 4x4 tokens and take no other; this image has 4x6",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_words(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_experts_as_one_convolution_are_the_sum_of_experts() -> None:
    torch.manual_seed(0)
    block = Block(MLoREConfig(width=12, ranks=(1, 4, 2), task_rank=2, top_k=2), ["a"], 16).double()
    a, weights = torch.randn(2, 12, 4, 4).double(), torch.rand(2, 3).double()
    expected = sum(weights[:, j, None, None, None] * expert(a) for j, expert in enumerate(block.experts))
    torch.testing.assert_close(block.mixture(a, weights), expected)


def test_routing_keeps_k_before_or_after_the_softmax() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    before, after = (
        ExpertRouter(MLoREConfig(width=8, ranks=(1,) * 4, top_k=2, pre_softmax=pre), 4).keep(logits)
        for pre in (True, False)
    )
    torch.testing.assert_close(before, torch.tensor([[0.0, *torch.tensor([2.0, 1.0]).softmax(0).tolist(), 0.0]]))
    whole = logits.softmax(1)
    torch.testing.assert_close(after, whole * torch.tensor([[0.0, 1.0, 1.0, 0.0]]))
    assert float(after.sum()) < 1


def test_training_noise_is_the_row_s_own() -> None:
    torch.manual_seed(0)
    decoder = SMALL["mlore"].build(students.TASKS[:2], 16, 4, (4, 4)).train()
    for module in decoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    maps = levels(16, (4, 4))

    def weights(rows: list[int]) -> torch.Tensor:
        noise = RowNoise(0, 3, torch.tensor(rows))
        return decoder(Levels([m[rows] for m in maps]), (64, 64), noise).routes[0]

    torch.testing.assert_close(weights([0, 1])[1], weights([1])[0])
    assert not torch.equal(weights([0]), decoder.eval()(Levels([m[:1] for m in maps]), (64, 64)).routes[0])


def test_load_balance_is_the_squared_coefficient_of_variation() -> None:
    even, one = torch.full((2, 3, 4), 0.25), torch.zeros(2, 3, 4)
    one[..., 0] = 1
    assert load_balance([even]) == 0
    # means 1, 0, 0, 0: deviation 1/2, mean 1/4
    assert load_balance([even, one]).item() == pytest.approx(4)


def test_load_balance_over_processes_is_that_of_the_whole_batch() -> None:
    g = torch.Generator().manual_seed(0)
    parts = [torch.rand(2, 3, 4, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2)]
    whole = load_balance([torch.cat(parts)])
    expected = torch.autograd.grad(whole, parts)
    mean = torch.stack([p.detach().mean((0, 1)) for p in parts]).mean(0)
    for part, gradient in zip(parts, expected, strict=True):
        own = load_balance([part], lambda value: mean)
        torch.testing.assert_close(own, whole)
        # the processes' gradients are averaged
        torch.testing.assert_close(torch.autograd.grad(own, part)[0] / 2, gradient)


@pytest.mark.parametrize("name", CASES)
def test_all_names_of_the_releases_are_known_there_and_back(name: str) -> None:
    made = case(name)
    decoder, unused = rivals.build(made)
    assert sorted(unused) == sorted(made.get("unused", []))
    own = {f"decoder.{key}": value for key, value in decoder.state_dict().items()}
    written = write_release(rivals.decoder_of(made), own, made["tasks"])
    state = formula.state(made["shapes"])
    assert {*written, *unused} == set(state)
    assert all(torch.equal(value, state[key]) for key, value in written.items())


@pytest.mark.parametrize("name", ["invpt-nyud", "mlore-nyud"])
def test_checkpoints_that_do_not_fit_are_refused_by_the_release_s_names(name: str) -> None:
    made = case(name)
    kind, tasks = rivals.decoder_of(made), made["tasks"]
    decoder, _ = rivals.build(made)
    own = {f"decoder.{key}": value for key, value in decoder.state_dict().items()}
    state = formula.state(made["shapes"])
    del state["heads.depth.linear_pred.bias"]
    state["heads.extra.bias"] = torch.zeros(1)
    with pytest.raises(Misfit, match=r"missing: heads.depth.linear_pred.bias; left over: heads.extra.bias"):
        read_release(kind, own, state, tasks)
    order = list(reversed(tasks))
    other = rivals.build({**made, "tasks": tasks})[0]
    by_name = {f"decoder.{key}": value for key, value in other.state_dict().items()}
    if kind == "invpt":
        with pytest.raises(Misfit, match="order semseg, depth, normals, edge, the student's in edge, normals"):
            read_release(kind, by_name, formula.state(made["shapes"]), order)
    else:  # nothing is numbered by tasks
        assert read_release(kind, by_name, formula.state(made["shapes"]), order)[1] == []
    # a safetensors file has its names in the alphabet's order, which says nothing
    alphabetical = dict(sorted(formula.state(made["shapes"]).items()))
    assert read_release(kind, own, alphabetical, tasks)[0].keys() == own.keys()
