"""What a panel is built of: paragraphs, tables, figures with their tables. Plain values; the page draws them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.console import number

IMAGE_PX = 192
"""Longer side of a picture on the page."""

Value = float | int | str | None
Tone = Literal["", "better", "worse", "open", "quiet"]

LONGEST_WORD = 24
"""Letters of a word that stays whole in a table."""

WEBP_QUALITY = 82
"""Of photographs, with what no one sees left out."""


@dataclass(frozen=True)
class Cell:
    """A value in a table.

    Attributes:
        value: what the JSON holds.
        text: what people read.
        tone: how it is set.
    """

    value: Value
    text: str
    tone: Tone = ""

    @property
    def breaks(self) -> bool:
        """Whether it has a word that is broken where it must be, as digests and paths are."""
        return any(len(word) > LONGEST_WORD for word in self.text.split())


@dataclass(frozen=True)
class Column:
    """A table's column.

    Attributes:
        sense: which way is better, where there is one.
    """

    name: str
    numeric: bool = True
    sense: Literal["", "higher", "lower"] = ""


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first column names the row.

    Attributes:
        id: unique in the page, of its JSON, too.
        folded: whether it is shown when asked for.
    """

    id: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False

    def to_json(self) -> dict[str, Any]:
        """Columns and values, without their form."""
        return {
            "caption": self.caption,
            "columns": [column.name for column in self.columns],
            "rows": [[cell.value for cell in row] for row in self.rows],
        }


@dataclass(frozen=True)
class Picture:
    """An SVG drawing (`svg`) or an image (`source`, a data address).

    Attributes:
        alt: what it shows, for who cannot see it.
        size: (width, height) that the image is shown at, px.
        pixelated: whether its pixels are cells of a map, to be seen as such.
    """

    alt: str
    caption: str = ""
    svg: str = ""
    source: str = ""
    size: tuple[int, int] = (0, 0)
    pixelated: bool = False


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a mark in one of the page's colours (`colour`, a CSS value), and what it stands for."""

    mark: str
    colour: str
    text: str


@dataclass(frozen=True)
class Figure:
    """Pictures that belong together, what they show, and the table of the same numbers.

    rows: pictures a row, which stay side by side; 0 lets them flow.
    """

    id: str
    title: str
    caption: str
    pictures: Sequence[Picture]
    table: Table
    keys: Sequence[Key] = ()
    across: int = 0
    headings: Sequence[str] = ()


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        kind: "lead" is larger, "note" smaller, "warning" stands out.
    """

    text: str
    kind: Literal["lead", "plain", "note", "warning"] = "plain"


@dataclass(frozen=True)
class Listing:
    """Lines of code under a heading, folded away."""

    title: str
    lines: Sequence[str]


Block = Table | Figure | Text | Listing


@dataclass(frozen=True)
class Panel:
    """One part of the page.

    Attributes:
        id: of its address.
    """

    id: str
    title: str
    question: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    def tables(self) -> list[Table]:
        """Its tables, those of figures, too."""
        found = [block if isinstance(block, Table) else getattr(block, "table", None) for block in self.blocks]
        return [table for table in found if table is not None]


SPREAD = "± std"
"""Begins the name of a column of standard deviations over seeds."""


def without_empty_spread(table: Table) -> Table:
    """The table without columns of standard deviations that hold nothing, as those of one seed."""
    kept = [
        place
        for place, column in enumerate(table.columns)
        if not column.name.startswith(SPREAD) or any(row[place].value is not None for row in table.rows)
    ]
    rows = [[row[place] for place in kept] for row in table.rows]
    return replace(table, columns=[table.columns[place] for place in kept], rows=rows)


def name(text: str, tone: Tone = "") -> Cell:
    """A cell of words."""
    return Cell(text, text, tone)


def figure(value: float | None, digits: int = 1, unit: str = "", tone: Tone = "") -> Cell:
    """A cell of one number; "–" where there is none."""
    rounded = None if value is None else round(value, digits) + 0.0  # no "−0.0"
    text = "–" if rounded is None else number(rounded, f".{digits}f").replace("-", "−") + unit
    return Cell(value, text, tone)


def count(value: float | None, unit: str = "") -> Cell:
    """A cell of a whole number, in groups of three digits."""
    return Cell(value, "–" if value is None else f"{value:,.0f}{unit}")


def webp(picture: npt.NDArray[np.uint8], *, lossless: bool = False) -> str:
    """A picture (H, W, 3) as a data address, as small as it looks good; `lossless` for flat colours."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=WEBP_QUALITY, method=6, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def image(picture: npt.NDArray[np.uint8], alt: str, caption: str = "", *, flat: bool = False) -> Picture:
    """A picture (H, W, 3), scaled down to `IMAGE_PX` where it is larger.

    Args:
        flat: of few colours, which stay exact.
    """
    height, width = picture.shape[:2]
    scale = min(1.0, IMAGE_PX / max(height, width))
    if scale < 1:
        how = Image.Resampling.NEAREST if flat else Image.Resampling.LANCZOS
        smaller = Image.fromarray(picture).resize((max(1, round(width * scale)), max(1, round(height * scale))), how)
        picture = np.asarray(smaller)
    shown = IMAGE_PX / max(picture.shape[:2])
    size = round(picture.shape[1] * shown), round(picture.shape[0] * shown)
    return Picture(alt, caption, source=webp(picture, lossless=flat), size=size)


def cells(colours: npt.NDArray[np.uint8], alt: str, caption: str = "") -> Picture:
    """A map (h, w, 3) of few cells, enlarged by who shows it."""
    height, width = colours.shape[:2]
    shown = IMAGE_PX / max(height, width)
    size = round(width * shown), round(height * shown)
    return Picture(alt, caption, source=webp(colours, lossless=True), size=size, pixelated=True)


def tables_json(panels: Sequence[Panel]) -> Mapping[str, Any]:
    """Every table of the page by its id."""
    return {table.id: table.to_json() for panel in panels for table in panel.tables()}
