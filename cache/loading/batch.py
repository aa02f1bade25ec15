"""A batch as it leaves the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cache.errors import StaleBatch
from cache.loading.ring import Slot

Decode = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
"""Levels of a teacher as stored -> float32 (B, h, w, C) a level."""


class GuardedTensor(torch.Tensor):
    """A tensor in a ring's slot that refuses to be used once a later batch has the slot (debugging only)."""

    _slot: Slot
    _generation: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        guarded = [value for value in _leaves((args, kwargs or {})) if isinstance(value, GuardedTensor)]
        for tensor in guarded:
            slot = tensor.__dict__.get("_slot")
            if slot is not None and slot.generation != tensor.__dict__["_generation"]:
                raise StaleBatch(
                    "this batch's buffer has been given to a later batch: use a batch before asking for the "
                    "next one, take batch.to(device), or clone what you keep"
                )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if guarded and isinstance(result, torch.Tensor):
            owner = guarded[0]
            with torch._C.DisableTorchFunctionSubclass():
                shares = (
                    result.device == owner.device
                    and result.untyped_storage().data_ptr() == owner.untyped_storage().data_ptr()
                )
                plain = result.as_subclass(torch.Tensor)
            return guard(plain, owner._slot, owner._generation) if shares else plain
        return result


def guard(tensor: torch.Tensor, slot: Slot, generation: int) -> GuardedTensor:
    """`tensor`, which fails when used after `slot` has left `generation`, with `StaleBatch`; so do views of it."""
    guarded: GuardedTensor = tensor.as_subclass(GuardedTensor)
    guarded.__dict__.update(_slot=slot, _generation=generation)
    return guarded


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    if isinstance(tree, list | tuple):
        return [leaf for value in tree for leaf in _leaves(value)]
    return [tree]


@dataclass
class Batch:
    """B rows, as stored or, after `to`, ready for the student.

    A batch fresh from a `Loader` sees the loader's reused memory: it is valid until the loader is asked for the
    next one. What `to` returns owns its memory.

    Attributes:
        samples: int64 (B,), numbers of the samples.
        views: int64 (B,).
        weights: float32 (B,), 1, or 0 for padding at the end of an evaluation.
        pixels: uint8 (B, H, W, 3); (B, 0, 0, 3) from a loader with pixels=False.
        features: teacher -> a tensor a level, shallowest first: as stored (the codec says in which shape, and levels
            coded together bring those they are predicted from); after `to`, float32 (B, C, h, w), channels last in
            memory.
        labels: task -> (B, H, W) or (B, H, W, c) of the stored dtype; 255 = ignore.
        prefixes: teacher -> its class and register tokens where they were asked for, a (B, P, C) a level; decoded
            to float32 by `to`.
    """

    samples: torch.Tensor
    views: torch.Tensor
    weights: torch.Tensor
    pixels: torch.Tensor
    features: dict[str, list[torch.Tensor]]
    labels: dict[str, torch.Tensor]
    prefixes: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    _decoders: Mapping[str, Decode] | None = field(default=None, repr=False)
    _prefix_decoders: Mapping[str, Decode] | None = field(default=None, repr=False)
    _slot: Slot | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with what `change` makes of every tensor."""

        def changed(levels: Mapping[str, list[torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
            return {name: [change(level) for level in own] for name, own in levels.items()}

        return replace(
            self,
            samples=change(self.samples),
            views=change(self.views),
            weights=change(self.weights),
            pixels=change(self.pixels),
            features=changed(self.features),
            labels={task: change(label) for task, label in self.labels.items()},
            prefixes=changed(self.prefixes),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device` in memory of its own, features decoded to float32 (B, C, h, w) there.

        From pinned memory the copies run in the background; the loader waits for them before it uses the
        memory again.
        """
        device = torch.device(device)

        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = tensor.to(device, non_blocking=True)
            return moved.clone() if moved.data_ptr() == tensor.data_ptr() and tensor.numel() else moved

        def decoded(levels: list[torch.Tensor], decode: Decode) -> list[torch.Tensor]:
            in_ring = {level.data_ptr() for level in levels}
            made = decode([level.to(device, non_blocking=True) for level in levels])
            return [level.clone() if level.data_ptr() in in_ring else level for level in made]

        if self._decoders is None or self._prefix_decoders is None:
            return self.each(move)
        maps = {name: decoded(levels, self._decoders[name]) for name, levels in self.features.items()}
        moved = replace(
            replace(self, features={}, prefixes={}, _decoders=None, _prefix_decoders=None, _slot=None).each(move),
            features={name: [level.permute(0, 3, 1, 2) for level in levels] for name, levels in maps.items()},
            prefixes={name: decoded(levels, self._prefix_decoders[name]) for name, levels in self.prefixes.items()},
        )
        if device.type == "cuda" and self._slot is not None:
            self._slot.copies = torch.cuda.current_stream(device).record_event()
        return moved
