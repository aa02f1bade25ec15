"""What an image costs a student: multiply-adds by part."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from sak_core.student.network import StudentNetwork
from sak_core.student.parts import PARTS


def count_macs(student: StudentNetwork, size: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds of matrix products and convolutions in evaluation of one image of `size` (H, W) px, by part, parts
    without any left out, and their sum as "total". The student may be on the meta device, where nothing is computed.
    """
    was_training = student.training
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        student.eval()(torch.empty(1, 3, *size, device=next(student.parameters()).device))
    student.train(was_training)
    by_module = {name: sum(found.values()) // 2 for name, found in counter.get_flop_counts().items()}
    root = type(student).__name__
    counts = {}
    for part, modules in PARTS.items():
        below = {n: count for n, count in by_module.items() if n.startswith(tuple(f"{root}.{m}" for m in modules))}
        own = [count for n, count in below.items() if not any(n.startswith(f"{other}.") for other in below)]
        if sum(own):
            counts[part] = sum(own)
    return {**counts, "total": by_module["Global"]}
