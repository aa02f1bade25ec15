"""The model card of an exported student: what it is, what it learned from, how good it is, how to use it."""

from __future__ import annotations

import json
from typing import Any

from huggingface_hub import ModelCardData
from pydantic import Field, ValidationError

from pipeline import PAPER
from pipeline.console import number, table
from pipeline.errors import UserError
from pipeline.probes.loss import Loss
from pipeline.recipes.strict import Strict
from pipeline.runs.licences import Terms, strictest
from pipeline.runs.lineage import DataOrigin, TeacherOrigin
from sak_core.student.pretrained_config import PretrainedConfig
from sak_core.tasks import Task


class About(Strict):
    """Where a student comes from: `PretrainedConfig.about`, checked.

    Attributes:
        scores: {dataset-split: {task: {score: value}}}.
        recipe: the resolved recipe of its last stage.
    """

    run: str
    made_with: str
    arm: str
    stem_weights: str | None
    teachers: tuple[TeacherOrigin, ...]
    data: tuple[DataOrigin, ...]
    parameters: int
    seconds: float
    scores: dict[str, dict[str, dict[str, float]]] = Field(default_factory=dict)
    recipe: dict[str, Any]


def terms_of(config: PretrainedConfig) -> Terms:
    """What the licences of a student's teachers together allow.

    Raises:
        UserError: `config` does not name them.
    """
    return strictest((teacher.name, teacher.licence) for teacher in _about(config).teachers)


def _about(config: PretrainedConfig) -> About:
    try:
        return About.model_validate(config.about)
    except ValidationError as error:
        raise UserError(f"the model does not say where it comes from: {error.errors()[0]['msg']}") from None


