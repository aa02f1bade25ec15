"""Panel 4: what each path learned: pictures in the teacher's own basis, and cosines over steps and on held-out rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.errors import CacheError
from cache.store import Store
from pipeline.errors import UserError
from pipeline.recipes.arms import find_arm
from pipeline.recipes.stores import Caches
from pipeline.report.arms import best_arm
from pipeline.report.drawing import INK, colour, css_colour, draw, glyph, marker
from pipeline.report.elements import Block, Column, Figure, Key, Panel, Picture, Table, Text, cells, figure, image, name
from pipeline.report.examples import Opened, open_cache, open_run, split_cache
from pipeline.report.facts import ArmFacts, StudyFacts
from pipeline.studies.sheets import shared_pca
from pipeline.training.few_rows import few_rows, spread_over
from pipeline.training.probes import cosines
from pipeline.training.targets import Targets
from sak_core.errors import TeacherUnavailable
from sak_core.losses.rows import on_finer_grid
from sak_core.student.network import StudentNetwork
from sak_core.student.stem import normalize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEY = re.compile(r"(?P<held>validation/)?cosine/(?P<teacher>.+)_level(?P<level>\d+)")
PICTURED = 3
HELD_OUT = 48
"""Rows that the held-out cosine is of."""

Curves = Mapping[tuple[str, int], Mapping[int, float]]
"""Cosine by (teacher, level from 1) and step."""


@dataclass(frozen=True)
class Nearness:
    """An arm's cosines over steps: of training batches, of the rows that training validated on (empty where it did
    not), and at the end of held-out rows of another cache, by the key of `cosines`."""

    training: Curves
    validation: Curves
    held: Mapping[str, float]


def paths_panel(found: StudyFacts, features: Caches, live: bool = False) -> Panel:
    """The panel of what the paths learned.

    Args:
        live: whether the teachers are run on the pictured images, too, which needs their libraries and weights.
    """
    title, question = (
        "What the paths learned",
        "Does the student see what each teacher sees, and on images it never saw?",
    )
    arm = distilled_arm(found)
    if arm is None:
        return Panel("paths", title, question, [Text("No arm of this report distils a teacher.")])
    blocks: list[Block] = []
    opened, troubles = _opened(arm, features)
    store, why = _pictured_store(found, opened)
    held: dict[str, float] = {}
    if opened and store:
        try:
            held = held_out(opened, store) if store.name != opened.trained_on.name else {}
            blocks += _pictures(opened, store, live)
        except (UserError, CacheError) as error:
            troubles.append(str(error))
    blocks += [Text(f"No pictures of features: {trouble}", "note") for trouble in (*troubles, *why)]
    training, validation = arm_curves(arm)
    if training:
        blocks.append(_curves_figure(arm, Nearness(training, validation, held)))
    else:
        blocks.append(Text(f"{arm.label} has logged no cosines yet."))
    return Panel("paths", title, question, blocks)


def distilled_arm(found: StudyFacts) -> ArmFacts | None:
    """The arm that the panel shows: of those that distil, the best that is finished, or whatever has begun."""
    candidates = [arm for arm in found.arms if _distils(arm)]
    best = best_arm(found, trained=True)
    if best and best.label in [arm.label for arm in candidates]:
        return best
    begun = [arm for arm in candidates if any(run.metrics for run in (*arm.stage1.values(), *arm.runs.values()))]
    return next(iter(begun or candidates), None)


def _distils(arm: ArmFacts) -> bool:
    run = arm.first()
    try:
        return run is not None and find_arm(str(run.recipe.get("arm", arm.arm))).distils
    except UserError:
        return False


def _opened(arm: ArmFacts, features: Caches) -> tuple[Opened | None, list[str]]:
    """The model of the arm's last finished run with the lowest seed; None, and why, where it cannot be opened."""
    finished = [run for runs in (arm.runs, arm.stage1) for _, run in sorted(runs.items()) if run.state == "finished"]
    if not finished:
        return None, [f"no run of {arm.label} is finished."]
    try:
        return open_run(finished[0], features), []
    except (UserError, CacheError) as error:
        return None, [f"{error}."]


def _pictured_store(found: StudyFacts, opened: Opened | None) -> tuple[Store | None, list[str]]:
    """The test cache where it holds the teachers, else the cache that was trained on."""
    if opened is None:
        return None, []
    cache = split_cache(found)
    teachers = opened.recipe.teachers
    if cache and set(teachers) <= set(cache.teachers):
        return open_cache(cache, teachers), []
    if set(teachers) <= set(opened.trained_on.teachers):
        return opened.trained_on, []
    return None, [f"{opened.trained_on.name} does not hold every teacher of {opened.run.name}."]


