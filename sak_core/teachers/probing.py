"""Running a network before its features are believed: what sizes it takes, and whether its cells cover the view."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from sak_common.errors import first_line
from sak_core.errors import TeacherUnavailable
from sak_core.interfaces.teacher import Size, Teacher

Net = TypeVar("Net", bound=nn.Module)
Made = TypeVar("Made")


class CannotRun(Exception):
    """A network does not take what it was given; the message is the first line of its own."""


@torch.no_grad()
def probe(run: Callable[[Net, Tensor], Made], net: Net, images: Tensor, network: str) -> Made:
    """What `run` makes of `net` and `images`, in evaluation mode and with `net` left as it was: some networks keep what
    they learn of an input's size (transformers' Swin narrows its windows for good).

    Args:
        network: what messages call it.

    Raises:
        CannotRun: the network does not take such images.
        TeacherUnavailable: it drew random numbers, so that its features would be others each time.
    """
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        try:
            made = run(_twin(net).eval(), images)
        except Exception as error:  # libraries raise anything at a size that does not suit
            if _is_memory(error):
                raise
            raise CannotRun(first_line(error)) from error
        if not torch.equal(before, torch.get_rng_state()):
            raise TeacherUnavailable(
                f"{network} draws random numbers where it runs (it masks or shuffles at random): its features would "
                "be others each time"
            )
    return made


def _twin(net: Net) -> Net:
    """A copy of a network that shares its tensors."""
    kept = [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return deepcopy(net, {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers(), *kept)})


def _is_memory(error: Exception) -> bool:
    """Whether there was too little memory, which says nothing about the size."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in str(error)


def uncovered(grids: Sequence[Size], strides: Sequence[Size], levels: Sequence[int], size: Size) -> str:
    """What is wrong with the `grids` (h, w) that a network gave at an input of `size` px, in words; "" if nothing is:
    h · stride is the height and w · stride the width, so that cells cover exactly the view.

    Args:
        strides: px (vertically, horizontally) of a cell.
        levels: indices of the tapped blocks.
    """
    exact = [(h * down, w * right) == size for (h, w), (down, right) in zip(grids, strides, strict=True)]
    if all(exact):
        return ""
    wrong = exact.index(False)
    (h, w), (down, right) = grids[wrong], strides[wrong]
    exact_levels = ",".join(str(level) for level, is_exact in zip(levels, exact, strict=True) if is_exact)
    return (
        f"at {size[0]}x{size[1]} px block {levels[wrong]} gives {h}x{w} cells of {down}x{right} px: they lie on "
        f"{h * down}x{w * right} px, not on the view" + (f"; levels {exact_levels} cover it" if exact_levels else "")
    )


def first_that_covers(
    build: Callable[[Size], Teacher], sizes: Iterable[Size], strides: Sequence[int], network: str
) -> Teacher:
    """The teacher of the first input size at which its network runs and gives what the spec says: maps that cover
    exactly the view.

    Args:
        build: the teacher of an input size.
        strides: px of a cell, a level each.
        network: what messages call it.

    Raises:
        TeacherUnavailable: it does so at none of them.
    """
    faults = []
    for size in dict.fromkeys(sizes):
        teacher = build(size)
        try:
            made = probe(_features, teacher, torch.zeros(1, 3, *size), network)
        except CannotRun as error:
            faults.append(f"it does not take {size[0]}x{size[1]} px ({error})")
            continue
        count = len(teacher.spec.levels)
        maps, prefixes = [tuple(level.shape) for level in made[:count]], [level.shape[-1] for level in made[count:]]
        fault = uncovered(
            [(shape[-2], shape[-1]) for shape in maps], [(s, s) for s in strides], teacher.spec.levels, size
        )
        expected = [
            (1, width, *grid) for width, grid in zip(teacher.spec.widths, teacher.spec.level_grids(), strict=True)
        ]
        if not fault and (maps != expected or prefixes != [teacher.num_prefix] * (count if teacher.num_prefix else 0)):
            fault = f"at {size[0]}x{size[1]} px it gives maps of {maps} in place of {expected}"
        if not fault:
            return teacher
        faults.append(fault)
    raise TeacherUnavailable(f"{network}: {'; '.join(faults)}")


def _features(teacher: Teacher, images: Tensor) -> Sequence[Tensor]:
    return teacher.features(images)
