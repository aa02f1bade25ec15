"""What every teacher is and costs, for lists: from its spec and one pass that computes shapes alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SIZE = (384, 384)
"""(H, W) of the views that `FACTS_FILE` tells of, px."""

FACTS_FILE = Path(__file__).parent / "facts.json"
"""Facts of all rows at `SIZE`; `python -m sak_core.teachers.facts` writes it anew, a test holds it to the networks."""


@dataclass(frozen=True)
class TeacherFacts:
    """One teacher at one size of views. What is not said here is `TeacherSpec`'s.

    Attributes:
        parameters: of the tower.
        flops: of one image's forward pass, an addition and a multiplication being two.
        native_size: (H, W) px that its weights were trained at.
        input_size: (H, W) px that it sees here.
        grids: (h, w) cells a level.
    """

    name: str
    library: str
    model: str
    licence: str
    parameters: int
    flops: int
    native_size: tuple[int, int] | None
    input_size: tuple[int, int]
    patch: int
    levels: tuple[int, ...]
    widths: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


def measure(name: str, size: tuple[int, int] = SIZE, allow_code: bool = False) -> dict[str, Any]:
    """The facts of one teacher for views of `size`, as JSON holds them; no weights are needed or drawn.

    Raises:
        UnknownName, TeacherUnavailable: as `build_teacher`.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sak_core.teachers import build_teacher, find_teacher

    device = torch.device("meta")
    with device:
        teacher = build_teacher(name, size, random_weights=True, allow_code=allow_code)
    teacher.to(device)
    with FlopCounterMode(display=False) as counter:
        teacher(torch.zeros(1, *size, 3, dtype=torch.uint8, device=device))
    spec = teacher.spec
    return _plain(
        TeacherFacts(
            name=name,
            library=spec.library,
            model=spec.model,
            licence=find_teacher(name).licence or spec.licence,
            parameters=sum(parameter.numel() for parameter in teacher.parameters()),
            flops=int(counter.get_total_flops()),
            native_size=teacher.native_size,
            input_size=spec.input_size,
            patch=spec.patch,
            levels=spec.levels,
            widths=spec.widths,
            grids=spec.level_grids(),
            mean=spec.mean,
            std=spec.std,
            interpolation=spec.interpolation,
        )
    )


def known_facts() -> list[dict[str, Any]]:
    """The facts of all rows at `SIZE`, as they were measured."""
    rows: list[dict[str, Any]] = json.loads(FACTS_FILE.read_text())
    return rows


def _plain(facts: TeacherFacts) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(facts)))
    return plain


def write_facts(names: Sequence[str]) -> None:
    """Measure `names` and write them into `FACTS_FILE`, a line each."""
    lines = ",\n".join(json.dumps(measure(name)) for name in names)
    FACTS_FILE.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    from sak_core.teachers import TEACHERS

    write_facts(list(TEACHERS))
