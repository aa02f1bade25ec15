"""A teacher set up as a request asks: what extraction, repair and live checks run rows through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from cache.codecs import get_codec
from cache.codecs.coders import get_coder
from cache.format.spec import LevelSpec
from pipeline.errors import UserError
from pipeline.extraction.frozen_teacher import build_frozen
from pipeline.extraction.request import TeacherRequest
from pipeline.extraction.student_teacher import build_student_teacher
from pipeline.machine import processor
from pipeline.recipes.frozen import cached_name, is_output, is_own
from pipeline.recipes.stores import REGISTERS, are_random, understood
from sak_common.names import part_name
from sak_core.interfaces.teacher import Teacher
from sak_core.teachers import build_teacher

LIBRARIES = {
    "timm": "timm",
    "open_clip": "open_clip_torch",
    "segment_anything": "segment-anything",
    "transformers": "transformers",
}
"""Distribution that a teacher's library comes from, for versions in the provenance."""

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by `torch.autocast`; fp32 is everything in float32."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RunningTeacher:
    """A teacher set up as a request asks: what extraction, repair and live checks run rows through.

    Attributes:
        request: as asked.
        device: where it runs.
        teacher: built, with its weights.
        network: the teacher, or its compiled form.
        levels: as stored.
        provenance: what decides the bytes of its features.
    """

    request: TeacherRequest
    device: torch.device
    teacher: Teacher
    network: Callable[[torch.Tensor], list[torch.Tensor]]
    levels: tuple[LevelSpec, ...]
    provenance: dict[str, Any]

    def forward(self, pixels: Array) -> list[Array]:
        """uint8 pixels (n, H, W, 3) to one float32 (n, h, w, C) a level, area-averaged to the requested grid;
        then (n, 1, P, C) of prefix tokens where they are stored."""
        if self.teacher.mean.device.type != self.device.type:  # several teachers share a GPU one after the other
            self.teacher.to(self.device)
        with torch.inference_mode():
            maps = self.maps(torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device))
        return [m.permute(0, 2, 3, 1).contiguous().cpu().numpy() for m in maps]

    def maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """uint8 pixels (n, H, W, 3) on the teacher's device to one float32 (n, C, h, w) a level, likewise."""
        half = AMP.get(self.request.precision)
        with torch.autocast(self.device.type, half, enabled=half is not None):
            maps = self.network(pixels)
        if self.request.grid:
            count, grid = len(self.teacher.spec.levels), self.request.grid
            maps = [*(F.adaptive_avg_pool2d(m.float(), grid) for m in maps[:count]), *maps[count:]]
        return [m.float() for m in maps]


def start_teacher(request: TeacherRequest, size: tuple[int, int]) -> RunningTeacher:
    """Build a teacher for views of `size`, with its number of threads; it moves to its device with its first rows.

    Raises:
        UserError, or what `build_teacher` raises: the device is not there.
    """
    device = resolve_device(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)
    teacher = _build(request, size)
    # not dynamic: a batch's kernel must not depend on which sizes came before it
    network = torch.compile(teacher, dynamic=False) if request.compile else teacher
    levels, provenance = level_specs(teacher, request), _provenance(teacher, request, device)
    return RunningTeacher(request, device, teacher, network, levels, provenance)


def with_fidelity(running: RunningTeacher, fidelity: float | None) -> RunningTeacher:
    """The same teacher with a promise about tasks turned into this token cosine."""
    request = replace(running.request, fidelity=fidelity)
    levels, provenance = level_specs(running.teacher, request), _provenance(running.teacher, request, running.device)
    return replace(running, request=request, levels=levels, provenance=provenance)


def _build(request: TeacherRequest, size: tuple[int, int]) -> Teacher:
    if is_own(request.name):
        return _build_own(request, size)
    return build_teacher(
        request.name,
        size=size,
        levels=request.levels,
        weights=request.weights,
        random_weights=request.random_weights,
        allow_code=request.allow_code,
        prefix=request.prefix,
    )


def _build_own(request: TeacherRequest, size: tuple[int, int]) -> Teacher:
    """A frozen part, or an output of a student. Options that it has no use for, and would pass over, are refused."""
    what, is_whole = ("a student's output", False) if is_output(request.name) else ("a frozen part", True)
    if request.grid and is_whole:
        raise UserError(f"{request.name}: frozen parts are read token by token; leave --grid out")
    if request.weights or request.random_weights:
        option = "--weights" if request.weights else "--random-weights"
        raise UserError(f"{request.name}: {what} has the weights of its recipe or run; leave {option} out")
    teacher: Teacher = build_frozen(request.name, size) if is_whole else build_student_teacher(request.name, size)
    if request.levels is not None and request.levels != teacher.spec.levels:
        levels = ",".join(map(str, teacher.spec.levels))
        why = "all that training does not run again" if is_whole else "what the student taps"
        raise UserError(f"{request.name}: {what} is {why}, here levels {levels}; leave --levels out")
    return teacher