def _aligned(opened: Opened, pixels: Tensor) -> dict[str, list[Tensor]]:
    assert isinstance(opened.model, StudentNetwork)
    with torch.inference_mode():
        aligned: dict[str, list[Tensor]] = opened.model(normalize(pixels), tasks=False).aligned
    return aligned


# -- pictures ----------------------------------------------------------------------------------------


def _pictures(opened: Opened, store: Store, live: bool) -> list[Block]:
    samples = spread_over(store, PICTURED)
    teachers = opened.recipe.teachers
    batch = few_rows(store, samples, teachers)
    aligned = _aligned(opened, batch.pixels)
    seen = "which it was trained on" if store.name == opened.trained_on.name else "which it never saw in stage 1"
    blocks: list[Block] = []
    for teacher in teachers:
        now, why = _live(store, teacher, samples) if live else (None, "")
        blocks.append(
            _teacher_figure(opened, store, teacher, samples, batch.features[teacher], aligned[teacher], now, seen)
        )
        if why:
            blocks.append(Text(f"{teacher} could not be run here: {why}", "note"))
    if not live:
        blocks.append(Text("The teachers themselves were not run; sak report --live adds their own features.", "note"))
    return blocks


def _live(store: Store, teacher: str, samples: Sequence[int]) -> tuple[Tensor | None, str]:
    """A teacher's deepest level of these rows as it computes it now, (B, C, h, w); None, and why, where it cannot."""
    from pipeline.extraction.running import request_of, start_teacher

    try:
        running = start_teacher(request_of(store.teacher(teacher).provenance, None, "auto", False), store.spec.size)
        maps = running.forward(store.pixels[list(samples), 0])
    except (TeacherUnavailable, UserError, ValueError, ImportError, OSError) as error:
        return None, str(error)
    deepest = max(range(len(running.levels)), key=lambda place: -1 if running.levels[place].prefix else place)
    return torch.from_numpy(np.ascontiguousarray(maps[deepest])).permute(0, 3, 1, 2).float(), ""


def _teacher_figure(
    opened: Opened,
    store: Store,
    teacher: str,
    samples: Sequence[int],
    cached: Sequence[Tensor],
    aligned: Sequence[Tensor],
    live: Tensor | None,
    seen: str,
) -> Figure:
    maps = {
        "cache": cached[-1].float(),
        **({"teacher": live} if live is not None else {}),
        "student": aligned[-1].float(),
    }
    coloured = dict(zip(maps, shared_pca(*maps.values()), strict=True))
    shown = [what for what in ("teacher", "cache", "student") if what in maps]
    near = {what: _cosine(maps[what], maps["cache"]) for what in shown if what != "cache"}
    ids = store.ids()
    pictures: list[Picture] = []
    table_rows = []
    for place, sample in enumerate(samples):
        pictures.append(image(store.pixels[sample, 0], f"image {ids[sample]}", ids[sample]))
        for what in shown:
            picture = (255 * coloured[what][place]).round().to(torch.uint8).permute(1, 2, 0).numpy()
            told = f"cosine {near[what][place]:.3f}" if what in near else "decoded"
            pictures.append(cells(picture, f"{what} features of {ids[sample]} as colours", told))
        table_rows.append([name(ids[sample]), *[figure(values[place], 3) for values in near.values()]])
    headings = {"teacher": f"{teacher} itself", "cache": "its cache", "student": "the student's path"}
    slug = re.sub(r"[^a-z0-9]+", "-", teacher.lower())
    return Figure(
        f"pca-{slug}",
        teacher,
        f"Deepest level; red, green and blue are the first three principal components of {teacher}'s cached features, "
        f"the same for all: equal colours mean equal features. {opened.run.name} on {store.spec.dataset} "
        f"{store.spec.split}, {seen}.",
        pictures,
        Table(
            f"pca-{slug}-table",
            "Mean token cosine to the cached features",
            [Column("image", numeric=False), *[Column(headings[what], sense="higher") for what in near]],
            table_rows,
        ),
        across=1 + len(shown),
        headings=["image", *[headings[what] for what in shown]],
    )


def _cosine(maps: Tensor, target: Tensor) -> list[float]:
    """Mean cosine of tokens by image."""
    one, other = on_finer_grid(maps, target)
    found: list[float] = F.cosine_similarity(one, other, dim=1).flatten(1).mean(1).tolist()
    return found


