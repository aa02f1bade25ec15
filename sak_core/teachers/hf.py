"""Teachers from transformers: vision models by hub id or folder, without code from the hub.

A model runs at the view's size, each side at the nearest multiple of the tapped cells, where it can interpolate its
position embedding, else at the size it was configured for. How its hidden states lie is found by running it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from sak_common.errors import first_line
from sak_common.names import listed
from sak_core.errors import NoSettings, TeacherUnavailable
from sak_core.interfaces.teacher import Size, Teacher, TeacherSpec, freeze, nearest_multiple, prefix_as_map
from sak_core.teachers.hidden_states import Layout, Run, States, find_layout, noise
from sak_core.teachers.probing import CannotRun, probe, uncovered
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
# among a network's options: px of the patches of one that masks at random (ViTMAE), to be given an order that keeps all
_UNMASKED = "unmasked"


class HfTeacher(Teacher):
    """A transformers vision model: hidden state i + 1 is the output of block (or stage) i."""

    def __init__(
        self, spec: TeacherSpec, net: nn.Module, options: dict[str, Any], layout: Layout, prefix: bool = False
    ) -> None:
        super().__init__(spec)
        self.net, self.num_prefix = net, layout.num_prefix if prefix else 0
        self.has_class_token = any(name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in net.named_parameters())
        self._options, self._layout = options, layout

    def features(self, images: Tensor) -> list[Tensor]:
        """Map (B, 3, *spec.input_size) to one map (B, C, h, w) a level, then prefix tokens where they are asked for."""
        every = hidden_states(self.net, images, self._options)
        states = [every[level + 1] for level in self.spec.levels]
        maps = [self._layout.as_map(state, grid) for state, grid in zip(states, self.spec.level_grids(), strict=True)]
        prefixes = [prefix_as_map(state[:, : self.num_prefix]) for state in states] if self.num_prefix else []
        return [*maps, *prefixes]


def hidden_states(net: nn.Module, images: Tensor, options: dict[str, Any]) -> States:
    """All hidden states, the embedding's first; as maps where the library lays them out itself (stages of tokens)."""
    if (patch := options.get(_UNMASKED)) is not None:
        cells = (images.shape[-2] // patch) * (images.shape[-1] // patch)
        noise = torch.arange(cells, device=images.device, dtype=torch.float32).expand(len(images), -1)
        options = {**{key: value for key, value in options.items() if key != _UNMASKED}, "noise": noise}
    output = net(pixel_values=images, output_hidden_states=True, **options)
    states = getattr(output, "reshaped_hidden_states", None) or getattr(output, "hidden_states", None) or ()
    return tuple(states) if all(isinstance(state, Tensor) for state in states) else ()


def build_hf(name: str, model: str, options: BuildOptions, licence: str = "") -> Teacher:
    """Build a teacher from a transformers vision model (the image tower of a model that has two).

    Args:
        name: the teacher's.
        model: a hub id or a local folder.

    Raises:
        TeacherUnavailable: hub out of reach, no vision model, or no mean and std stated.
    """
    from transformers import AutoConfig, AutoImageProcessor

    with hub(name, "settings", NoSettings):
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

    Raises:
        TeacherUnavailable: the file does not give the tower's tensors, all of them and no others.
    """
    if options.weights is None:
        return _drawn(kind, config, options.seed), ""
    with torch.device("meta"):
        wanted = tower_of(_drawn(kind, config, options.seed)).state_dict()
    size = sum(value.numel() for value in wanted.values())
    found = found_in(options.weights, partial(_load, kind, config, wanted, size), kind.__name__)
    return found.value, found.where


def _drawn(kind: Any, config: Any, seed: int) -> Any:
    """The whole model with weights drawn from `seed`."""
    try:
        with seeded(seed):
            return kind(config)
    except (ImportError, ValueError, TypeError) as error:  # a library that it needs, or a half-written config.json
        raise TeacherUnavailable(f"{kind.__name__} cannot be built: {str(error).strip() or repr(error)}") from error


def _load(kind: Any, config: Any, wanted: State, size: int, state: State) -> Any:
    """The whole model with the tensors of `state`.

    Args:
        wanted: the tower's tensors, `size` values in all; far fewer are not tried, as that takes a model's time.

    Raises:
        Misfit: `state` does not hold all of the tower's tensors, or holds more.
    """
    if 2 * sum(value.numel() for value in state.values()) < size:
        raise Misfit("it is too small", wanted, wanted)
    try:
        with quiet():
            whole, told = kind.from_pretrained(
                None, config=config, state_dict=dict(state), output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:  # shapes that differ, names that cannot be mapped
        raise Misfit(first_line(error), wanted, ()) from error
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

    Raises:
        TeacherUnavailable: it needs more than images, or its hidden states are not understood.
    """
    network, config = f"{model} ({type(net).__name__})", getattr(net, "config", None)
    if config is None:
        raise TeacherUnavailable(f"{network} is no vision network that gives hidden states")
    weights = identity(net, options)
    patch, own = _patch(config, network), _pair(getattr(config, "image_size", None))
    call = _options_of(net, patch)

    def run(twin: nn.Module, images: Tensor) -> States:
        return hidden_states(twin, images, call)

    layout = find_layout(run, net, patch, own, network)
    levels = choose_levels(name, options.levels, len(layout.strides))
    input_size, states = _fit(run, net, layout, levels, options.size, patch, own, network)
    tapped = [states[level + 1] for level in levels]
    grids = tuple(
        layout.grid(state, layout.strides[level], input_size) for level, state in zip(levels, tapped, strict=True)
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
        widths=tuple(layout.width(state) for state in tapped),
        levels=levels,
        licence=licence or "see the model's card",
        grids=grids,
    )
    teacher = HfTeacher(spec, net, call, layout, options.prefix)
    teacher.native_size, teacher.num_blocks = own, len(layout.strides)
    return freeze(teacher)


def _options_of(net: Any, patch: int) -> dict[str, Any]:
    """What a network is called with besides its images: positions at every size, and no cell left out."""
    parameters = inspect.signature(net.forward).parameters
    options: dict[str, Any] = {}
    if "interpolate_pos_encoding" in parameters:
        options["interpolate_pos_encoding"] = True
    if "noise" in parameters and hasattr(net.config, "mask_ratio"):
        net.config.mask_ratio = 0.0
        options[_UNMASKED] = patch
    return options


def _fit(
    run: Run,
    net: nn.Module,
    layout: Layout,
    levels: Sequence[int],
    size: Size,
    patch: int,
    own: Size | None,
    network: str,
) -> tuple[Size, States]:
    """The input size for views of `size`, and the hidden states there: each side the nearest multiple of the tapped
    cells, or, where the network does not take that, the size it was configured for.

    Raises:
        TeacherUnavailable: the cells of neither cover the input.
    """
    strides = [layout.strides[level] for level in levels]
    units = [lcm(patch, *(stride[axis] for stride in strides)) for axis in (0, 1)]
    faults = []
    for seen in dict.fromkeys([(nearest_multiple(size[0], units[0]), nearest_multiple(size[1], units[1])), own]):
        if seen is None:
            continue
        try:
            states = probe(run, net, noise(1, seen), network)
        except CannotRun as error:
            faults.append(f"it does not take {seen[0]}x{seen[1]} px ({error})")
            continue
        grids = [layout.grid(states[level + 1], layout.strides[level], seen) for level in levels]
        if not (fault := uncovered(grids, strides, levels, seen)):
            return seen, states
        faults.append(fault)
    raise TeacherUnavailable(f"{network}: {'; '.join(faults)}")


def _patch(config: Any, network: str) -> int:
    """A configuration's patch, px; 32 where it states none."""
    patch = getattr(config, "patch_size", None) or 32
    sides = {int(side) for side in patch} if isinstance(patch, tuple | list) else {int(patch)}
    if len(sides) != 1:
        raise TeacherUnavailable(f"{network} has patches of {patch} px; only square ones are taken")
    return sides.pop()


def _pair(size: Any) -> Size | None:
    """A configuration's image size as (H, W) px."""
    if size is None:
        return None
    return (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else (int(size), int(size))
