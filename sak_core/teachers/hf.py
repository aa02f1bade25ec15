"""Teachers from transformers: vision models by hub id or folder, without code from the hub.

A model runs at the view's size, each side at the nearest multiple of its patch, where it can interpolate its
position embedding, else at the size it was configured for.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sak_common.names import listed
from sak_core.interfaces.teacher import (
    Size,
    Teacher,
    TeacherSpec,
    TeacherUnavailable,
    fit_to_patch,
    freeze,
    prefix_as_map,
)
from sak_core.weights.hub import quiet
from sak_core.weights.teacher_weights import (
    BuildOptions,
    choose_levels,
    found_in,
    hub,
    identity,
    seeded,
)
from sak_core.weights.tensor_files import Misfit, State

# names of PIL's resampling filters, by the number that image processors store
_FILTERS = {2: "bilinear", 3: "bicubic"}
# what models call the parameter of their class token
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")


class HfTeacher(Teacher):
    """A transformers vision model: hidden state i + 1 is the output of block (or stage) i."""

    def __init__(self, spec: TeacherSpec, net: nn.Module, options: dict[str, Any], num_prefix: int = 0) -> None:
        super().__init__(spec)
        self.net, self.num_prefix = net, num_prefix
        self.has_class_token = any(name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in net.named_parameters())
        self._options = options

    def features(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, *spec.input_size) to one map (B, C, h, w) a level, then prefix tokens where they are asked for."""
        every = hidden_states(self.net, images, self._options)
        states = [every[level + 1] for level in self.spec.levels]
        maps = [as_map(state, grid) for state, grid in zip(states, self.spec.level_grids(), strict=True)]
        prefixes = [prefix_as_map(state[:, : self.num_prefix]) for state in states] if self.num_prefix else []
        return [*maps, *prefixes]


def hidden_states(net: nn.Module, images: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """All hidden states, the embedding's first."""
    output = net(pixel_values=images, output_hidden_states=True, **options)
    states: tuple[Tensor, ...] = output.hidden_states
    return states


def as_map(state: Tensor, grid: Size) -> Tensor:
    """Tokens (B, P + h · w, C), P prefix tokens first, as (B, C, h, w); maps stay as they are."""
    if state.dim() == 4:
        return state
    tokens = state[:, state.shape[1] - grid[0] * grid[1] :]
    return tokens.transpose(1, 2).reshape(len(state), -1, *grid)


def build_hf(name: str, model: str, options: BuildOptions, licence: str = "") -> Teacher:
    """Build a teacher from a transformers vision model (the image tower of a model that has two).

    Args:
        name: the teacher's. model: a hub id or a local folder.

    Raises:
        TeacherUnavailable: hub out of reach, no vision model, or no mean and std stated.
    """
    from transformers import AutoConfig, AutoImageProcessor

    with hub(name, "settings", "name a folder that holds config.json and preprocessor_config.json (hf:FOLDER)"):
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            model, trust_remote_code=False
        )
        kind = _model_class(model, config)
    weights_from = ""
    if options.from_hub:
        with hub(name):
            whole = kind.from_pretrained(model, weights_only=True, dtype=torch.float32)
    else:
        whole, weights_from = model_without_hub(kind, config, options)
    net = tower_of(whole)
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is None or std is None:
        raise TeacherUnavailable(f"{model} states no image mean and std in its preprocessor_config.json")
    interpolation = _FILTERS.get(int(getattr(processor, "resample", 3) or 3), "bicubic")
    teacher = hf_teacher(name, model, net, options, tuple(mean), tuple(std), interpolation, licence)
    teacher.weights_from = weights_from
    return teacher


