"""Files of named tensors from anywhere: read without executing anything, or refused with the reason."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sak_common.errors import SakError
from sak_common.names import listed

MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as its own library has it."""

WRAPPERS = ("state_dict", "model")
"""Keys under which a torch file may hold its state dict."""


class RefusedFile(SakError, ValueError):
    """A file of weights that is damaged, hostile or no file of weights. The message names it and says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path = path
        self.reason = reason


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a `.safetensors` file, or else of a torch file (`.pth`, `.pt`, `.bin`), on the CPU.

    A torch file is read by torch's `weights_only` unpickler, which builds tensors and plain containers and calls
    nothing else; its state dict may be the file's content, or lie under "state_dict" or "model". What follows the
    file's word about sizes is checked against the bytes that are there before memory is taken.

    Raises:
        FileNotFoundError: no such file.
        RefusedFile: empty, truncated, with a header of absurd size, with code or other objects in it, with
            entries whose names lead elsewhere, compressed (a small file could unpack to any size), or with
            values that are not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    if path.stat().st_size == 0:
        raise RefusedFile(path, "is empty (0 bytes)")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    check_finite(path, tensors)
    return tensors


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as a safetensors file that whoever may read its neighbours may read: the library makes it
    its owner's alone."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises RefusedFile where a value of `tensors`, read from `path`, is NaN or infinite."""
    for name, tensor in tensors.items():
        values = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
        if not bool(torch.isfinite(values).all()):
            raise RefusedFile(path, f"is refused: {name!r} holds NaN or infinite values")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_header(path)
    try:
        # copied: the library's tensors are the file itself, mapped, and would change (or crash) with it
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise _damaged(path, error) from None


def _check_header(path: Path) -> None:
    """That the header a safetensors file announces can be there."""
    total = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise RefusedFile(path, f"is no safetensors file: {total} bytes are too few")
        announced = struct.unpack("<Q", start)[0]
        if announced > min(MAX_HEADER_BYTES, total - 8):
            raise RefusedFile(
                path,
                f"is no whole safetensors file: it announces a header of {announced} bytes and has "
                f"{total - 8} in all (at most {MAX_HEADER_BYTES} are read)",
            )
        try:
            header = json.loads(file.read(announced))
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise RefusedFile(path, "is no safetensors file: its header is not JSON")


def _read_torch(path: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(path):
        _check_archive(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises many kinds for damaged and hostile files
        text = str(error)
        if "Weights only load failed" in text or "weights_only" in text:
            reason = _first_line(text.rpartition("WeightsUnpickler error:")[2]) or "it is no file of plain tensors"
            raise RefusedFile(
                path,
                f"cannot be read as weights and nothing in it was executed ({reason}); give a .safetensors file, or "
                "a torch file of plain tensors (pickled models and TorchScript archives are not opened)",
            ) from None
        raise _damaged(path, error) from None
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise RefusedFile(path, f"holds a {type(content).__name__}, not a state dict (named tensors)")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise RefusedFile(
                path, f"holds no state dict: {name!r} is a {type(value).__name__}; expected named tensors alone"
            )
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise RefusedFile(path, f"is refused: {name!r} is not a plain dense tensor ({value.layout})")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise RefusedFile(
                path,
                f"is refused: {name!r} claims shape {tuple(value.shape)}, for which the file holds "
                f"{value.untyped_storage().nbytes()} bytes",
            )
    return {name.removeprefix("module."): value for name, value in content.items()}


def _check_archive(path: Path) -> None:
    """That a torch file's zip archive has no entry that leads elsewhere or unpacks to more than it takes."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, error) from None
    if any("/code/" in entry.filename for entry in entries):
        raise RefusedFile(path, "cannot be read as weights: it is a TorchScript archive, which holds code; not opened")
    for entry in entries:
        if entry.filename.startswith(("/", "\\")) or ".." in Path(entry.filename.replace("\\", "/")).parts:
            raise RefusedFile(path, f"is refused: its entry {entry.filename!r} leads out of the archive")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise RefusedFile(path, f"is refused: its entry {entry.filename!r} is compressed, which torch never does")


def _damaged(path: Path, error: Exception) -> RefusedFile:
    return RefusedFile(path, f"cannot be read as weights: {_first_line(str(error)) or type(error).__name__}")


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def check_state(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Raises ValueError, starting with `what`, unless `given` has exactly the names and shapes of `own`."""
    faults = []
    if missing := sorted(set(own) - set(given)):
        faults.append(f"missing: {listed(missing)}")
    if left_over := sorted(set(given) - set(own)):
        faults.append(f"left over: {listed(left_over)}")
    wrong = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if wrong:
        faults.append(f"of another shape: {listed(wrong)}")
    if faults:
        raise ValueError(f"{what}: {'; '.join(faults)}")
