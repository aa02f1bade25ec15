"""Stored levels to features, on the device where training wants them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cache.codecs import get_codec
from cache.format.groups import PREDICTOR, with_lower
from cache.store import Store


class TeacherDecoder:
    """Decodes the levels of one teacher that a batch carries.

    Args:
        store: that they are stored in.
        teacher: its name.
        levels: the numbers of those that are wanted, ascending.
        prefix: their class and register tokens instead of their maps.

    Attributes:
        arrays: names of the arrays that must be read: of `levels`, and of those that they are predicted from.
    """

    def __init__(self, store: Store, teacher: str, levels: Sequence[int], prefix: bool = False) -> None:
        read = list(levels) if prefix else with_lower(store.teacher(teacher).maps, levels)
        self._wanted = list(levels)
        self._features = [store.features(teacher, level, prefix) for level in read]
        self._on_device: dict[torch.device, list[dict[str, torch.Tensor]]] = {}
        self.arrays = [features.level.array for features in self._features]

    def __call__(self, stored: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Stored rows (B, *row_shape) of each array, on one device -> float32 of each wanted level: (B, h, w, C), or
        (B, P, C) of prefix tokens.

        A level of codec fp32 may come back as it is.
        """
        decoded: dict[int, torch.Tensor] = {}
        for features, rows, constants in zip(self._features, stored, self._constants(stored), strict=True):
            values = get_codec(features.level.codec).decode(rows, constants).reshape(len(rows), *features.row_shape)
            if features.level.predicts_from is not None:
                values = values + decoded[features.level.predicts_from] @ constants[PREDICTOR]
            decoded[features.level.level] = values
        return [decoded[level] for level in self._wanted]

    def _constants(self, stored: Sequence[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Each array's tables on the device of `stored`; sent there once."""
        device = stored[0].device if stored else torch.device("cpu")
        if device not in self._on_device:
            self._on_device[device] = [
                {name: torch.from_numpy(array).to(device) for name, array in features.constants.items()}
                for features in self._features
            ]
        return self._on_device[device]
