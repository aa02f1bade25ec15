"""What student a state dict of the authors' release belongs to, read off its names and shapes."""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from sak_core.student.config import StudentConfig
from sak_core.student.decoders import InvPTConfig, MLoREConfig
from sak_core.student.stem import StemConfig
from sak_core.tasks import Task, published_max_dist, published_weight
from sak_core.views.policies import NYUD_SIZE

STEMS = {192: "vit_tiny", 384: "vit_small", 768: "vit_base", 1024: "vit_large"}
"""timm's stems by width, all of patch 16."""

PATCH = 16
PUBLISHED_ORDERS = (("semseg", "depth", "normals", "edge"), ("semseg", "human_parts", "sal", "normals", "edge"))
"""Tasks as the releases order them on NYUD-v2 and PASCAL-Context."""
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

    Args:
        channels: of its output.
        nyud: whether it belongs to NYUD-v2 (else PASCAL-Context).

    Raises:
        ValueError: the name is unknown.
    """
    if name not in KIND_OF:
        raise ValueError(f"the release has no task {name!r}, it has {', '.join(KIND_OF)}")
    kind = KIND_OF[name]
    classes = tuple(f"class{i}" for i in range(channels)) if kind == "classes" else ()
    return Task(name, kind, classes, published_weight(name), published_max_dist("nyud" if nyud else "pascal"))


def reference_config(state: Mapping[str, Tensor], image_size: tuple[int, int] | None = None) -> StudentConfig:
    """The student of a stage 1 or stage 2 checkpoint, teachers and tasks in the order of its entries.

    Args:
        image_size: (H, W) in px that its position embedding is made for; None takes a square, or 448x576 where that
            fits.

    Raises:
        ValueError: the state dict is not of the release's making, or the size is needed and not given.
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


def rival_config(state: Mapping[str, Tensor], image_size: tuple[int, int] | None = None) -> StudentConfig | None:
    """The student of a checkpoint of InvPT's or MLoRE's release, tasks in the order of its entries (in the published
    one where that is only the alphabet's, as in safetensors files); None where it is neither's.

    Of MLoRE's routing a checkpoint says nothing: it is the published one of the data set, 9 experts kept (or all of
    fewer).

    Args:
        image_size: as for `reference_config`.

    Raises:
        ValueError: as `reference_config`.
    """
    found = _matches(state, r"multi_task_decoder\.(intermediate_head)\..+\.weight")
    is_invpt = bool(found)
    if not is_invpt and "backbone.fea_fuse.0.weight" not in state:
        return None
    if "backbone.pos_embed" not in state:
        raise ValueError("the checkpoint has no backbone.pos_embed: it holds a decoder without its ViT")
    channels = {t: len(state[f"heads.{t}.linear_pred.weight"]) for t in _published_order(state)}
    nyud = "depth" in channels or channels.get("semseg") == 40
    _, tokens, width = state["backbone.pos_embed"].shape
    if width not in STEMS:
        raise ValueError(f"a ViT {width} wide is none of the release's, which are {sorted(STEMS)} wide")
    has_token = "backbone.cls_token" in state
    return StudentConfig(
        stem=StemConfig(
            f"{STEMS[width]}_patch16_384", image_size or _image_size(tokens - has_token), class_token=has_token
        ),
        router="none",
        tasks=tuple(reference_task(task, number, nyud=nyud) for task, number in channels.items()),
        decoder=_invpt_sizes(state) if is_invpt else _mlore_sizes(state, nyud),
    )


def _invpt_sizes(state: Mapping[str, Tensor]) -> InvPTConfig:
    decoder = "multi_task_decoder."
    embed = next(
        len(state[f"{decoder}preliminary_decoder.{task}.1.conv.weight"])
        for (task,) in _matches(state, r"multi_task_decoder\.intermediate_head\.(.+)\.weight")
    )
    whole = len(state[f"{decoder}invpt.invpt_stages.0.blocks.0.norm1.weight"])
    return InvPTConfig(
        embed=embed,
        pred=whole - embed,
        heads=len(state[f"{decoder}invpt.invpt_stages.1.blocks.0.attn.fuse_attn.weight"]),
    )


def _mlore_sizes(state: Mapping[str, Tensor], nyud: bool) -> MLoREConfig:
    block = "backbone.MLoRE_1.0."
    experts = _matches(state, r"backbone\.MLoRE_1\.0\.lora_list_1\.(\d+)\.W\.weight")
    ranks = tuple(len(state[f"{block}lora_list_1.{j}.W.weight"]) for j in range(len(experts)))
    task_rank = next(len(value) for name, value in state.items() if re.match(rf"{block}conv2\.[^.]+\.W\.weight", name))
    return MLoREConfig(
        width=len(state["backbone.fea_fuse.0.weight"]),
        ranks=ranks,
        task_rank=task_rank,
        top_k=min(9, len(ranks)),
        pre_softmax=nyud,
    )


def _published_order(state: Mapping[str, Tensor]) -> list[str]:
    """The tasks of a rival's checkpoint.

    Raises:
        ValueError: the alphabet alone orders them.
    """
    found = [task for (task,) in _matches(state, r"heads\.([^.]+)\.linear_pred\.weight")]
    if found != sorted(found) or len(found) == 1:
        return found
    for order in PUBLISHED_ORDERS:
        if sorted(order) == found:
            return list(order)
    raise ValueError(
        f"the tasks {', '.join(found)} stand in the alphabet's order, as safetensors files have it, and are those of "
        "no published data set: give the checkpoint as a torch file, which keeps their order"
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
