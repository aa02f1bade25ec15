"""Batches that stand where another source of batches stands: its epochs, its position, batches of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.training.loop import Batches


class FollowingBatches:
    """Epoch, length and state are those of `followed`; a subclass says what iterating gives."""

    def __init__(self, followed: Batches) -> None:
        self._followed = followed

    @property
    def epoch(self) -> int:
        """The epoch that iterating gives."""
        return self._followed.epoch

    @property
    def idle_s(self) -> float:
        """See `Loader.idle_s`."""
        return self._followed.idle_s

    def __len__(self) -> int:
        return len(self._followed)

    def set_epoch(self, epoch: int) -> None:
        """See `Loader.set_epoch`."""
        self._followed.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See `Loader.state_dict`."""
        return self._followed.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Loader.load_state_dict`."""
        self._followed.load_state_dict(state)

    def close(self) -> None:
        """See `Loader.close`."""
        self._followed.close()
