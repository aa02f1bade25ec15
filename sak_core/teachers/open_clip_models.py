"""Teachers from open_clip: the image towers of contrastive models.

The tower runs at the view's size, each side at the nearest multiple of its patch, its position embedding
resampled. QuickGELU is used where the weights were trained with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sak_common.names import UnknownName, unknown
from sak_core.errors import TeacherUnavailable
from sak_core.interfaces.teacher import Teacher, TeacherSpec, fit_to_patch, freeze, prefix_as_map
from sak_core.teachers.probing import first_that_covers
from sak_core.teachers.timm_models import timm_teacher
from sak_core.weights.hub import quiet
from sak_core.weights.positions import resample_positions
from sak_core.weights.teacher_weights import (
    BuildOptions,
    choose_levels,
    hub,
    identity,
    load_weights,
    seeded,
)


class OpenClipTeacher(Teacher):
    """An open_clip vision transformer: the blocks' patch tokens as maps, without norm."""

    def __init__(self, spec: TeacherSpec, net: nn.Module, prefix: bool = False) -> None:
        super().__init__(spec)
        self.net = net
        self.num_prefix = 1 if prefix else 0  # a class token, which every tower has

    def features(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, *spec.input_size) to one map a level, then the class token of each where it is asked for."""
        output: dict[str, Any] = self.net.forward_intermediates(  # type: ignore[operator]
            images,
            indices=list(self.spec.levels),
            stop_early=True,
            normalize_intermediates=False,
            intermediates_only=True,
            output_fmt="NCHW",
            output_extra_tokens=self.num_prefix > 0,
        )
        prefixes = output.get("image_intermediates_prefix", ())
        return [*output["image_intermediates"], *map(prefix_as_map, prefixes)]


def build_open_clip(name: str, model: str, options: BuildOptions, licence: str = "") -> Teacher:
    """Build a teacher from an open_clip model's image tower.

    Args:
        name: the teacher's.
        model: "ARCH/TAG", the tag naming the weights.
        licence: of the weights; empty where only the model's card says.

    Raises:
        UnknownName: open_clip has no such architecture or tag; the message offers the nearest.
        TeacherUnavailable: the hub or the file does not give the weights, or the tower has no blocks to tap.
    """
    import open_clip

    arch, _, tag = model.partition("/")
    if arch not in open_clip.list_models():
        raise UnknownName(unknown("open_clip architecture", arch, open_clip.list_models()))
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if (tag or options.from_hub) and tag not in tags:
        raise UnknownName(unknown(f"open_clip weights of {arch}", tag, tags))
    settings = open_clip.get_pretrained_cfg(arch, tag) if tag else {}
    common = {
        "precision": "fp32",
        "device": torch.get_default_device(),
        "force_quick_gelu": bool(settings.get("quick_gelu", False)),
        "pretrained_text": False,
        "force_preprocess_cfg": {key: settings[key] for key in ("mean", "std", "interpolation") if key in settings},
    }
    if options.from_hub:
        with hub(name):
            clip = open_clip.create_model(arch, pretrained=tag, weights_only=True, **common)
    else:
        with seeded(options.seed), quiet():
            clip = open_clip.create_model(arch, pretrained=None, **common)
    tower = clip.visual
    preprocess = open_clip.get_model_preprocess_cfg(clip)
    weights_from = "" if options.weights is None else load_weights(tower, options.weights)
    facts = {
        "mean": tuple(preprocess["mean"]),
        "std": tuple(preprocess["std"]),
        "interpolation": preprocess["interpolation"],
        "licence": licence or "see the model's card",
    }
    size = preprocess["size"]
    native = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if hasattr(tower, "trunk"):
        teacher = timm_teacher(name, "open_clip", model, tower.trunk, options, native=native, **facts)
        teacher.weights_from = weights_from
        return teacher
    if not hasattr(tower, "positional_embedding") or not hasattr(tower, "conv1"):
        raise TeacherUnavailable(f"{model}: open_clip taps blocks of vision transformers only, this is none")
    teacher = _transformer(name, model, tower, options, facts)
    teacher.native_size, teacher.weights_from = native, weights_from
    return teacher


def _transformer(name: str, model: str, tower: Any, options: BuildOptions, facts: dict[str, Any]) -> Teacher:
    levels = choose_levels(name, options.levels, len(tower.transformer.resblocks))
    weights = identity(tower, options)
    patch = int(tower.patch_size[0])
    input_size = fit_to_patch(options.size, patch)
    grid = (input_size[0] // patch, input_size[1] // patch)
    old = (int(tower.grid_size[0]), int(tower.grid_size[1]))
    positions = resample_positions(tower.positional_embedding.detach()[None], old, grid)[0]
    tower.positional_embedding = nn.Parameter(positions)
    tower.image_size, tower.grid_size = input_size, grid
    spec = TeacherSpec(
        name=name,
        library="open_clip",
        model=model,
        weights=weights,
        patch=patch,
        input_size=input_size,
        grid=grid,
        widths=(int(tower.conv1.out_channels),) * len(levels),
        levels=levels,
        **facts,
    )
    teacher = OpenClipTeacher(spec, tower, options.prefix)
    teacher.num_blocks = len(tower.transformer.resblocks)
    strides = [patch] * len(levels)
    return freeze(first_that_covers(lambda _: teacher, [input_size], strides, f"{model} ({type(tower).__name__})"))
