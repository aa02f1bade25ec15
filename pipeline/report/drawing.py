"""Small drawings as SVG in the page's own colours: they follow its light and dark, and flow on a phone."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES = 8
"""Colours that the page tells series by; more of them differ by their mark."""
MARKERS = "oDs^vP*X"
GLYPHS = "●◆■▲▼✚★✖"
"""The same marks as text, for legends."""
WIDTH_PX = 330
"""Three of them lie side by side on a wide page."""

INK, QUIET, RULE, PAPER = "#0100f1", "#0100f2", "#0100f3", "#0100f4"
_NAMES = {INK: "ink", QUIET: "quiet", RULE: "rule", PAPER: "paper"}
_NAMES |= {f"#0100a{i}": f"s{i}" for i in range(SERIES)}


def colour(index: int) -> str:
    """What matplotlib is told for the page's colour of series `index`."""
    return f"#0100a{index % SERIES}"


def css_colour(index: int) -> str:
    """The same colour for the page."""
    return f"var(--s{index % SERIES})"


def marker(index: int) -> str:
    """The mark of series `index`: another one for each of the same colour."""
    return MARKERS[(index + index // SERIES) % len(MARKERS)]


def glyph(index: int) -> str:
    """The same mark as text."""
    return GLYPHS[(index + index // SERIES) % len(GLYPHS)]


def draw(salt: str, height_px: float, paint: Callable[[Axes], None], width_px: float = WIDTH_PX) -> str:
    """An SVG of `width_px` x `height_px`, whose axes `paint` fills.

    Text stays text, for screen readers and for the page's own font.

    Args:
        salt: a text that no other drawing has.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.linewidth": 0.8,
        "text.color": INK,
        "axes.labelcolor": QUIET,
        "axes.edgecolor": RULE,
        "axes.titlecolor": INK,
        "xtick.color": RULE,
        "ytick.color": RULE,
        "xtick.labelcolor": QUIET,
        "ytick.labelcolor": INK,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        canvas = Figure(figsize=(width_px / 72, height_px / 72), dpi=72, layout="constrained")
        canvas.patch.set_alpha(0)
        axes = canvas.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_the_page(out.getvalue(), salt)


def _for_the_page(svg: str, salt: str) -> str:
    """The drawing alone, with the page's colours and font, and ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    for sentinel, name in _NAMES.items():
        svg = svg.replace(sentinel, f"var(--{name})")
    svg = svg.replace("'DejaVu Sans'", "inherit").replace("DejaVu Sans", "inherit")
    svg = re.sub(r'(width|height)="([0-9.]+)pt"', r'\1="\2"', svg, count=2)
    svg = re.sub(r'\s(xmlns:xlink|version)="[^"]*"', "", svg, count=2).replace("xlink:href", "href")
    prefix = re.sub(r"[^a-z0-9]+", "-", salt.lower())
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    return re.sub(r"<[^>]+>", _coarser, svg).strip()


def _coarser(tag: re.Match[str]) -> str:
    """A tag with coordinates of two decimals; what is written between tags stays as it is."""
    return re.sub(r"(-?\d+\.\d{2})\d+", r"\1", tag[0])


def heat(
    axes: Axes,
    values: npt.NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[str],
    digits: int,
    percent: bool = False,
) -> None:
    """A table of shares in [0, 1] as shades of one colour, each with its number."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("shares", ["#f2f6fa", "#66a3d2"])
    axes.imshow(values, vmin=0, vmax=1, cmap=shades, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor", color=INK)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            told = f"{100 * value if percent else value:.{digits}f}"
            axes.text(float(x), float(y), told, ha="center", va="center", color="#0b1d2c", fontsize=10)
