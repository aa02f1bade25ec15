"""LoRA in place of adapters: a teacher's path is the stem run once more, its attention's projections changed by a
low-rank matrix of the teacher's own (Hu et al. 2022, arXiv 2106.09685), through peft.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from sak_core.student.adapters import tapped
from sak_core.student.stem import Stem

MARK = ".lora_"
"""In the name of every parameter that peft adds to the stem; they belong to the paths."""
_BASE = "base_layer."


class LoraPath(nn.Module):
    """One teacher's path: x_0 through the stem's blocks with the teacher's low-rank changes; LayerNorm where it is
    tapped. With T teachers a step runs T + 1 stems; it is a row of an ablation, not a cheaper path.
    """

    def __init__(self, stem: Stem, teacher: str, levels: Sequence[int]) -> None:
        """Adds the low-rank matrices to `stem`, which keeps what it computes by itself.

        Args:
            stem: whose `qkv` layers are changed, of rank width / 8, which gives a block as many parameters as an
                adapter has.
            levels: tapped blocks, ascending.
        """
        super().__init__()
        # in a list, so that the stem is not registered a second time
        self._stem = [stem]
        self.teacher, self.levels = teacher, tuple(levels)
        _inject(stem, teacher)
        self.norms = nn.ModuleList(nn.LayerNorm(stem.width, eps=1e-5) for _ in self.levels)

    def forward(self, tokens: Sequence[Tensor], class_token: bool = False) -> list[Tensor]:
        """The stem's tokens, of which only x_0 (B, prefix + n, C) is read, to one feature f (B, n, C) a level.

        Args:
            class_token: whether the path's class token follows, normed likewise, one (B, 1, C) a level.
        """
        return tapped(self._states(tokens[0]), self.levels, self.norms, self._stem[0].num_prefix, class_token)

    def _states(self, x: Tensor) -> Iterator[Tensor]:
        """What each block makes of x_0."""
        for block in self._stem[0].vit.blocks:
            activate(block, [self.teacher])
            x = block(x)
            activate(block, [])
            yield x


def activate(module: nn.Module, teachers: list[str]) -> None:
    """Which teachers' changes `module` computes with; none gives the stem itself."""
    from peft.tuners.lora import LoraLayer

    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            # not `set_adapter`, which would freeze the other teachers' matrices in the middle of a step
            layer._active_adapter = teachers


def plain_name(name: str) -> str | None:
    """The name that a stem's entry has without LoRA, None for what LoRA added.

    >>> plain_name("blocks.0.attn.qkv.base_layer.weight"), plain_name("blocks.0.attn.qkv.lora_A.sam.weight")
    ('blocks.0.attn.qkv.weight', None)
    """
    return None if MARK in name else name.replace(_BASE, "")


def _inject(stem: Stem, teacher: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    rank = max(stem.width // 8, 1)
    config: Any = LoraConfig(r=rank, lora_alpha=rank, target_modules=["qkv"])
    with warnings.catch_warnings():
        # several adapters in one model are the purpose here
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, stem.vit.blocks, adapter_name=teacher)
    activate(stem.vit.blocks, [])
    stem.requires_grad_(True)
