"""How the hidden states of a transformers network lie, found by running it; what is not understood is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sak_core.errors import TeacherUnavailable
from sak_core.interfaces.teacher import Size
from sak_core.teachers.probing import CannotRun, probe

States = tuple[Tensor, ...]
Run = Callable[[nn.Module, Tensor], States]

MAPS, MAPS_CHANNELS_LAST, TOKENS = 1, 3, 2
"""Axis of the channels in (B, C, h, w), (B, h, w, C) and (B, P + h · w, C)."""


@dataclass(frozen=True)
class Layout:
    """Where hidden states have their channels and cells, the same in all.

    Attributes:
        channels: the axis of the channels: `MAPS`, `MAPS_CHANNELS_LAST` or `TOKENS`.
        num_prefix: tokens before those of the cells (P); 0 for maps.
        strides: px (vertically, horizontally) of a cell, a state each, without the embedding's.
    """

    channels: int
    num_prefix: int
    strides: tuple[Size, ...]

    def width(self, state: Tensor) -> int:
        """Channels of a state."""
        return int(state.shape[self.channels])

    def grid(self, state: Tensor, stride: Size, size: Size) -> Size:
        """(h, w) cells of a state of an input of `size` px."""
        if self.channels == TOKENS:
            return size[0] // stride[0], size[1] // stride[1]
        return _cells(state, self.channels)

    def as_map(self, state: Tensor, grid: Size) -> Tensor:
        """A state as (B, C, h, w)."""
        if self.channels == MAPS:
            return state
        if self.channels == MAPS_CHANNELS_LAST:
            return state.permute(0, 3, 1, 2)
        return state[:, self.num_prefix :].transpose(1, 2).reshape(len(state), -1, *grid)


def find_layout(run: Run, net: nn.Module, patch: int, own: Size | None, network: str) -> Layout:
    """The layout of `net`'s hidden states: those that `run` gives of it and images (B, 3, H, W), the embedding's first.

    Of an input whose height and width are swapped, the channels are the axis that keeps its length. Networks that take
    one square size alone tell cells from channels by the two lengths that are equal.

    Args:
        patch: px of a token's cell.
        own: (H, W) px that the network was configured for.
        network: what messages call it.

    Raises:
        TeacherUnavailable: it does not run on images alone, or its states are not understood.
    """
    unit = -(-32 // patch) * patch  # of 32 px or more: the deepest cells of networks with stages
    size = (3 * unit, 5 * unit)
    try:
        states = probe(run, net, noise(1, size), network)
        swapped: States | None = probe(run, net, noise(1, (size[1], size[0])), network)
    except CannotRun as error:
        if own is None:
            raise TeacherUnavailable(f"{network} does not run on images alone: {error}") from error
        size, swapped = own, None
        try:
            states = probe(run, net, noise(1, size), network)
        except CannotRun as again:
            raise TeacherUnavailable(f"{network} does not run on images alone: {again}") from again
    if len(states) < 2 or {state.dim() for state in states[1:]} not in ({3}, {4}) or len(states[1]) != 1:
        raise TeacherUnavailable(f"{network} gives {_told(states)}, which are no maps of the image")
    if states[1].dim() == 3:
        return _tokens(run, net, states, patch, size, network)
    channels = _channels(states[1:], size, swapped[1:] if swapped else None)
    if channels is None:
        raise TeacherUnavailable(
            f"{network} gives {_told(states)} at {size[0]}x{size[1]} px: which axis has the channels cannot be told"
        )
    grids = [_cells(state, channels) for state in states[1:]]
    # a grid that does not divide the input is caught when the input's size is chosen, where its level is tapped
    return Layout(channels, 0, tuple((round(size[0] / h), round(size[1] / w)) for h, w in grids))


def noise(batch: int, size: Size) -> Tensor:
    """Normal noise (B, 3, H, W), always the same, on torch's default device."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0), device="cpu").to(
        torch.get_default_device()
    )


def _cells(state: Tensor, channels: int) -> Size:
    h, w = state.shape[2:4] if channels == MAPS else state.shape[1:3]
    return int(h), int(w)


def _channels(states: Sequence[Tensor], size: Size, swapped: Sequence[Tensor] | None) -> int | None:
    """The axis of the channels in 4-d states, the same in all; None where it cannot be told."""

    def fits(axis: int) -> bool:
        grids = [_cells(state, axis) for state in states]
        if swapped is None:
            return all(_is_alike(h, size[0], w, size[1]) for h, w in grids)
        others = [_cells(state, axis) for state in swapped]
        return len(states) == len(swapped) and all(
            one.shape[axis] == other.shape[axis]
            and _is_alike(h, size[0], tall, size[1])
            and _is_alike(w, size[1], narrow, size[0])
            for one, other, (h, w), (tall, narrow) in zip(states, swapped, grids, others, strict=True)
        )

    fitting = [axis for axis in (MAPS, MAPS_CHANNELS_LAST) if fits(axis)]
    return fitting[0] if len(fitting) == 1 else None


def _is_alike(cells: int, length: int, other_cells: int, other_length: int) -> bool:
    """Whether two sides are divided into cells of one length, px, up to one cell that sticks out or is cut off."""
    return abs(cells * other_length - other_cells * length) < max(length, other_length)


def _tokens(run: Run, net: nn.Module, states: States, patch: int, size: Size, network: str) -> Layout:
    """The layout of token states: equally many in each, prefix tokens, then one a cell, row by row."""
    h, w = size[0] // patch, size[1] // patch
    if len({state.shape[1:] for state in states}) > 1 or states[0].shape[1] < h * w:
        raise TeacherUnavailable(
            f"{network} gives {_told(states)} at {size[0]}x{size[1]} px, not the tokens of its {h}x{w} cells of "
            f"{patch} px in each"
        )
    num_prefix = states[0].shape[1] - h * w
    # not (0, 1): on a square grid, (0, 1) and (1, 0) are the same tokens row by row and column by column
    places = sorted({(0, 0), (0, min(2, w - 1)), (min(1, h - 1), 0), (h - 1, w - 1)})
    images = noise(2, size)[:1].repeat(2, 1, 1, 1)
    for y, x in places:
        images[1, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch] *= -1
    embedded = probe(run, net, images, network)[0]
    if len(embedded) != 2:
        raise TeacherUnavailable(f"{network} mixes the images of a batch: {_told((embedded,))} of two images")
    if embedded.is_meta:  # shapes alone: nothing to compare
        return Layout(TOKENS, num_prefix, ((patch, patch),) * (len(states) - 1))
    # the tokens that these four patches change most, before any token has seen another
    changed = (embedded[1] - embedded[0]).norm(dim=-1).topk(len(places)).indices.sort().values.tolist()
    if changed != [num_prefix + y * w + x for y, x in places]:
        raise TeacherUnavailable(
            f"{network} gives {states[0].shape[1]} tokens at {size[0]}x{size[1]} px, which are not {num_prefix} prefix "
            f"tokens and then its {h}x{w} cells row by row: there are tokens behind them, or another order"
        )
    return Layout(TOKENS, num_prefix, ((patch, patch),) * (len(states) - 1))


def _told(states: Sequence[Tensor]) -> str:
    """Shapes for a message, each once."""
    shapes = dict.fromkeys(tuple(state.shape) for state in states)
    return "hidden states of " + ", ".join(map(str, shapes)) if shapes else "no hidden states"
