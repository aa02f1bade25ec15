"""Panel 3: what the routers take of which expert, whether seeds agree, and what leaving a teacher out costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cache.errors import CacheError
from cache.store import Store
from pipeline.errors import UserError
from pipeline.recipes.arms import features_read, run_model
from pipeline.recipes.stores import Caches
from pipeline.report.answer import comparison_cells, comparison_columns
from pipeline.report.arms import best_arm
from pipeline.report.comparison import versus
from pipeline.report.drawing import INK, draw, heat
from pipeline.report.elements import (
    SPREAD,
    Block,
    Column,
    Figure,
    Panel,
    Picture,
    Table,
    Text,
    cells,
    figure,
    image,
    name,
    without_empty_spread,
)
from pipeline.report.examples import Opened, open_cache, open_run, split_cache
from pipeline.report.facts import ArmFacts, StudyFacts
from pipeline.studies.findings import lacking_teacher
from pipeline.studies.router_weights import router_weights
from pipeline.studies.statistics import Summary, summary
from pipeline.training.few_rows import few_rows, spread_over
from sak_core.student.router import TokenRouter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Float64 = npt.NDArray[np.float64]
EXAMPLES = 2


def routers_panel(found: StudyFacts, features: Caches) -> Panel:
    """Weights, their spread over seeds, the price of leaving a teacher out, and maps of token routers."""
    title, question = (
        "What the routers do",
        "Which teacher does each task take from, at which level, and is that stable?",
    )
    routed = {arm.label: weights for arm in found.arms if (weights := arm_weights(arm))}
    if not routed:
        told = "No run has logged router weights: no arm here has routers, or none has come to its stage 2."
        return Panel("routers", title, question, [Text(told)])
    best = best_arm(found)
    first = best.label if best and best.label in routed else next(iter(routed))
    blocks: list[Block] = [_stability(first, routed[first]), _weights_figure(first, routed[first])]
    blocks += [_weights_table(label, weights, folded=True) for label, weights in routed.items() if label != first]
    arm = found.arm(first)
    if arm:
        blocks.append(_left_out(found, arm, routed[first]))
    blocks += [block for label in routed for block in _token_maps(found, label, features)]
    return Panel("routers", title, question, blocks)


def arm_weights(arm: ArmFacts) -> dict[tuple[str, int, str], Summary]:
    """An arm's weights, mean and std over its seeds."""
    by_run = [weights for run in arm.runs.values() if (weights := router_weights(run.metrics, run.steps))]
    keys = dict.fromkeys(key for weights in by_run for key in weights)
    return {key: summary([weights.get(key) for weights in by_run]) for key in keys}


def _stability(label: str, weights: Mapping[tuple[str, int, str], Summary]) -> Text:
    spreads = {key: one.std for key, one in weights.items() if one.std is not None}
    if not spreads:
        return Text(f"{label}, one seed: whether another one would weigh alike cannot be told.", "note")
    (task, level, expert), most = max(spreads.items(), key=lambda item: item[1])
    typical = mean(spreads.values())
    return Text(
        f"{label}: over seeds a weight varies by {typical:.3f} (standard deviation, mean of all), most by {most:.3f}: "
        f"{task}, level {level}, {expert}."
    )


def _shape(weights: Mapping[tuple[str, int, str], Summary]) -> tuple[list[str], list[int], list[str]]:
    """The tasks, levels and experts that there are weights of."""
    tasks, experts = (list(dict.fromkeys(key[place] for key in weights)) for place in (0, 2))
    return list(map(str, tasks)), sorted({level for _, level, _ in weights}), list(map(str, experts))


def _weights_figure(label: str, weights: Mapping[tuple[str, int, str], Summary]) -> Figure:
    tasks, levels, experts = _shape(weights)
    pictures = []
    for task in tasks:
        values = np.array([[_mean(weights, (task, level, expert)) for expert in experts] for level in levels])
        svg = draw(
            f"router {task}",
            96 + 26 * len(levels),
            lambda axes, task=task, values=values: _heat(axes, task, values, levels, experts),  # type: ignore[misc]
            70 + 62 * len(experts),
        )
        pictures.append(Picture(f"Router weights of {task}: rows are levels, columns experts; numbers below", svg=svg))
    caption = (
        f"{label}: mean weight of each expert, which add up to 1 in a row. Level 1 is the shallowest. Of the last "
        "batches of training, mean over seeds."
    )
    return Figure("router-weights", "Task × level × expert", caption, pictures, _weights_table(label, weights))


def _mean(weights: Mapping[tuple[str, int, str], Summary], key: tuple[str, int, str]) -> float:
    found = weights.get(key)
    return float("nan") if found is None or found.mean is None else found.mean


def _heat(axes: Axes, task: str, values: Float64, levels: Sequence[int], experts: Sequence[str]) -> None:
    heat(axes, values, [str(level) for level in levels], experts, 2)
    axes.set_title(task, color=INK)
    axes.set_ylabel("level")


def _weights_table(label: str, weights: Mapping[tuple[str, int, str], Summary], folded: bool = False) -> Table:
    tasks, levels, experts = _shape(weights)
    empty = Summary(None, None, 0)
    rows = [
        [
            name(f"{task}, level {level}"),
            *[
                cell
                for expert in experts
                for one in [weights.get((task, level, expert), empty)]
                for cell in (figure(one.mean, 3), figure(one.std, 3, tone="quiet"))
            ],
        ]
        for task in tasks
        for level in levels
    ]
    columns = [Column("task and level", numeric=False)]
    for place, expert in enumerate(experts):
        columns += [Column(expert), Column(SPREAD + " " * place)]
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower())
    caption = f"{label}: router weights, mean and standard deviation over seeds"
    return without_empty_spread(Table(f"router-{slug}", caption, columns, rows, folded))


