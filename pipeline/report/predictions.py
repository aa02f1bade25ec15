"""Panel 5: what the best model makes of its best, its median and its worst image of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cache.errors import CacheError
from cache.store import Store
from pipeline.errors import UserError
from pipeline.pictures import Picture as Pixels
from pipeline.pictures import colour_classes, colour_depth, colour_normals, depth_span, palette
from pipeline.recipes.arms import features_read, find_arm, run_model
from pipeline.recipes.stores import Caches
from pipeline.report.comparison import standings
from pipeline.report.elements import Block, Column, Figure, Key, Panel, Picture, Table, Text, figure, image, name
from pipeline.report.examples import Opened, open_cache, open_run, split_cache
from pipeline.report.facts import RunFacts, StudyFacts, TaskFacts
from pipeline.training.few_rows import few_rows
from pipeline.training.scales import stored_scales
from sak_core.labels import IGNORE
from sak_core.tasks import Task
from sak_core.tasks.outputs import readable
from sak_core.tasks.own_units import own_label, own_output

Label = npt.NDArray[Any]
PLACES = ("best", "median", "worst")
WRONG, RIGHT = (196, 43, 29), (226, 228, 226)
MOST_KEYS = 16


@dataclass(frozen=True)
class Example:
    """One image of one task: its own score, its truth and prediction in the units of the image, 255 where ignored."""

    place: str
    id: str
    score: float
    image: Pixels
    truth: Label
    prediction: Label


def predictions_panel(found: StudyFacts, features: Caches) -> Panel:
    """A figure a task; where nothing can be drawn, why."""
    title, question = "Predictions", "What does it look like where it does well, and where it fails?"
    run = shown_run(found)
    cache = split_cache(found)
    if run is None or run.on is None:
        return Panel("predictions", title, question, [Text("No run is scored, so no image is its best or its worst.")])
    if cache is None:
        told = f"The cache of {found.split} is not at hand, so {run.name} cannot be shown at work."
        return Panel("predictions", title, question, [Text(told)])
    try:
        opened = open_run(run, features)
        store = open_cache(cache, features_read(opened.recipe))
        blocks: list[Block] = [Text(f"{run.name} on {found.split}, by each image's own score.")]
        for task in opened.tasks:
            facts = next((one for one in found.tasks if one.name == task.name), None)
            per_image = run.on.details.get(task.name, {}).get("per_image", {})
            if facts is None or all(score is None for score in per_image.values()):
                blocks.append(Text(f"{task.name}: no image has a label to be scored by.", "note"))
                continue
            blocks.append(_figure(facts, task, examples(opened, store, facts, task, per_image)))
    except (UserError, CacheError, KeyError) as error:
        blocks = [Text(f"{run.name} cannot be shown at work: {error}")]
    return Panel("predictions", title, question, blocks)


def shown_run(found: StudyFacts) -> RunFacts | None:
    """The best arm's finished run with the lowest seed: of one model for all tasks, if it can be a student's."""
    arms = [one.arm for one in standings(found)]
    students = [arm for arm in arms if (run := arm.first()) and run.lineage and run.lineage.student]
    for arm in (*students, *arms):
        for _, run in sorted(arm.scored.items()):
            if run.state == "finished" and not find_arm(run.recipe["arm"]).per_task:
                return run
    return None


def examples(
    opened: Opened, store: Store, facts: TaskFacts, task: Task, per_image: Mapping[str, float | None]
) -> list[Example]:
    """The best, the median and the worst image that have a score; fewer where there are fewer."""
    known = {id: score for id, score in per_image.items() if score is not None}
    order = sorted(known, key=lambda id: known[id], reverse=facts.higher_is_better)
    chosen = dict.fromkeys(order[place] for place in (0, len(order) // 2, len(order) - 1))
    places = dict(zip((order[-1], order[len(order) // 2], order[0]), reversed(PLACES), strict=True))
    ids = store.ids()
    samples = [ids.index(id) for id in chosen]
    batch = few_rows(store, samples, features_read(opened.recipe), [task.name])
    with torch.inference_mode():
        output = run_model(opened.recipe, opened.model, batch).outputs[task.name]
    scales = stored_scales([task], store, batch)
    labels, outputs = own_label(task, batch.labels[task.name], scales), own_output(task, output, scales)
    return [
        Example(
            places[id],
            id,
            known[id],
            batch.pixels[place].numpy(),
            labels[place].numpy(),
            readable(task, outputs[place]),
        )
        for place, id in enumerate(chosen)
    ]


def error_map(kind: str, truth: Label, prediction: Label) -> tuple[Label, npt.NDArray[np.bool_]]:
    """How wrong a prediction is at every pixel, (H, W), and where that is known.

    Classes: 1 where wrong. Depth: metres. Normals: degrees. Saliency, boundary: difference of probability and truth.
    """
    if kind == "normals":
        valid = ~(truth == IGNORE).all(-1)
        cosine = (truth * prediction).sum(-1).clip(-1, 1)
        return np.degrees(np.arccos(np.where(valid, cosine, 1))), valid
    valid = truth != IGNORE
    if kind == "classes":
        return (valid & (truth != prediction)).astype(np.float32), valid
    difference = np.abs(truth.astype(np.float32) - prediction.astype(np.float32))
    return np.where(valid, difference, 0), valid


UNITS = {"depth": " m", "normals": "°", "classes": "", "saliency": "", "boundary": ""}


def _figure(facts: TaskFacts, task: Task, shown: Sequence[Example]) -> Figure:
    errors = [error_map(task.kind, one.truth, one.prediction) for one in shown]
    most = {"normals": 90.0, "depth": max((float(error.max()) for error, _ in errors), default=1.0)}.get(task.kind, 1.0)
    spans = _spans(task.kind, shown)
    pictures: list[Picture] = []
    table_rows = []
    for one, (error, valid), span in zip(shown, errors, spans, strict=True):
        mean = float(error[valid].mean()) if valid.any() else None
        score = figure(one.score, facts.digits, facts.after)
        told = _error_text(task.kind, mean)
        scale = f"{span[0]:.2f} m (bright) to {span[1]:.2f} m" if task.kind == "depth" else ""
        pictures += [
            image(one.image, f"image {one.id}", f"{one.place}: {one.id}"),
            image(_coloured(task, one.truth, span), f"truth of {one.id}", scale, flat=True),
            image(
                _coloured(task, one.prediction, span),
                f"prediction for {one.id}",
                f"{facts.score} {score.text}",
                flat=True,
            ),
            image(_error_picture(task.kind, error, valid, most), f"error on {one.id}", told, flat=True),
        ]
        table_rows.append([name(one.place), name(one.id), score, figure(mean, 3)])
    unit = {"classes": "share of pixels wrong", "depth": "mean error, m", "normals": "mean error, °"}
    columns = [Column("image", numeric=False), Column("id", numeric=False)]
    columns += [Column(f"{facts.score}, {facts.unit}"), Column(unit.get(task.kind, "mean error"), sense="lower")]
    return Figure(
        f"prediction-{task.name}",
        task.name,
        _legend_text(task.kind, most),
        pictures,
        Table(f"prediction-{task.name}-table", f"{task.name}: the images shown", columns, table_rows),
        _keys(task, shown),
        across=4,
        headings=["image", "truth", "prediction", "error"],
    )


def _spans(kind: str, shown: Sequence[Example]) -> list[tuple[float, float]]:
    """Of depth, the nearest and farthest of an image's truth and prediction: both are drawn on one scale."""
    return [depth_span(one.truth, one.prediction) if kind == "depth" else (0.0, 1.0) for one in shown]