# -- cosines -----------------------------------------------------------------------------------------


def held_out(opened: Opened, store: Store) -> dict[str, float]:
    """Cosines of rows of another cache than the run was trained on, measured as training measures its own."""
    recipe = opened.recipe
    targets = Targets(recipe, opened.trained_on, recipe.teachers)
    batch = few_rows(store, spread_over(store, HELD_OUT), recipe.teachers)
    found = cosines(_aligned(opened, batch.pixels), targets.balanced(batch.features))
    return {key: float(value) for key, value in found.items()}


def arm_curves(arm: ArmFacts) -> tuple[Curves, Curves]:
    """Cosines over the steps of stage 1 (of stage 2 where there is no other), mean over seeds: of training batches, and
    of the rows that it validated on."""
    for runs in (arm.stage1, arm.runs):
        found: tuple[dict[tuple[str, int], dict[int, list[float]]], ...] = ({}, {})
        for run in runs.values():
            for line in run.metrics:
                for key, value in line.items():
                    if (match := KEY.fullmatch(key)) and value is not None:
                        curves = found[bool(match["held"])]
                        by_step = curves.setdefault((match["teacher"], int(match["level"])), {})
                        by_step.setdefault(line["step"], []).append(value)
        if found[0]:
            training, validation = (
                {key: {step: mean(values) for step, values in sorted(by.items())} for key, by in curves.items()}
                for curves in found
            )
            return training, validation
    return {}, {}


def _curves_figure(arm: ArmFacts, near: Nearness) -> Figure:
    teachers = list(dict.fromkeys(teacher for teacher, _ in near.training))
    levels = sorted({level for _, level in near.training})
    pictures = [
        Picture(
            f"Cosine to {teacher} over steps, a line a level; first and last values in the table",
            svg=draw(
                f"cosine {teacher}",
                220,
                lambda axes, teacher=teacher: _curve_lines(axes, teacher, near),  # type: ignore[misc]
            ),
        )
        for teacher in teachers
    ]
    table_rows = []
    for (teacher, level), by_step in sorted(near.training.items()):
        validated = near.validation.get((teacher, level), {})
        ends = [curve[at(curve)] if curve else None for curve in (by_step, validated) for at in (min, max)]
        other = near.held.get(f"cosine/{teacher}_level{level}")
        table_rows.append([name(f"{teacher}, level {level}"), *[figure(value, 3) for value in (*ends, other)]])
    columns = ["first logged", "last logged", "validation, first", "validation, last", "held-out rows, at the end"]
    seeds = len(arm.stage1) or len(arm.runs)
    return Figure(
        "cosines",
        "Nearness to each teacher over training",
        f"{arm.label}: mean cosine of tokens to the cached features, mean over {seeds} seed{'s' if seeds > 1 else ''}, "
        f"of training batches. {_held_text(near)}",
        pictures,
        Table(
            "cosines-table",
            "Cosines of training batches, of the rows validated on, and of held-out rows by the first seed",
            [Column("teacher and level", numeric=False), *[Column(text, sense="higher") for text in columns]],
            table_rows,
        ),
        [Key(glyph(level), css_colour(level), f"level {level}") for level in levels],
    )


def _held_text(near: Nearness) -> str:
    told = "The cross at the end is of held-out rows. " if near.held else ""
    if near.validation:
        return f"{told}Dashed: rows that were validated on, which training never saw."
    if not told:
        told = "No held-out rows with these teachers are at hand. "
    return f"{told}With validation.every in its recipe, stage 1 logs them over its steps, too."


def _curve_lines(axes: Axes, teacher: str, near: Nearness) -> None:
    for (whose, level), by_step in sorted(near.training.items()):
        if whose != teacher:
            continue
        style: dict[str, Any] = {"color": colour(level), "linewidth": 1.5, "marker": marker(level), "markersize": 4}
        axes.plot(list(by_step), list(by_step.values()), markevery=max(1, len(by_step) // 6), **style)
        if validated := near.validation.get((whose, level)):
            axes.plot(list(validated), list(validated.values()), linestyle=(0, (4, 3)), **style)
        if (value := near.held.get(f"cosine/{teacher}_level{level}")) is not None:
            axes.plot(max(by_step), value, "x", color=colour(level), markersize=7, markeredgewidth=2)
    axes.set_title(teacher, color=INK)
    axes.set_xlabel("step")
    axes.set_ylabel("cosine")
    axes.grid(axis="y")
