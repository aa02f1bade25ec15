"""Cases of InvPT and MLoRE for `python -m tests.parity`: what this project computes under the fixtures' keys.

tests/fixtures/rivals/README.md says what the keys are, how inputs are made and how tensors are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sak_core.losses.step import load_balance, task_loss
from sak_core.student.decoders import InvPT, InvPTConfig, JointDecoder, Levels, MLoRE, MLoREConfig
from sak_core.student.decoders.release import read_release
from sak_core.student.reference_config import reference_task
from sak_core.tasks import Task
from tests import formula
from tests.parity import Comparison, comparison_of, labels_of, tolerance_of

NUM_LEVELS = 4
GRADIENT_TOLERANCE = {"invpt": 1e-3, "mlore": 2e-3}
"""As a share of the root mean square of the expected gradient."""


def decoder_of(case: Mapping[str, Any]) -> str:
    """Which decoder a case is of."""
    return "mlore" if "ranks" in case else "invpt"


def tasks_of(case: Mapping[str, Any]) -> tuple[Task, ...]:
    """The case's tasks, in its order."""
    return tuple(reference_task(name, case["channels"][name], nyud=case["dataset"] == "nyud") for name in case["tasks"])


def build(case: Mapping[str, Any]) -> tuple[JointDecoder, list[str]]:
    """The case's decoder in evaluation mode, its weights read through the naming tables, and what these left out."""
    tasks, kind = tasks_of(case), decoder_of(case)
    config: InvPTConfig | MLoREConfig
    if kind == "invpt":
        config = InvPTConfig(embed=case["embed_dim"], pred=case["pred_dim"], heads=case["num_heads"])
    else:
        config = MLoREConfig(
            width=case["embed_dim"],
            ranks=tuple(case["ranks"]),
            task_rank=case["task_rank"],
            top_k=case["topk"],
            pre_softmax=case["pre_softmax"],
        )
    decoder = config.build(tasks, case["width"], NUM_LEVELS, tuple(case["grid"]))
    own = {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    state, unused = read_release(kind, own, formula.state(case["shapes"]), case["tasks"])
    decoder.load_state_dict({name.removeprefix("decoder."): value for name, value in state.items()})
    return decoder.eval(), unused


def inputs(case: Mapping[str, Any]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """A case's four levels, which ask for gradients, and its labels."""
    name, shape = case["name"], (case["batch"], case["width"], *case["grid"])
    levels = [torch.from_numpy(formula.tensor(f"{name}/level/{i}", shape)).requires_grad_() for i in range(NUM_LEVELS)]
    return levels, labels_of(case, tasks_of(case))


def rival_case_values(case: Mapping[str, Any]) -> dict[str, Tensor]:
    """What this project computes for a case, under the fixture's keys."""
    decoder, _ = build(case)
    levels, labels = inputs(case)
    size = tuple(case["image"])
    with Recorder(decoder) as values:
        decoded = decoder(Levels(levels), size)
    values |= {f"output/{task}": value for task, value in decoded.outputs.items()}
    values |= {f"initial/{task}": value for task, value in decoded.initial.items()}
    losses = losses_of(case, decoded, labels)
    losses["total"].backward()
    values |= {f"loss/{key}": value for key, value in losses.items()}
    values |= {f"gradient/level/{i}": torch.zeros_like(x) if x.grad is None else x.grad for i, x in enumerate(levels)}
    if isinstance(decoder, InvPT):
        with torch.no_grad():
            losses = losses_of(case, decoder.train()(Levels(levels), size), labels)
        values |= {f"train_loss/{key}": value for key, value in losses.items()}
        values["train_running_mean/up/1"] = decoder.stages[1].grow[case["tasks"][0]][1].running_mean
    return {key: value.detach() for key, value in values.items()}


def losses_of(case: Mapping[str, Any], decoded: Any, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Unweighted losses by name, and their weighted sum as "total"."""
    found: dict[str, Tensor] = {}
    total = torch.zeros(())
    for task in tasks_of(case):
        found[task.name] = task_loss(task, decoded.outputs[task.name], labels[task.name])
        total = total + task.weight * found[task.name]
        if decoded.initial:
            found[f"initial/{task.name}"] = task_loss(task, decoded.initial[task.name], labels[task.name])
            total = total + task.weight * found[f"initial/{task.name}"]
    if decoded.routes:
        found["balance"] = load_balance(decoded.routes)
        total = total + case["balance"] * found["balance"]
    return {**found, "total": total}


class Recorder:
    """While it is open, a decoder's parts note what they give, under the fixture's keys."""

    def __init__(self, decoder: JointDecoder) -> None:
        self.decoder, self.values = decoder, dict[str, Tensor]()
        self.hooks: list[Any] = []

    def __enter__(self) -> dict[str, Tensor]:
        (self._watch_invpt if isinstance(self.decoder, InvPT) else self._watch_mlore)(self.decoder)
        return self.values

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _note(self, module: nn.Module, key: str) -> None:
        def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.values[key] = output

        self.hooks.append(module.register_forward_hook(note))

    def _watch_invpt(self, decoder: InvPT) -> None:
        tasks: Sequence[str] = list(decoder.heads)
        for task in tasks:
            self._note(decoder.preliminary[task], f"preliminary/{task}")
            self._note(decoder.mixing[task], f"mixed/{task}")
            self._note(decoder.last[task], f"task/{task}")
        for i, stage in enumerate(decoder.stages):
            for task, grow in stage.grow.items():
                self._note(grow, f"up/{i}/{task}")

            def note(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor], i: int = i) -> None:
                self.values[f"scores/{i}"] = output[1]
                self.values.update({f"stage/{i}/{task}": output[0][:, t] for t, task in enumerate(tasks)})

            self.hooks.append(stage.register_forward_hook(note))

    def _watch_mlore(self, decoder: MLoRE) -> None:
        for number, blocks in ((1, decoder.first), (2, decoder.second)):
            for level, block in enumerate(blocks):

                def note(
                    _module: nn.Module, given: Any, output: tuple[Tensor, Tensor], where: str = f"{number}/{level}"
                ) -> None:
                    self.values[f"block/{where}/{given[1]}"], self.values[f"route/{where}/{given[1]}"] = output

                self.hooks.append(block.register_forward_hook(note))
        for task in decoder.heads:
            self._note(decoder.masks[task], f"mask/{task}")

            def noted(_module: nn.Module, given: Any, key: str = f"fused/{task}") -> None:
                self.values[key] = given[0]

            self.hooks.append(decoder.last[task].register_forward_pre_hook(noted))


def stored(value: Tensor) -> Tensor:
    """A tensor as fixtures store it, flat, in double precision."""
    flat = value.detach().double().flatten()
    step = 61 if flat.numel() > 65536 else 7 if flat.numel() > 64 else 1
    return flat[::step]


def compare_rival_case(case: Mapping[str, Any], expected: Mapping[str, Tensor]) -> list[Comparison]:
    """Every key of the fixture against this project, and the gradient of each level whether it is there or not."""
    values = rival_case_values(case)
    comparisons = []
    gradients = {f"gradient/level/{i}" for i in range(NUM_LEVELS)}
    for key in sorted({*expected, *gradients}):
        got, want = values.get(key), expected.get(key)
        if got is None or want is None or stored(got).shape != want.flatten().shape:
            comparisons.append(Comparison(case["name"], key, float("inf"), float("inf")))
            continue
        want = want.double().flatten()
        tolerance = tolerance_of(want)
        if key in gradients:
            # where nothing is expected, nothing else will do
            rms = want.square().mean().sqrt()
            tolerance = torch.full_like(want, float(GRADIENT_TOLERANCE[decoder_of(case)] * rms)).clamp_min(1e-12)
        comparisons.append(comparison_of(case["name"], key, (stored(got) - want).abs(), tolerance))
    return comparisons