def _coloured(task: Task, label: Label, span: tuple[float, float]) -> Pixels:
    if task.kind == "classes":
        return colour_classes(label.astype(np.uint8), len(task.classes))
    if task.kind == "normals":
        return colour_normals(label.astype(np.float32))
    if task.kind == "depth":
        return colour_depth(label.astype(np.float32), span)
    from matplotlib import colormaps

    colours = (colormaps["gray"](label.astype(np.float32).clip(0, 1))[..., :3] * 255).round().astype(np.uint8)
    mixed: Pixels = np.where((label == IGNORE)[..., None], 127, colours).astype(np.uint8)
    return mixed


def _error_picture(kind: str, error: Label, valid: npt.NDArray[np.bool_], most: float) -> Pixels:
    if kind == "classes":
        colours = np.where(error[..., None] > 0, np.array(WRONG), np.array(RIGHT))
    else:
        from matplotlib import colormaps

        colours = colormaps["magma"]((error / max(most, 1e-6)).clip(0, 1))[..., :3] * 255
    drawn: Pixels = np.where(valid[..., None], colours, 127).round().astype(np.uint8)
    return drawn


def _error_text(kind: str, mean: float | None) -> str:
    if mean is None:
        return "no label"
    return f"{100 * mean:.0f} % of pixels wrong" if kind == "classes" else f"mean {mean:.2f}{UNITS[kind]}"


def _legend_text(kind: str, most: float) -> str:
    ignored = "Pixels without a label are left out."
    if kind == "classes":
        return f"Error: red is wrong, light is right. {ignored}"
    if kind == "normals":
        axes = "Red, green and blue are x, y and z of the direction, (n + 1) / 2."
        return f"{axes} Error: the angle, from black (0°) to white (90° and more). {ignored}"
    if kind == "depth":
        error = f"Error: from black (0 m) to white ({most:.2f} m)."
        return f"Truth and prediction on one scale, near is bright. {error} {ignored}"
    return f"White is certain yes, black certain no. Error: from black (none) to white (1). {ignored}"


def _keys(task: Task, shown: Sequence[Example]) -> list[Key]:
    """The classes that the shown truths and predictions hold, largest first."""
    if task.kind != "classes":
        return []
    counts = sum(
        np.bincount(label.ravel(), minlength=256)[: len(task.classes)]
        for one in shown
        for label in (one.truth.astype(np.uint8), one.prediction.astype(np.uint8))
    )
    colours = palette(len(task.classes))
    present = [int(place) for place in np.argsort(-np.asarray(counts), kind="stable") if np.asarray(counts)[place]]
    keys = [Key("■", "rgb({}, {}, {})".format(*colours[place]), task.classes[place]) for place in present[:MOST_KEYS]]
    if len(present) > MOST_KEYS:
        keys.append(Key("", "inherit", f"and {len(present) - MOST_KEYS} more"))
    return keys
