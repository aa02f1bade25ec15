"""`sak report`: facts, panels, page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import __version__, runs
from pipeline.console import amount, say
from pipeline.report.answer import answer_panel
from pipeline.report.arms import arms_panel
from pipeline.report.collect import collect
from pipeline.report.cost import cost_panel
from pipeline.report.elements import tables_json
from pipeline.report.facts import StudyFacts
from pipeline.report.origin import origin_panel
from pipeline.report.paths import paths_panel
from pipeline.report.predictions import predictions_panel
from pipeline.report.render import page
from pipeline.report.routers import routers_panel


def report(names: Sequence[Path | str], out: Path, places: runs.Places, live: bool = False) -> dict[str, Any]:
    """Write the report of a study or of runs to the file `out`; errors as `collect`.

    Args:
        live: whether teachers are run on the images whose features are pictured.

    Returns:
        Its path, bytes, remarks, and every table.
    """
    found = collect(names, places)
    panels = [
        answer_panel(found),
        arms_panel(found),
        routers_panel(found, places.features),
        paths_panel(found, places.features, live),
        predictions_panel(found, places.features),
        cost_panel(found),
        origin_panel(found),
    ]
    text = page(_title(found), _made(found), f"Written by sak {__version__} from the files of the runs.", panels)
    out.parent.mkdir(parents=True, exist_ok=True)
    runs.write_atomically(out, text)
    size = len(text.encode())
    say(f"{out}: {amount(size)}")
    return {"report": str(out), "bytes": size, "remarks": list(found.remarks), "tables": dict(tables_json(panels))}


def _title(found: StudyFacts) -> str:
    return f"Study {found.name}" if found.is_study else f"Run {found.name}" if len(found.runs) <= 2 else found.name


def _made(found: StudyFacts) -> str:
    finished = sum(run.state == "finished" for run in found.runs)
    return f"{finished} of {len(found.runs)} runs finished, {time.strftime('%-d %B %Y, %H:%M')}"