def _left_out(found: StudyFacts, arm: ArmFacts, weights: Mapping[tuple[str, int, str], Summary]) -> Block:
    """Beside a teacher's weight in a task, what the task loses without that teacher."""
    pairs = [(without, other) for other in found.scored if (without := _lacks(arm, other))]
    if not pairs:
        return Text(
            f"No variation leaves a teacher of {arm.label} out, so what a weight is worth is not known: add one to the "
            "study, [[variations]] set = { teachers = [...] } with all but one.",
            "note",
        )
    table_rows = []
    for teacher, other in pairs:
        for task in found.tasks:
            of = [one.mean for (t, _, expert), one in weights.items() if (t, expert) == (task.name, teacher)]
            known = [value for value in of if value is not None]
            cells_ = comparison_cells(versus(found, other, task, arm.label), task.digits)
            weight = figure(mean(known) if known else None, 3)
            table_rows.append([name(teacher), name(f"{task.name} {task.score}"), weight, *cells_])
    columns = [Column("left out", numeric=False), Column("task", numeric=False), Column("its weight")]
    columns += comparison_columns("difference")
    caption = (
        f"What leaving a teacher out costs: its mean weight in {arm.label}, and the score without it against "
        f"{arm.label}, paired by seed, in the score's unit"
    )
    return Table("left-out", caption, columns, table_rows)


def _lacks(arm: ArmFacts, other: ArmFacts) -> str:
    """The one teacher that `arm` has and `other`, which is like it otherwise, has not; empty where that is not so."""
    mine, theirs = arm.first(), other.first()
    if mine is None or theirs is None or arm.arm != other.arm:
        return ""
    return lacking_teacher(mine.recipe.get("teachers") or [], theirs.recipe.get("teachers") or [])


def _token_maps(found: StudyFacts, label: str, features: Caches) -> list[Block]:
    """Where over an image a token router takes which expert, at the deepest level."""
    arm = found.arm(label)
    run = arm.first() if arm else None
    cache = split_cache(found)
    if run is None or run.recipe.get("student", {}).get("router") != "token":
        return []
    if cache is None or run.state != "finished":
        return [Text(f"{label} has token routers; maps of them need its test cache, which is not at hand.", "note")]
    try:
        opened = open_run(run, features)
        store = open_cache(cache, features_read(opened.recipe))
        samples = spread_over(store, EXAMPLES)
        maps = token_weights(opened, store, samples)
    except (UserError, CacheError) as error:
        return [Text(f"Maps of the token routers of {label} cannot be drawn: {error}", "note")]
    return [maps_figure(task, label, opened, store, samples, values) for task, values in maps.items()]


def token_weights(opened: Opened, store: Store, samples: Sequence[int]) -> dict[str, torch.Tensor]:
    """Weights of the token routers at the deepest level: (B, experts, h, w) by task."""
    kept: dict[str, torch.Tensor] = {}
    hooks = []
    routers = opened.model.routers
    assert isinstance(routers, nn.ModuleDict)
    for task, levels in routers.items():
        assert isinstance(levels, nn.ModuleList)
        router = levels[-1]
        assert isinstance(router, TokenRouter)
        hooks.append(router.register_forward_hook(lambda _, __, w, task=task: kept.__setitem__(task, w)))
    batch = few_rows(store, samples, features_read(opened.recipe))
    try:
        with torch.inference_mode():
            output = run_model(opened.recipe, opened.model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    maps = output.stem or next(iter(batch.features.values()))
    height, width = maps[-1].shape[2:]
    return {task: weights.view(*weights.shape[:2], height, width) for task, weights in kept.items()}


def maps_figure(
    task: str, label: str, opened: Opened, store: Store, samples: Sequence[int], values: torch.Tensor
) -> Figure:
    """Weights of one task's token routers, as `token_weights` gives them, beside the images."""
    experts = [*(() if values.shape[1] == len(opened.recipe.teachers) else ("stem",)), *opened.recipe.teachers]
    ids = store.ids()
    pictures, table_rows = [], []
    for place, sample in enumerate(samples):
        pictures.append(image(store.pixels[sample, 0], f"image {ids[sample]}", ids[sample]))
        shares = values[place].flatten(1).mean(1).tolist()
        for expert, share, weights in zip(experts, shares, values[place].numpy(), strict=True):
            grey = np.repeat((255 * weights.clip(0, 1)).round().astype(np.uint8)[..., None], 3, axis=-1)
            pictures.append(cells(grey, f"weight of {expert} over {ids[sample]}", f"{expert}, mean {share:.2f}"))
        table_rows.append([name(ids[sample]), *[figure(share, 3) for share in shares]])
    columns = [Column("image", numeric=False), *[Column(expert) for expert in experts]]
    slug = re.sub(r"[^a-z0-9]+", "-", f"token-{label}-{task}".lower())
    return Figure(
        slug,
        f"Where {task} takes which expert",
        f"{label}, deepest level: white is all of it, black nothing.",
        pictures,
        Table(f"{slug}-table", "Mean weights", columns, table_rows),
        across=1 + len(experts),
        headings=["image", *experts],
    )
