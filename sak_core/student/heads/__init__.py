"""Heads turn four levels of features into a task's output; a new head is a file here and a row in `HEADS`."""

from sak_common.names import find
from sak_core.student.heads.base import Head
from sak_core.student.heads.dpt import DPTHead
from sak_core.student.heads.linear import LinearHead
from sak_core.student.heads.sak import SakHead

HEADS: dict[str, type[Head]] = {"sak": SakHead, "linear": LinearHead, "dpt": DPTHead}


def build_head(name: str, width: int, num_levels: int, channels: int) -> Head:
    """The head `name` for `num_levels` maps of `width` channels, giving `channels`.

    Raises:
        ValueError: there is no such head.
    """
    return find("head", name, HEADS)(width, num_levels, channels)


__all__ = ["HEADS", "DPTHead", "Head", "LinearHead", "SakHead", "build_head"]
