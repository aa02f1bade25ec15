"""The pseudo-random tensors behind the parity fixtures: a value follows from a name and a shape alone."""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

Float32 = npt.NDArray[np.float32]


def tensor(name: str, shape: tuple[int, ...]) -> Float32:
    """float32 in [-1, 1): the Philox stream keyed by the first 8 bytes (little endian) of sha256(name), 53
    bits a value.
    """
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    bits = np.random.Philox(key=key).random_raw(math.prod(shape)) >> np.uint64(11)
    return (bits.astype(np.float64) * 2.0**-52 - 1.0).reshape(shape).astype(np.float32)


def parameter(name: str, shape: tuple[int, ...]) -> Float32:
    """The value of the reference's state-dict entry `name`; BatchNorm's num_batches_tracked is 0 and not made
    here.
    """
    u = tensor(name, shape)
    vector = len(shape) == 1
    normalisation = "norm" in name or "linear_fuse.1" in name or "router.module.1" in name
    if name.endswith("running_var"):
        return 1 + 0.25 * u
    if name.endswith("running_mean"):
        return 0.1 * u
    if name.endswith("scale") or (vector and normalisation and name.endswith("weight")):
        return 1 + 0.5 * u
    if vector:
        return 0.2 * u
    if "pos_embed" in name or "cls_token" in name:
        return 0.5 * u
    return u * np.float32(2.4 / np.sqrt(np.prod(shape[1:])))


def state(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """A state dict of the reference, from the shapes of its entries."""
    return {
        name: torch.zeros(tuple(shape), dtype=torch.int64)
        if name.endswith("num_batches_tracked")
        else torch.from_numpy(parameter(name, tuple(shape)))
        for name, shape in shapes.items()
    }
