"""A student as a file that runs without this project: ONNX, or a saved `torch.export` program; checked when made."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.console import say
from pipeline.errors import UserError
from sak_common.extras import how_to_install
from sak_core.student.pretrained import Student
from sak_core.weights.hub import quiet

OPSET = 20
TOLERANCE = 1e-3
"""Largest difference to the student that a file may have in any output; measured ones are a thousand times smaller."""
ONNX, PROGRAM = "model.onnx", "model.pt2"
INPUT = "pixels"
EXTERNAL_BYTES = 1_500_000_000
"""From this size on, ONNX weights lie in a file of their own: protobuf ends at 2 GiB."""
CHECKED_BATCHES = (1, 3)
TIMED_CALLS = 3
"""Warm ones, whose mean is stated: of the last batch size."""


class Portable(nn.Module):
    """The student with its normalisation: uint8 pixels (B, H, W, 3) to raw outputs, in the order of `names`.

    With tasks each is (B, channels, H, W), called as the task; without, each is a level's map (B, C, h, w) of
    `features`, called `<stem or teacher>_<level>`.
    """

    def __init__(self, model: Student) -> None:
        super().__init__()
        self.model = model

    @property
    def names(self) -> list[str]:
        """What the outputs are called."""
        config = self.model.config.student
        if config.tasks:
            return [task.name for task in config.tasks]
        parts = ["stem", *self.model.network.paths]
        return [f"{part}_{level}" for part in parts for level in range(len(self.model.network.levels))]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """What the student gives for images, in the order of `names`.

        Args:
            pixels: uint8 (B, H, W, 3).
        """
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
        if self.model.config.student.tasks:
            return tuple(self.model.network(images * 2 - 1).outputs.values())
        return tuple(level for levels in self.model.features(images).values() for level in levels)


def write_onnx(model: Student, out: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Write `model.onnx` into the folder `out` for images of `size` (H, W) px and any batch, checked in onnxruntime.

    Returns:
        The file, opset, input and outputs, the largest difference to torch, and seconds an image on the CPU.

    Raises:
        UserError: the libraries are missing, the patch does not divide the size, or an output differs by more than
            `TOLERANCE`; the file is then removed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # what torch's exporter needs
    except ModuleNotFoundError as error:
        raise UserError(f"--onnx needs {error.name}: {how_to_install('onnx')}") from None
    portable, example = _prepare(model, size)
    path = out / ONNX
    big = sum(value.nbytes for value in portable.state_dict().values()) > EXTERNAL_BYTES
    with _quiet():
        program = torch.onnx.export(
            portable,
            (example,),
            input_names=[INPUT],
            output_names=portable.names,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with this machine's paths in them
        program.save(str(path), external_data=big)
    opset = next(entry.version for entry in onnx.load(path, load_external_data=False).opset_import if not entry.domain)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> Sequence[Any]:
        found: Sequence[Any] = session.run(portable.names, {INPUT: pixels.numpy()})
        return found

    return {"opset": opset, **_check(portable, path, size, run)}


def write_program(model: Student, out: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Write `model.pt2`, a `torch.export` program for images of `size` (H, W) px and any batch, and check it.

    It is checked as it reads back. What it returns, and errors, as `write_onnx`.
    """
    portable, example = _prepare(model, size)
    path = out / PROGRAM
    with _quiet():
        program = torch.export.export(portable, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, path)
        again = torch.export.load(path).module()

    def run(pixels: Tensor) -> Sequence[Any]:
        return [output.numpy() for output in again(pixels)]

    return {"torch": torch.__version__, **_check(portable, path, size, run)}


def _prepare(model: Student, size: tuple[int, int]) -> tuple[Portable, Tensor]:
    patch = model.network.stem.multiple
    if size[0] % patch or size[1] % patch:
        raise UserError(f"size {size[0]}x{size[1]}: both sides must be multiples of the stem's patch of {patch} px")
    if (fixed := model.network.fixed_size) and size != fixed:
        raise UserError(f"size {size[0]}x{size[1]}: this student's decoder takes {fixed[0]}x{fixed[1]} px alone")
    return Portable(model.cpu()).eval().requires_grad_(False), _pixels(2, size, seed=0)


def _pixels(batch: int, size: tuple[int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def _check(
    portable: Portable, path: Path, size: tuple[int, int], run: Callable[[Tensor], Sequence[Any]]
) -> dict[str, Any]:
    """Compare `run`, which the file at `path` gave, with the student on several batches."""
    largest, seconds = 0.0, 0.0
    for batch in CHECKED_BATCHES:
        pixels = _pixels(batch, size, seed=batch)
        found = run(pixels)  # the first call of a batch size also builds what later ones use again
        began = time.perf_counter()
        for _ in range(TIMED_CALLS):
            run(pixels)
        seconds = (time.perf_counter() - began) / (TIMED_CALLS * batch)
        for name, ours, theirs in zip(portable.names, portable(pixels), found, strict=True):
            difference = float(np.abs(ours.numpy() - np.asarray(theirs)).max())
            if not difference <= TOLERANCE:
                path.unlink()
                raise UserError(f"{path.name} differs from the student by {difference:g} in {name}: not written")
            largest = max(largest, difference)
    say(f"{path}: largest difference to the student {largest:.1e}, {seconds:.3f} s an image on this CPU")
    return {
        "file": str(path),
        "input": {INPUT: ["batch", *size, 3]},
        "outputs": portable.names,
        "largest_difference": largest,
        "s_per_image": round(seconds, 4),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' accounts of themselves, which would also land on stdout."""
    with quiet(logging.WARNING), warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
