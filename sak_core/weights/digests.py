"""What weights are, in one line of text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def state_digest(state: Mapping[str, Tensor]) -> str:
    """ "sha256:<hex>" over (name, dtype, shape, bytes) of all tensors, sorted by name.

    Independent of file format, of order and of device, so the same weights have one digest wherever they came
    from.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0".encode())
        digest.update(_bytes(tensor).data)
    return f"sha256:{digest.hexdigest()}"


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    if not tensor.numel():
        return np.empty(0, np.uint8)
    # through uint8, since numpy has no bfloat16
    return np.ascontiguousarray(tensor.reshape(-1).view(torch.uint8).numpy())