def _model_class(model: str, config: Any) -> Any:
    """The class of the whole model: a plain one, or one for depth, whose backbone is the teacher."""
    import transformers

    for mapping in (transformers.MODEL_MAPPING, transformers.MODEL_FOR_DEPTH_ESTIMATION_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise TeacherUnavailable(f"{model} ({type(config).__name__}) is no vision model that transformers can build")


def tower_of(whole: Any) -> Any:
    """The part of a model that sees images and gives hidden states."""
    return next((getattr(whole, name) for name in TOWERS if hasattr(whole, name)), whole)


TOWERS = ("vision_model", "backbone")
"""How models with more than an image tower call it."""


def model_without_hub(kind: Any, config: Any, options: BuildOptions) -> tuple[Any, str]:
    """The whole model with random weights, or with a file's, and the wrapper and prefix that these had there.

    transformers itself loads the tensors, since the names it saves are not always those of its networks.

    Raises TeacherUnavailable where the file does not give the tower's tensors, all of them and no others.
    """
    if options.weights is None:
        with seeded(options.seed):
            return kind(config), ""
    with torch.device("meta"), seeded(options.seed):
        wanted = tower_of(kind(config)).state_dict()
    size = sum(value.numel() for value in wanted.values())
    found = found_in(options.weights, partial(_load, kind, config, wanted, size), kind.__name__)
    return found.value, found.where


def _load(kind: Any, config: Any, wanted: State, size: int, state: State) -> Any:
    """The whole model with the tensors of `state`; raises Misfit where these are not all of the tower's, or more.

    wanted: the tower's tensors, `size` values in all; far fewer are not tried, as that takes a model's time.
    """
    if 2 * sum(value.numel() for value in state.values()) < size:
        raise Misfit("it is too small", wanted, wanted)
    try:
        with quiet():
            whole, told = kind.from_pretrained(
                None, config=config, state_dict=dict(state), output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:  # shapes that differ, names that cannot be mapped
        lines = str(error).strip().splitlines()
        raise Misfit(lines[0] if lines else type(error).__name__, wanted, ()) from error
    prefix = next((f"{name}." for name in TOWERS if hasattr(whole, name)), "")
    missing, left_over = (
        sorted(str(key) for key in told[fault] if str(key).startswith(prefix))
        for fault in ("missing_keys", "unexpected_keys")
    )
    if missing:
        raise Misfit(f"missing: {listed(missing)}", wanted, missing)
    if left_over:
        raise Misfit(f"left over: {listed(left_over)}", wanted, ())
    return whole


def hf_teacher(
    name: str,
    model: str,
    net: Any,
    options: BuildOptions,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    interpolation: str,
    licence: str,
) -> Teacher:
    """A teacher of a transformers network that has its weights.

    Raises TeacherUnavailable for networks whose hidden states are no maps.
    """
    config = net.config
    call = {}
    if "interpolate_pos_encoding" in inspect.signature(net.forward).parameters:
        call["interpolate_pos_encoding"] = True
    weights = identity(net, options)
    patch = int(getattr(config, "patch_size", 0) or 32)
    net.eval()
    input_size, states = _probe(net, call, fit_to_patch(options.size, patch), getattr(config, "image_size", None))
    if len(states) < 2 or states[1].dim() not in (3, 4):
        raise TeacherUnavailable(f"{model} gives no hidden states that can be laid out as maps")
    levels = choose_levels(name, options.levels, len(states) - 1)
    grids = tuple(
        (state.shape[2], state.shape[3]) if state.dim() == 4 else (input_size[0] // patch, input_size[1] // patch)
        for state in (states[level + 1] for level in levels)
    )
    spec = TeacherSpec(
        name=name,
        library="transformers",
        model=model,
        weights=weights,
        mean=mean,
        std=std,
        interpolation=interpolation,
        patch=patch,
        input_size=input_size,
        grid=grids[-1],
        widths=tuple(states[level + 1].shape[1 if states[level + 1].dim() == 4 else 2] for level in levels),
        levels=levels,
        licence=licence or "see the model's card",
        grids=() if len(set(grids)) == 1 else grids,
    )
    tokens = [state for state in states if state.dim() == 3]
    has_prefix = options.prefix and len(tokens) == len(states)
    num_prefix = tokens[-1].shape[1] - grids[-1][0] * grids[-1][1] if has_prefix else 0
    teacher = HfTeacher(spec, net, call, num_prefix)
    teacher.native_size = _pair(getattr(config, "image_size", None))
    teacher.num_blocks = len(states) - 1
    return freeze(teacher)


@torch.no_grad()
def _probe(net: Any, call: dict[str, Any], size: Size, own: Any) -> tuple[Size, tuple[Tensor, ...]]:
    """Run a black image at `size`, or, where the model refuses that, at the size it was configured for; give
    the size that ran and all hidden states.
    """
    try:
        return size, hidden_states(net, torch.zeros(1, 3, *size), call)
    except (ValueError, RuntimeError):
        if own is None:
            raise
    size = _pair(own) or size
    return size, hidden_states(net, torch.zeros(1, 3, *size), call)


def _pair(size: Any) -> Size | None:
    """A configuration's image size as (H, W) px."""
    if size is None:
        return None
    return (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else (int(size), int(size))
