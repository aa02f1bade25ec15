"""What features of trained teachers take in bits at a fidelity: `sak frontier` on the miniature teachers' levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Result, Row, checksum, installed
from cache.codecs import get_codec
from cache.codecs.coders import get_coder
from pipeline.maintenance.frontier import PREDICTED, Source, frontier
from sak_core.miniature.rooms.dataset import Rooms
from sak_core.teachers import build_teacher

TEACHERS = ("mini-dino", "mini-clip", "mini-sam")
LIMITS = {0.9995: 4.5, 0.995: 2.85, 0.98: 1.75}
"""Bits that klt's best setting may take for one level."""
PREDICTED_AT, PREDICTED_LIMIT = 0.995, 2.75
"""For three levels of a teacher, on average."""
DECODE_M_PER_S = 400
GOAL = (
    "klt at most 4.5, 2.85 and 1.75 bits at cosine 0.9995, 0.995 and 0.98; three levels together at most "
    "2.75 at 0.995; entropy decoding at least 400 M values/s a core"
)


@dataclass
class FrontierRow(Row):
    """A codec's figures on a teacher's levels; its seconds are those of entropy decoding."""

    figures: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**super().to_dict(), **(self.figures or {})}


def run(quick: bool) -> Result:
    """See `GOAL`; a row a teacher, fidelity and codec setting. The value of each limit is the worst teacher's."""
    rows: list[Row] = []
    worst: dict[str, float] = {}
    slowest = float("inf")
    pixels = _pixels(64 if quick else 256)
    for teacher in TEACHERS[:1] if quick else TEACHERS:
        sources = _sources(teacher, pixels)
        for fidelity, name, levels in [
            *((fidelity, f"bits_at_{fidelity}", sources[-1:]) for fidelity in LIMITS),
            (PREDICTED_AT, "bits_together", sources[-3:]),
        ]:
            results = frontier(levels, fidelity)["results"]
            made = [_row(teacher, fidelity, levels, result) for result in results]
            rows += made
            klt = [result for result in results if result["codec"].startswith("klt")]
            best = min(klt, key=lambda result: float(result["bits"]))
            worst[name] = max(worst.get(name, 0.0), best["bits"])
            slowest = min(slowest, best["decode_values_per_s"] / 1e6)
    limits = {**{f"bits_at_{fidelity}": limit for fidelity, limit in LIMITS.items()}, "bits_together": PREDICTED_LIMIT}
    holds = all(worst[name] <= limit for name, limit in limits.items()) and slowest >= DECODE_M_PER_S
    return Result("frontier", GOAL, {**worst, "decode_m_values_per_s": slowest}, holds, rows)


def _pixels(count: int) -> torch.Tensor:
    dataset = Rooms("test")
    return torch.from_numpy(np.stack([np.asarray(dataset.load(index).image) for index in range(count)]))


def _sources(teacher: str, pixels: torch.Tensor) -> list[Source]:
    """A teacher's levels on these pictures: one half to fit on, the other to report on."""
    network = build_teacher(teacher, size=(pixels.shape[1], pixels.shape[2]))
    with torch.inference_mode():
        batches = [network(pixels[start : start + 32]) for start in range(0, len(pixels), 32)]
    report = np.arange(1, len(pixels), 2)
    sources = []
    for maps in zip(*batches, strict=True):
        grid = (maps[0].shape[2], maps[0].shape[3])
        features = torch.cat([batch.flatten(2).transpose(1, 2) for batch in maps]).float().numpy()
        sources.append(Source(np.ascontiguousarray(features[::2]), np.ascontiguousarray(features[1::2]), report, grid))
    return sources


def _row(teacher: str, fidelity: float, levels: list[Source], result: dict[str, Any]) -> FrontierRow:
    """The checksum is of the features that were coded, the same for every codec of a teacher and its levels."""
    digest, _ = checksum(source.report for source in levels)
    values = sum(source.report.size for source in levels)
    how = f", {len(levels)} levels" if len(levels) > 1 else ""
    coder = get_codec(result["codec"].removesuffix(PREDICTED)).coder
    note = f"{result['bits']:.3f} bits, cosine {result['cosine']:.5f}"
    return FrontierRow(
        f"{teacher}{how} at {fidelity}: {result['codec']}",
        installed(coder and get_coder(coder).package),
        note,
        round(result["bits"] * values / 8),
        digest,
        [values / result["decode_values_per_s"]],
        "M values/s",
        values / 1e6,
        figures={**result, "teacher": teacher, "fidelity": fidelity, "together": result["codec"].endswith(PREDICTED)},
    )