def batches(rows: range, batch_size: int) -> Iterator[range]:
    """The rows of a shard as the teacher sees them: cut the same way always, so that a row's numbers never depend on
    a resume, a repair or who computes them."""
    for first in range(rows.start, rows.stop, batch_size):
        yield range(first, min(first + batch_size, rows.stop))


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no GPU on this machine; use --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: torch knows no such device; use auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} GPUs, counted from cuda:0")
    return device


def device_model(device: torch.device) -> str:
    """The model of the device: a GPU's or a processor's name; bytes may differ between models."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def level_specs(teacher: Teacher, request: TeacherRequest) -> tuple[LevelSpec, ...]:
    """The levels that a run of `teacher` stores, maps first, then prefix tokens where it gives them."""
    levels = list(enumerate(zip(teacher.spec.level_grids(), teacher.spec.widths, strict=True)))
    maps = [
        LevelSpec(
            level,
            request.grid or grid,
            width,
            request.codec,
            fidelity=request.fidelity,
            standardized=request.standardized,
        )
        for level, (grid, width) in levels
    ]
    if request.predict_levels:
        alike = [level for level in maps if level.level and maps[level.level - 1].grid == level.grid]
        maps = [replace(level, predicts_from=level.level - 1) if level in alike else level for level in maps]
    if not teacher.num_prefix:
        return tuple(maps)
    size = (1, teacher.num_prefix)
    # so few tokens that coding saves nothing, and a class token that hardly varies over images needs all its digits
    return (*maps, *(LevelSpec(level, size, width, "fp32", prefix=True) for level, (_, width) in levels))


def _provenance(teacher: Teacher, request: TeacherRequest, device: torch.device) -> dict[str, Any]:
    """What decides the bytes of this teacher's features."""
    library, coder = LIBRARIES.get(teacher.spec.library), get_codec(request.codec).coder
    made_by = ["torch", *([library] if library else []), *([get_coder(coder).package] if coder else [])]
    versions = {name: version(name) for name in made_by}
    return {
        "name": cached_name(request.name) if is_own(request.name) else part_name(request.name),
        "teacher": teacher.spec.to_dict(),
        "grid": list(request.grid) if request.grid else "native",
        "codec": request.codec,
        **({} if request.fidelity is None else {"fidelity": request.fidelity}),
        **({"standardized": True} if request.standardized else {}),
        **({"together": True} if request.predict_levels else {}),
        **({"prefix": True if teacher.has_class_token else REGISTERS} if request.prefix and teacher.num_prefix else {}),
        "precision": request.precision,
        "compile": request.compile,
        "batch_size": request.batch_size,
        "device": device_model(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "versions": versions,
        **({"notes": notes} if (notes := _notes(teacher, request)) else {}),
    }


def _notes(teacher: Teacher, request: TeacherRequest) -> dict[str, Any]:
    """What decides no byte of the features, as far as it is not as always."""
    asked = request.levels or is_output(request.name)
    return {
        **({"weights_from": teacher.weights_from} if request.weights and teacher.weights_from else {}),
        # a teacher's own levels end with its last block; a student's may not
        **({"num_blocks": teacher.num_blocks} if asked and teacher.num_blocks else {}),
        **({"probes": _probes(request)} if request.probes else {}),
    }


def _probes(request: TeacherRequest) -> dict[str, Any]:
    """Whose rows a part's probes are fitted and scored on, and what was promised of tasks."""
    rows = str(request.probes).rstrip("/").rpartition("/")[2]
    return {"rows": rows, **({"promised": dict(request.promised)} if request.promised else {})}


def request_of(
    provenance: Mapping[str, Any], weights: Path | None = None, device: str = "auto", allow_code: bool = False
) -> TeacherRequest:
    """The request that made a part with this provenance, for making it again.

    Args:
        weights: file that holds the teacher's weights, where they come from neither the package, a hub nor a seed.
        allow_code: whether a teacher of a user's own module may run.

    Raises:
        UserError: it is not as `sak cache` writes it.
    """
    with understood("a provenance"):
        teacher = provenance["teacher"]
        request = TeacherRequest(
            teacher["name"],
            codec=provenance["codec"],
            fidelity=provenance.get("fidelity"),
            standardized=provenance.get("standardized", False),
            probes="own" if provenance.get("notes", {}).get("probes", {}).get("rows") == "own" else None,
            predict_levels=provenance.get("together", False),
            levels=tuple(teacher["levels"]),
            prefix=bool(provenance.get("prefix", False)),
            grid=None if provenance["grid"] == "native" else (provenance["grid"][0], provenance["grid"][1]),
            weights=weights,
            random_weights=weights is None and are_random(teacher["weights"]),
            allow_code=allow_code,
            device=device,
            precision=provenance["precision"],
            compile=provenance.get("compile", False),
            batch_size=provenance["batch_size"],
            threads=provenance["threads"] or None,
        )
    return request
