"""The method once more, as plain functions of a reference state dict: an oracle for cases that have no
fixture.

Written from the description of what the reference computes, without a module of sak_core; slow and literal on
purpose.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Forward:
    """One forward pass of the reference in evaluation mode, of 12 blocks tapped at 2, 5, 8, 11."""

    TAPPED = (2, 5, 8, 11)

    def __init__(
        self, state: Mapping[str, Tensor], heads: int, teachers: Sequence[str], tasks: Sequence[str], router: str
    ) -> None:
        self.state = {name.removeprefix("backbone."): value for name, value in state.items()}
        self.num_heads, self.teachers, self.tasks, self.router = heads, list(teachers), list(tasks), router

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def block(self, x: Tensor, i: int) -> Tensor:
        b, n, c = x.shape
        qkv = self.linear(self.norm(x, f"vit.blocks.{i}.norm1", 1e-6), f"vit.blocks.{i}.attn.qkv")
        q, k, v = qkv.view(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) * (c // self.num_heads) ** -0.5).softmax(-1)
        x = x + self.linear((attention @ v).transpose(1, 2).reshape(b, n, c), f"vit.blocks.{i}.attn.proj")
        hidden = gelu(self.linear(self.norm(x, f"vit.blocks.{i}.norm2", 1e-6), f"vit.blocks.{i}.mlp.fc1"))
        return x + self.linear(hidden, f"vit.blocks.{i}.mlp.fc2")

    def adapter(self, x: Tensor, name: str) -> Tensor:
        return x + self.state[f"{name}.scale"] * self.linear(gelu(self.linear(x, f"{name}.down")), f"{name}.up")

    def mixture(self, stem: Tensor, features: list[Tensor], i: int, task: str) -> Tensor:
        experts = [stem, *features]
        if self.router == "none":
            return torch.stack(experts).sum(0)
        name = f"mor.{i}_{task}.router.module"
        gates = self.linear(gelu(self.norm(self.linear(stem, f"{name}.0"), f"{name}.1", 1e-5)), f"{name}.3").mean(1)
        weights = gates[:, : len(experts)].softmax(1)
        return torch.einsum("be,ebnc->bnc", weights, torch.stack(experts))

    def head(self, levels: list[Tensor], task: str, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        maps = []
        for i, level in enumerate(levels):
            tokens = self.linear(level, f"heads.{task}.linears.{i}")
            square = tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)
            maps.append(F.interpolate(square, (size[0] // 4, size[1] // 4), mode="bilinear"))
        s, name = self.state, f"heads.{task}"
        x = F.conv2d(torch.cat(maps, 1), s[f"{name}.linear_fuse.0.weight"], s[f"{name}.linear_fuse.0.bias"], padding=1)
        mean, var = s[f"{name}.linear_fuse.1.running_mean"], s[f"{name}.linear_fuse.1.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = x * s[f"{name}.linear_fuse.1.weight"][:, None, None] + s[f"{name}.linear_fuse.1.bias"][:, None, None]
        x = F.conv2d(gelu(x), s[f"{name}.last_conv.weight"], s[f"{name}.last_conv.bias"])
        return F.interpolate(x, size, mode="bilinear")

    def __call__(self, image: Tensor) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
        size = (image.shape[2], image.shape[3])
        grid = (size[0] // 16, size[1] // 16)
        s = self.state
        patches = F.conv2d(image, s["vit.patch_embed.proj.weight"], s["vit.patch_embed.proj.bias"], stride=16)
        cls = s["vit.cls_token"].expand(len(image), -1, -1)
        x = torch.cat([cls, patches.flatten(2).transpose(1, 2)], 1) + s["vit.pos_embed"]
        paths = {t: self.adapter(x, f"tsap.{t}.0") for t in self.teachers}
        aligned: dict[str, list[Tensor]] = {t: [] for t in self.teachers}
        levels: dict[str, list[Tensor]] = {task: [] for task in self.tasks}
        for i in range(12):
            x = self.block(x, i)
            paths = {t: self.adapter(r + x, f"tsap.{t}.{i + 1}") for t, r in paths.items()}
            if i not in self.TAPPED:
                continue
            features = {t: self.norm(r[:, 1:], f"out_norms.{i}_{t}", 1e-5) for t, r in paths.items()}
            for t, f in features.items():
                name = f"ts_aligners.{i}_{t}"
                out = self.linear(f, name) if f"{name}.weight" in s else f
                aligned[t].append(out.transpose(1, 2).reshape(len(out), -1, *grid))
            for task in self.tasks:
                levels[task].append(self.mixture(x[:, 1:], list(features.values()), i, task))
        return aligned, {task: self.head(levels[task], task, grid, size) for task in self.tasks}


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def distillation(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """The published losses on one level, by torch's own modules."""
    if teacher.shape[2] > student.shape[2]:
        student = F.interpolate(student, teacher.shape[2:], mode="bilinear")
    elif teacher.shape[2:] != student.shape[2:]:
        teacher = F.interpolate(teacher, student.shape[2:], mode="bilinear")
    cosine = (1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1))).mean()
    if kind == "cos":
        return cosine
    return F.mse_loss(student, teacher) if kind == "l2" else 0.9 * cosine + 0.1 * F.smooth_l1_loss(student, teacher)
