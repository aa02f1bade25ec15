"""Small students and batches for tests."""

import torch
from torch import Tensor

from sak_core.student.config import StudentConfig
from sak_core.student.network import StudentNetwork
from sak_core.student.stem import StemConfig
from sak_core.tasks import Task

TASKS = (
    Task("semseg", "classes", ("wall", "floor", "chair", "lamp", "cup")),
    Task("saliency", "saliency", weight=5.0),
    Task("depth", "depth"),
    Task("normals", "normals", weight=10.0),
    Task("boundary", "boundary", weight=50.0),
)
SIZE = (32, 48)
TEACHERS = {"dino": (20, 20, 24, 24), "clip": 12}
GRIDS = {"dino": (4, 6), "clip": (6, 9)}


def config(**changes: object) -> StudentConfig:
    """A student of patch 8, width 16, four blocks, on images of `SIZE`."""
    values = {"stem": StemConfig("custom", SIZE, 8, 16, 4, 2), "teachers": TEACHERS, "tasks": TASKS, **changes}
    return StudentConfig(**values)


def student(seed: int = 0, **changes: object) -> StudentNetwork:
    """`config` built with weights of a seed, the router's last layers spread so that experts differ."""
    torch.manual_seed(seed)
    built = StudentNetwork(config(**changes))
    for parameter in built.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return built


def images(rows: int = 2, size: tuple[int, int] = SIZE, seed: int = 1) -> Tensor:
    """(rows, 3, *size) standard normal."""
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(seed))


def features(rows: int = 2, teachers: dict = TEACHERS, seed: int = 2) -> dict[str, list[Tensor]]:
    """Random features of every teacher, four levels."""
    g = torch.Generator().manual_seed(seed)
    widths = {name: (w,) * 4 if isinstance(w, int) else w for name, w in teachers.items()}
    return {name: [torch.randn(rows, w, *GRIDS[name], generator=g) for w in ws] for name, ws in widths.items()}


def labels(rows: int = 2, size: tuple[int, int] = SIZE, seed: int = 3) -> dict[str, Tensor]:
    """Random labels of `TASKS` with some ignored pixels."""
    g = torch.Generator().manual_seed(seed)
    made = {
        "semseg": torch.randint(0, 5, (rows, *size), generator=g).byte(),
        "saliency": torch.randint(0, 2, (rows, *size), generator=g).byte(),
        "boundary": (torch.rand(rows, *size, generator=g) < 0.2).byte(),
        "depth": torch.rand(rows, *size, generator=g) * 5 + 0.5,
        "normals": torch.nn.functional.normalize(torch.randn(rows, *size, 3, generator=g), dim=-1),
    }
    for label in made.values():
        label[:, :2] = 255
    return made
