"""Balance: teachers' features brought to one scale before the student is compared with them.

Features of different teachers differ in scale by orders of magnitude, and so would their losses. Every
balance is an invertible affine map of a token's channels, fitted on statistics of the teacher's features
(mean and covariance). The student then learns the balanced features; `inverse` gives its estimate of the
teacher's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sak_common.names import find
from sak_core.losses.hadamard import hadamard


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of one teacher's level over tokens: mean (C,) and covariance (C, C).

    `deviation` (C,) is what channels are divided by to be standardized, where that is not their standard deviation:
    greater where a channel is mostly noise, infinite where there is nothing but noise.
    """

    mean: Tensor
    covariance: Tensor
    deviation: Tensor | None = None

    def __post_init__(self) -> None:
        width = len(self.mean)
        if self.covariance.shape != (width, width):
            raise ValueError(f"the covariance of {width} channels is {tuple(self.covariance.shape)}")


class AffineBalance(nn.Module):
    """y = scale · (x - mean), `scale` a factor a channel or a matrix.

    Args:
        mean: (C,).
        scale: (C,) or (C, C).
        unscale: its inverse, likewise.
    """

    mean: Tensor
    scale: Tensor
    unscale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, unscale: Tensor) -> None:
        super().__init__()
        # fitted in float64, applied in float32
        for name, value in (("mean", mean), ("scale", scale), ("unscale", unscale)):
            self.register_buffer(name, value.float())

    def forward(self, maps: Tensor) -> Tensor:
        """The teacher's map (B, C, h, w) to the balanced one."""
        return _scaled(maps.permute(0, 2, 3, 1) - self.mean, self.scale).permute(0, 3, 1, 2)

    def inverse(self, maps: Tensor) -> Tensor:
        """A balanced map (B, C, h, w) to the teacher's own."""
        return (_scaled(maps.permute(0, 2, 3, 1), self.unscale) + self.mean).permute(0, 3, 1, 2)


def _scaled(tokens: Tensor, scale: Tensor) -> Tensor:
    """(..., C) times a factor a channel, or a matrix from the left."""
    return tokens * scale if scale.ndim == 1 else nn.functional.linear(tokens, scale)


def standardize(statistics: ChannelStatistics) -> AffineBalance:
    """Every channel to mean 0 and variance 1, or to less where `ChannelStatistics.deviation` says so.

    Raises:
        ValueError: a channel is constant; it is named.
    """
    deviation = statistics.deviation
    if deviation is None:
        deviation = statistics.covariance.double().diagonal().sqrt()
    if constant := torch.nonzero(~(deviation > 0)).flatten().tolist():
        raise ValueError(f"channels {constant[:8]} are constant and cannot be standardised")
    # of a channel that is nothing but noise the mean is all that there is to estimate
    return AffineBalance(statistics.mean, 1 / deviation, deviation.where(deviation.isfinite(), 0.0))


def phi_s(statistics: ChannelStatistics) -> AffineBalance:
    """PHI-S: rotation by the principal basis, then by a Hadamard matrix, and one scale for all channels.

    y = (mean eigenvalue)^-1/2 · H Uᵀ (x - mean), with covariance U Λ Uᵀ and H orthonormal. Every channel then has
    variance 1, and errors keep their relative size in every direction, since nothing but a rotation and one factor is
    applied. Source: Ranzinger et al. 2024 (arXiv 2410.01680).

    Raises:
        ValueError: the width has no Hadamard matrix here, or all features are the same.
    """
    covariance = statistics.covariance.double().cpu()
    values, basis = torch.linalg.eigh((covariance + covariance.T) / 2)
    mean_variance = values.mean()
    if not mean_variance > 0:
        raise ValueError("features without variance cannot be balanced")
    width = len(statistics.mean)
    mixing = torch.from_numpy(hadamard(width).astype("float64")) / width**0.5
    # the sign of an eigenvector is arbitrary: fixed here, for a balance that does not depend on the library
    largest = basis.abs().argmax(dim=0)
    basis = basis * basis[largest, torch.arange(width)].sign()
    rotation = mixing @ basis.T
    scale = mean_variance.sqrt()
    return AffineBalance(statistics.mean.cpu(), rotation / scale, rotation.T * scale)


BALANCES: dict[str, Callable[[ChannelStatistics], AffineBalance] | None] = {
    "none": None,
    "standardize": standardize,
    "phi-s": phi_s,
}
"""Balances by name; "none" is the published one."""


class Balance(nn.Module):
    """The balance of all teachers and levels."""

    def __init__(self, kind: str, statistics: Mapping[str, Sequence[ChannelStatistics]]) -> None:
        """Fit `kind` to every teacher and level.

        Args:
            kind: a key of `BALANCES`.
            statistics: one a level, shallowest first, by teacher; unused for "none".

        Raises:
            ValueError: the kind is unknown, or statistics cannot be balanced; teacher and level are named.
        """
        super().__init__()
        fit = find("balance", kind, BALANCES)
        self.by_teacher = nn.ModuleDict()
        if fit is not None:
            for teacher, levels in statistics.items():
                self.by_teacher[teacher] = nn.ModuleList(
                    _fitted(fit, level, f"{teacher} level {i}") for i, level in enumerate(levels)
                )
        self.is_identity = fit is None

    def forward(self, features: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Teachers' features, one (B, C, h, w) a level by teacher, to balanced ones.

        Raises:
            ValueError: a teacher has no statistics; it is named.
        """
        if self.is_identity:
            return {teacher: list(maps) for teacher, maps in features.items()}
        balanced: dict[str, list[Tensor]] = {}
        for teacher, maps in features.items():
            if teacher not in self.by_teacher:
                raise ValueError(f"no statistics of teacher {teacher!r}, there are some of {list(self.by_teacher)}")
            levels = self.by_teacher[teacher]
            assert isinstance(levels, nn.ModuleList)
            balanced[teacher] = [level(m) for level, m in zip(levels, maps, strict=True)]
        return balanced


def _fitted(
    fit: Callable[[ChannelStatistics], AffineBalance], statistics: ChannelStatistics, where: str
) -> AffineBalance:
    try:
        return fit(statistics)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
