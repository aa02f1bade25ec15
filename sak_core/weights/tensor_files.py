"""Files of named tensors from anywhere: read without executing anything, or refused with the reason."""

from __future__ import annotations

import argparse
import json
import struct
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sak_common.errors import SakError, first_line
from sak_common.names import listed

MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as its own library has it."""

State = dict[str, Tensor]

DEEPEST = 8
"""Mappings within mappings of a torch file that are looked into."""

WRAPPERS = ("state_dict.model", "state_dict", "model")
"""Keys under which a torch file may hold its one state dict."""

MARKS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch itself puts into names, at their start or further in: of `torch.compile`, FSDP, checkpointing."""


class RefusedFile(SakError, ValueError):
    """A file of weights that is damaged, hostile or no file of weights. The message names it and says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path = path
        self.reason = reason


class Misfit(ValueError):
    """Tensors whose names or shapes are not a network's.

    Args:
        wanted: its names.
        missing: those that are not there.
    """

    def __init__(self, message: str, wanted: Collection[str], missing: Collection[str]) -> None:
        super().__init__(message)
        self.wanted, self.missing = wanted, missing


def read_tensors(path: Path) -> State:
    """The named tensors of a `.safetensors` file, or else of a torch file (`.pth`, `.pt`, `.bin`), on the CPU.

    A torch file's state dict may be its content, or lie under "state_dict" or "model", or be the only one in it. What
    stands before all names and is torch's own ("module." and `MARKS`) is left out.

    Raises:
        FileNotFoundError: no such file.
        RefusedFile: as `read_parts`; also for values that are not finite, and for several state dicts in one file, of
            which no one can know which is meant.
    """
    parts = read_parts(path)
    where = next((name for name in ("", *WRAPPERS) if name in parts), None)
    if where is None and len(parts) == 1:
        where = next(iter(parts))
    twins = [name for name, part in parts.items() if where is None or part.keys() == parts[where].keys()]
    if where is None or len(twins) > 1:
        raise RefusedFile(path, f"holds several state dicts ({listed(twins)}): keep one of them in a file of its own")
    tensors = parts[where]
    check_finite(path, tensors)
    for prefix in ("module.", *MARKS):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def read_parts(path: Path) -> dict[str, State]:
    """All state dicts of a file by the keys they lie under, joined by dots; "" where it is the file's content.

    A torch file is read by torch's `weights_only` unpickler, which builds tensors, plain containers and
    `argparse.Namespace` (which training scripts keep beside their weights) and calls nothing else; what is no tensor
    is left out. What follows the file's word about sizes is checked against the bytes that are there before memory is
    taken; values are not looked at.

    Raises:
        FileNotFoundError: no such file.
        RefusedFile: empty, truncated, with a header of absurd size, with code or other objects in it, with
            entries whose names lead elsewhere, compressed (a small file could unpack to any size), or without tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    if path.stat().st_size == 0:
        raise RefusedFile(path, "is empty (0 bytes)")
    return {"": _read_safetensors(path)} if path.suffix == ".safetensors" else _read_torch(path)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as a safetensors file that whoever may read its neighbours may read: the library makes it
    its owner's alone."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that all values of `tensors`, read from `path`, are finite.

    Raises:
        RefusedFile: one is NaN or infinite.
    """
    for name, tensor in tensors.items():
        values = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
        if not bool(torch.isfinite(values).all()):
            raise RefusedFile(path, f"is refused: {name!r} holds NaN or infinite values")


def _read_safetensors(path: Path) -> State:
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


def _read_torch(path: Path) -> dict[str, State]:
    if zipfile.is_zipfile(path):
        _check_archive(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises many kinds for damaged and hostile files
        text = str(error)
        if "Weights only load failed" in text or "weights_only" in text:
            told = text.rpartition("WeightsUnpickler error:")[2].strip().splitlines()
            reason = told[0].strip() if told else "it is no file of plain tensors"
            raise RefusedFile(
                path,
                f"cannot be read as weights and nothing in it was executed ({reason}); give a .safetensors file, or "
                "a torch file of plain tensors (pickled models and TorchScript archives are not opened)",
            ) from None
        raise _damaged(path, error) from None
    if not isinstance(content, Mapping):
        raise RefusedFile(path, f"holds a {type(content).__name__}, not a state dict (named tensors)")
    parts = dict(_state_dicts(content, "", set()))
    if not parts:
        raise RefusedFile(path, "holds no state dict: there are no named tensors in it")
    for part in parts.values():
        _check_plain(path, part)
    return parts


def _state_dicts(content: Mapping[Any, Any], where: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, State]]:
    """The mappings within `content` that hold named tensors; each once, since hostile ones may hold themselves."""
    seen.add(id(content))
    if tensors := {name: v for name, v in content.items() if isinstance(name, str) and isinstance(v, Tensor)}:
        yield where, tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and id(value) not in seen and depth < DEEPEST:
            yield from _state_dicts(value, f"{where}.{key}" if where else key, seen, depth + 1)


def _check_plain(path: Path, tensors: State) -> None:
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise RefusedFile(path, f"is refused: {name!r} is not a plain dense tensor ({value.layout})")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise RefusedFile(
                path,
                f"is refused: {name!r} claims shape {tuple(value.shape)}, for which the file holds "
                f"{value.untyped_storage().nbytes()} bytes",
            )


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
    return RefusedFile(path, f"cannot be read as weights: {first_line(error)}")


def check_state(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str = "") -> None:
    """Check that `given` has exactly the names and shapes of `own`.

    Args:
        what: the message of the error starts with it.

    Raises:
        Misfit: it has not.
    """
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
        text = "; ".join(faults)
        raise Misfit(f"{what}: {text}" if what else text, own.keys(), missing)
