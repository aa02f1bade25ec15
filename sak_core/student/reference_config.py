"""What student a state dict of the authors' release belongs to, read off its names and shapes."""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from sak_core.student.config import StudentConfig
from sak_core.student.stem import StemConfig
from sak_core.tasks import Task, published_weight

STEMS = {192: "vit_tiny", 384: "vit_small", 768: "vit_base", 1024: "vit_large"}
"""timm's stems by width, all of patch 16."""

PATCH = 16
NYUD_SIZE = (448, 576)
KIND_OF = {
    "semseg": "classes",
    "human_parts": "classes",
    "sal": "saliency",
    "edge": "boundary",
    "normals": "normals",
    "depth": "depth",
}
"""The kind of each of the release's tasks."""


def reference_task(name: str, channels: int, *, nyud: bool) -> Task:
    """The release's task `name` with its published weight and boundary tolerance; classes are numbered, not
    named.

    channels: of its output. nyud: whether it belongs to NYUD-v2 (else PASCAL-Context). Raises ValueError for
    unknown names.
    """
    if name not in KIND_OF:
        raise ValueError(f"the release has no task {name!r}, it has {', '.join(KIND_OF)}")
    kind = KIND_OF[name]
    classes = tuple(f"class{i}" for i in range(channels)) if kind == "classes" else ()
    return Task(name, kind, classes, published_weight(name), 0.011 if nyud else 0.0075)


def reference_config(state: Mapping[str, Tensor], image_size: tuple[int, int] | None = None) -> StudentConfig:
    """The student of a stage 1 or stage 2 checkpoint, teachers and tasks in the order of its entries.

    image_size: (H, W) in px that its position embedding is made for; None takes a square, or 448x576 where
    that fits. Raises ValueError where the state dict is not of the release's making or the size is needed and
    not given.
    """
    names = {name.removeprefix("backbone."): value for name, value in state.items()}
    if "vit.pos_embed" not in names:
        raise ValueError("no state dict of the release: it has no vit.pos_embed (LoRA checkpoints are not read)")
    _, tokens, width = names["vit.pos_embed"].shape
    if width not in STEMS:
        raise ValueError(f"a stem {width} wide is none of the release's, which are {sorted(STEMS)} wide")
    norms = _matches(names, r"out_norms\.(\d+)_(.+)\.weight")
    depth = 1 + max(int(block) for (block,) in _matches(names, r"vit\.blocks\.(\d+)\.norm1\.weight"))
    teachers = list(dict.fromkeys(teacher for (teacher, _) in _matches(names, r"tsap\.(.+)\.(\d+)\.scale")))
    heads = [task for (task,) in _matches(names, r"heads\.(.+)\.last_conv\.weight")]
    levels = sorted({int(block) for block, _ in norms}) or [depth * (k + 1) // 4 - 1 for k in range(4)]
    aligner = any(name.startswith("ts_aligners.") for name in names)
    widths = {
        teacher: tuple(len(names[f"ts_aligners.{block}_{teacher}.weight"]) if aligner else width for block in levels)
        for teacher in teachers
    }
    channels = {task: len(names[f"heads.{task}.last_conv.weight"]) for task in heads}
    nyud = "depth" in channels or channels.get("semseg") == 40
    has_routers = any(name.startswith("mor.") for name in names)
    return StudentConfig(
        stem=StemConfig(f"{STEMS[width]}_patch16_384", image_size or _image_size(tokens - 1)),
        teachers=widths,
        levels=tuple(levels),
        aligner=aligner,
        router="mor" if has_routers or not heads else "none",
        tasks=tuple(reference_task(task, channels[task], nyud=nyud) for task in heads),
    )


def _matches(names: Mapping[str, Tensor], pattern: str) -> list[tuple[str, ...]]:
    return [found.groups() for name in names if (found := re.fullmatch(pattern, name))]


def _image_size(patches: int) -> tuple[int, int]:
    side = math.isqrt(patches)
    if side * side == patches:
        return side * PATCH, side * PATCH
    if patches * PATCH**2 == NYUD_SIZE[0] * NYUD_SIZE[1]:
        return NYUD_SIZE
    raise ValueError(f"a position embedding of {patches} patches is not square: say the image size it is made for")
