"""Files that a person could be handed in place of weights: damaged ones, and ones made to do harm."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]


class Touches:
    """Pickles to a call that leaves a file behind: whoever unpickles it has run foreign code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def marker(path: Path) -> Path:
    """What the code in the hostile file `path` would create."""
    return path.with_name("executed")


def pickled(path: Path, state: State) -> None:
    torch.save({**state, "extra": Touches(marker(path))}, path)


def bare_pickle(path: Path, state: State) -> None:
    path.write_bytes(pickle.dumps(Touches(marker(path))))


def truncated(path: Path, state: State) -> None:
    honest(path, state)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def empty(path: Path, state: State) -> None:
    path.write_bytes(b"")


def not_finite(path: Path, state: State) -> None:
    name = next(name for name, value in state.items() if value.is_floating_point())
    wrong = state[name].clone()
    wrong.view(-1)[0] = float("nan")
    honest(path, {**state, name: wrong})


def huge_header(path: Path, state: State) -> None:
    """It announces 100 GB, which a careless reader would allocate."""
    path.write_bytes(struct.pack("<Q", 100_000_000_000) + b'{"a":' + b" " * 1000)


def huge_tensor(path: Path, state: State) -> None:
    """Its header is small and honest JSON, but tells of a tensor of 100 GB."""
    size = 100_000_000_000
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 100)


def nested_header(path: Path, state: State) -> None:
    header = b"[" * 100_000
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def overlapping(path: Path, state: State) -> None:
    header = json.dumps({k: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for k in ("a", "b")}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)


def climbing_entry(path: Path, state: State) -> None:
    """A torch file with an entry that an extractor would write outside of its folder."""
    torch.save(state, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../executed", "x")


def bomb(path: Path, state: State) -> None:
    """A torch file whose entries are compressed: small here, large in memory."""
    torch.save({"a": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in content.items():
            archive.writestr(name, value)


def expanded(path: Path, state: State) -> None:
    """One stored number that claims the shape of a terabyte."""
    torch.save({"a": torch.ones(1).expand(1_000_000, 250_000)}, path)


def sparse(path: Path, state: State) -> None:
    torch.save({"a": torch.sparse_coo_tensor([[0]], [1.0], (10**12,))}, path)


def scripted(path: Path, state: State) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)


def other_content(path: Path, state: State) -> None:
    torch.save({"epoch": 3}, path)


def a_list(path: Path, state: State) -> None:
    torch.save([*state.values()], path)


def honest(path: Path, state: State) -> None:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)


SAFETENSORS: tuple[Callable[[Path, State], None], ...] = (
    pickled, bare_pickle, truncated, empty, not_finite, huge_header, huge_tensor, nested_header, overlapping,
)  # fmt: skip
"""What a `.safetensors` file may turn out to be."""

TORCH: tuple[Callable[[Path, State], None], ...] = (
    pickled, bare_pickle, truncated, empty, not_finite, climbing_entry, bomb, expanded, sparse, scripted,
    other_content, a_list,
)  # fmt: skip
"""What a `.pth` file may turn out to be."""
