"""Teachers from timm: vision transformers, and any network with `forward_intermediates` (CNNs among them).

A transformer runs at the view's size, each side at the nearest multiple of its patch, its position embedding
resampled. A CNN runs at the nearest multiple of its largest stride; its levels have their own grids and
widths. A network that cannot takes the view at its native size.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from sak_common.errors import first_line
from sak_common.names import UnknownName, unknown
from sak_core.errors import TeacherUnavailable
from sak_core.interfaces.teacher import Size, Teacher, TeacherSpec, fit_to_patch, freeze, prefix_as_map
from sak_core.teachers.probing import first_that_covers
from sak_core.weights.positions import resample_positions
from sak_core.weights.teacher_weights import BuildOptions, choose_levels, hub, identity, load_weights, seeded
from sak_core.weights.tensor_files import State


class TimmTeacher(Teacher):
    """A timm network: one map (B, C, h, w) a tapped block (transformers) or stage (CNNs), without norm."""

    def __init__(self, spec: TeacherSpec, net: nn.Module, num_prefix: int = 0) -> None:
        super().__init__(spec)
        self.net, self.num_prefix = net, num_prefix
        self.has_class_token = getattr(net, "cls_token", None) is not None

    def features(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, *spec.input_size) to one map a level, then prefix tokens where they are asked for."""
        options = {"return_prefix_tokens": True} if self.num_prefix else {}
        found: list[Any] = self.net.forward_intermediates(  # type: ignore[operator]
            images,
            indices=list(self.spec.levels),
            norm=False,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
            **options,
        )
        if not self.num_prefix:
            return found
        return [*(level[0] for level in found), *(prefix_as_map(level[1]) for level in found)]


def build_timm(name: str, model: str, options: BuildOptions, licence: str = "") -> Teacher:
    """Build a teacher from a timm model.

    Args:
        name: the teacher's.
        model: timm's, with or without a weights tag ("resnet18", "vit_....lvd142m").
        licence: of the weights; empty for what timm says.

    Raises:
        UnknownName: timm has no such model; the message offers the nearest.
        TeacherUnavailable: the hub or the file does not give the weights, or the network has no levels to
            tap.
    """
    import timm

    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        raise UnknownName(unknown("timm model", architecture, timm.list_models()))
    tags = timm.list_pretrained(architecture + ".*")
    if architecture != model and model not in tags:
        raise UnknownName(unknown("timm weights", model, tags))
    if options.from_hub:
        with hub(name):
            net = timm.create_model(model, pretrained=True, num_classes=0)
    else:
        with seeded(options.seed):
            net = timm.create_model(model, pretrained=False, num_classes=0)
    config: Any = net.pretrained_cfg
    weights_from = ""
    if options.weights is not None:
        classifier = config.get("classifier") or "head"
        heads = [classifier] if isinstance(classifier, str) else list(classifier)
        ignore = [f"{head}." for head in heads]
        weights_from = load_weights(net, options.weights, ignore, rename=partial(_own_names, net))
    teacher = timm_teacher(
        name,
        "timm",
        model,
        net,
        options,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        licence=licence or config.get("license") or "unknown",
        native=(int(config["input_size"][1]), int(config["input_size"][2])),
    )
    teacher.weights_from = weights_from
    return teacher


def timm_teacher(
    name: str,
    library: str,
    model: str,
    net: nn.Module,
    options: BuildOptions,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    interpolation: str,
    licence: str,
    native: Size | None = None,
) -> Teacher:
    """A teacher of a timm network that has its weights and its native size.

    The weights' digest is taken before the position embedding is resampled, so it is the same at every size.

    Raises:
        TeacherUnavailable: it has no `forward_intermediates`, or its features cover the view exactly at no size that
            it takes.
    """
    info = getattr(net, "feature_info", None)
    if info is None or not hasattr(net, "forward_intermediates"):
        raise TeacherUnavailable(f"{model} has no intermediate features that timm can give")
    stages: list[dict[str, Any]] = list(info)
    is_transformer = len({stage["reduction"] for stage in stages}) == 1
    # a CNN's stages are its levels: the last four, since the stem comes before them
    default = None if is_transformer else range(max(0, len(stages) - 4), len(stages))
    asked = options.levels if options.levels is not None else default
    levels = choose_levels(name, asked, len(stages))
    weights = identity(net, options)
    patch = max(int(stage["reduction"]) for stage in stages)
    forward: Any = net.forward_intermediates
    gives_prefix = options.prefix and "return_prefix_tokens" in inspect.signature(forward).parameters
    num_prefix = int(getattr(net, "num_prefix_tokens", 0)) if gives_prefix else 0
    reductions = [int(stages[level]["reduction"]) for level in levels]
    # some want an even number of the deepest cells
    sizes = [fit_to_patch(options.size, patch), fit_to_patch(options.size, 2 * patch), *([native] if native else [])]

    def spec_at(input_size: Size) -> TeacherSpec:
        grids = tuple((input_size[0] // r, input_size[1] // r) for r in reductions)
        return TeacherSpec(
            name=name,
            library=library,
            model=model,
            weights=weights,
            mean=mean,
            std=std,
            interpolation=interpolation,
            patch=reductions[-1],
            input_size=input_size,
            grid=grids[-1],
            widths=tuple(int(stages[level]["num_chs"]) for level in levels),
            levels=levels,
            licence=licence,
            grids=grids,
        )

    def build(input_size: Size) -> Teacher:
        return TimmTeacher(spec_at(input_size), net, num_prefix)

    network = f"{model} ({type(net).__name__})"
    teacher = first_that_covers(build, _sizes(net, sizes, network), reductions, network)
    teacher.native_size, teacher.num_blocks = native, len(stages)
    return freeze(teacher)


def _own_names(net: nn.Module, state: State) -> State:
    """A file's tensors under timm's names: each family knows its releases' (DINOv2's, CLIP's)."""
    family = sys.modules[type(net).__module__]
    rename = getattr(family, "checkpoint_filter_fn", None)
    if rename is None:
        return state
    options = {"antialias": False} if "antialias" in inspect.signature(rename).parameters else {}
    renamed: State = rename(state, net, **options)
    return renamed


def _sizes(net: Any, wanted: Sequence[Size], network: str) -> Sequence[Size]:
    """The input sizes to try, of those `wanted`, the first first; networks that have one are set to the first."""
    if not hasattr(net, "set_input_size"):
        embed = getattr(net, "patch_embed", None)
        fixed = getattr(embed, "img_size", None)
        # no way to change it (timm's SAM towers): the view is resized to what the network takes
        return [(int(fixed[0]), int(fixed[1]))] if fixed is not None else wanted
    size = wanted[0]
    positions = getattr(net, "pos_embed", None)
    try:
        if isinstance(positions, nn.Parameter) and positions.dim() == 3:
            old = tuple(net.patch_embed.grid_size)
            kept = positions.detach().clone()
            net.set_input_size(img_size=size)
            new = tuple(net.patch_embed.grid_size)
            # timm resamples with antialias; the method does without
            net.pos_embed = nn.Parameter(resample_positions(kept, old, new))
        else:
            net.set_input_size(img_size=size)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise TeacherUnavailable(
            f"{network} cannot be set to {size[0]}x{size[1]} px ({first_line(error)}); its own size is "
            f"{wanted[-1][0]}x{wanted[-1][1]} px"
        ) from error
    return [size]