def model_card(config: PretrainedConfig, model_id: str, licence: str | None = None) -> str:
    """The card as Markdown with the hub's YAML head.

    Args:
        model_id: what `from_pretrained` is to be given.
        licence: of the student; what its teachers' licences allow together when absent.
    """
    about, terms = _about(config), terms_of(config)
    licences = {teacher.licence for teacher in about.teachers}
    data = ModelCardData(
        license=licence or "other",
        license_name=None if licence else f"teachers-{terms.use.replace(' ', '-')}",
        library_name="sak",
        pipeline_tag="image-segmentation" if config.student.tasks else "image-feature-extraction",
        tags=["knowledge-distillation", "multi-task", *(task.name for task in config.student.tasks)],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {about.run}",
        _summary(config, about),
        _random(config.random_weights),
        "## How to use",
        _use(config, model_id),
        "## Data",
        _data(about),
        "## Teachers",
        _teachers(about),
        _caching(about),
        f"**What it may be used for.** {terms.sentence()}"
        + (f" Its own licence, as whoever exported it says: {licence}." if licence else ""),
        "Licences of the teachers' weights: "
        + (", ".join(sorted(licences)) if licences else "none, as there are no teachers")
        + ". Whether they, and the data's, bind a student that learned from them is for you to judge.",
        "## Scores",
        _scores(config.student.tasks, about),
        "## Recipe",
        f"Trained {about.seconds:.0f} s in all, with {about.made_with}. The last stage, resolved:",
        f"```json\n{json.dumps(about.recipe, indent=1)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def portable_section(written: dict[str, Any]) -> str:
    """The card's section on a file that `pipeline.export.portable` wrote."""
    name = written["file"].rpartition("/")[2]
    kind = (
        f"ONNX, opset {written['opset']}"
        if "opset" in written
        else f"A `torch.export` program (torch {written['torch']})"
    )
    (shape,) = written["input"].values()
    return (
        f"\n## {name}\n\n{kind}. Input `pixels`: uint8 RGB ({', '.join(map(str, shape))}). Outputs, raw: "
        f"{', '.join(f'`{output}`' for output in written['outputs'])}. Classes and saliency are logits by channel, "
        "boundaries a logit, normals not yet of unit length, depth in metres of the image as it is given "
        "(for one that was scaled by s before: times s). Largest difference to the student "
        f"when written: {written['largest_difference']:.1e}.\n"
    )


def _summary(config: PretrainedConfig, about: About) -> str:
    student = config.student
    height, width = student.stem.image_size
    stem = "a ViT of its own" if student.stem.name == "custom" else student.stem.name
    tasks = ", ".join(map(_named, student.tasks)) or "none: features only"
    return (
        f"A vision model of {about.parameters / 1e6:.2f} M parameters (arm `{about.arm}`): stem {stem} "
        f"({about.stem_weights or 'from scratch'}), trained on views of {height}x{width} px.\n"
        f"Tasks: {tasks}.\n\nMethod: [SAK]({PAPER}), a student distilled from several frozen teachers."
    )


def _named(task: Task) -> str:
    kind = f"{len(task.classes)} classes" if task.kind == "classes" else task.kind
    return task.name if kind == task.name else f"{task.name} ({kind})"


def _random(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    return (
        f"> [!CAUTION]\n> **Random weights.** {', '.join(names)} had never been trained when this student learned from "
        f"{'it' if len(names) == 1 else 'them'}: this model is a trial, and its scores say nothing about the method."
    )


def _use(config: PretrainedConfig, model_id: str) -> str:
    lines = [
        "```python",
        "from PIL import Image",
        "from sak_core.student import Student",
        "",
        f'student = Student.from_pretrained("{model_id}")',
        'image = Image.open("photo.jpg")',
    ]
    for task in config.student.tasks[:1]:
        lines.append(f'student(image)["{task.name}"]  # an array of the image\'s size; one for each task')
    patch = f"multiples of {config.student.stem.patch_size}" if config.student.stem.patch_size else "of the patch"
    lines += [f"student.features(batch)  # stem's and paths' maps of uint8 (B, H, W, 3), H and W {patch}", "```"]
    if config.student.tasks:
        lines += ["", f"    sak predict photo.jpg --model {model_id} --out predictions"]
    return "\n".join(lines)


def _data(about: About) -> str:
    rows = [[d.stage, f"{d.dataset} {d.split}", d.size, str(d.samples), str(d.views)] for d in about.data]
    read_at = dict.fromkeys([*(data.read_at for data in about.data), *(one.read_at for one in about.teachers)])
    told = table(["stage", "data", "view", "images", "views"], rows)
    return told + "".join(f"\n\nRead at `{address}`." for address in read_at if address)


def _teachers(about: About) -> str:
    if not about.teachers:
        return "None."
    rows = [
        [
            t.name,
            f"{t.library} {t.model}",
            t.licence,
            f"**random weights** ({t.weights})" if t.is_random else f"`{t.weights[:23]}`",
        ]
        for t in about.teachers
    ]
    return table(["teacher", "from", "licence", "weights"], rows)


def _caching(about: About) -> str:
    """What tasks lose to the codecs of the teachers' caches, where these have probes."""
    probed = [(teacher.name, teacher.probed) for teacher in about.teachers if teacher.probed]
    rows = [
        [
            f"{name} ({features.codec}, token cosine {features.cosine:.4f})",
            f"{task} {loss.score}",
            number(loss.raw),
            number(loss.decoded),
            f"{number(loss.loss, '.2g')} {loss.unit} ({number(loss.low, '.2g')} to {number(loss.high, '.2g')})",
        ]
        for name, features in probed
        for task, loss in ((task, Loss.from_dict(values)) for task, values in features.losses.items())
    ]
    if not rows:
        return ""
    return (
        "What tasks lose where a linear head reads cached features instead of the teacher's own (95 % interval over "
        "images):\n\n" + table(["cached features", "task", "raw", "cached", "loss"], rows)
    )


def _scores(tasks: tuple[Task, ...], about: About) -> str:
    if not about.scores:
        return "None."
    rows = [
        [f"{task.name} {task.score} {'↑' if task.higher_is_better else '↓'}"]
        + [number(scores.get(task.name, {}).get(task.score)) for scores in about.scores.values()]
        for task in tasks
    ]
    return table(["score", *about.scores], rows) + f"\n\nOne run, seed {about.recipe.get('seed')}."
