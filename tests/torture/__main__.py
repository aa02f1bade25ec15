"""`python -m tests.torture`: kills and flips in numbers, as a table and one JSON object on stdout."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: provenance names the threads

from pipeline.console import duration, table
from tests.torture.flips import PREDICTED, run_flips
from tests.torture.kills import PHASES, run_kills
from tests.torture.maintenance import run_maintenance_kills


def main() -> None:
    """Run both, say what came of them, and fail loudly where something was lost or silent."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills-a-phase", type=int, default=8, help="of the named fault points")
    parser.add_argument("--random-kills", type=int, default=24, help="at random moments")
    parser.add_argument(
        "--maintenance-times", type=int, default=2, help="at each fault point of sak drop and sak repair"
    )
    parser.add_argument("--flips", type=int, default=500, help="single bits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="only the JSON object")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        root = Path(folder)
        for name in ("kills", "maintenance", "flips", "flips-together"):
            (root / name).mkdir()
        with (root / "log.txt").open("w") as log, contextlib.redirect_stderr(log):
            cold = [f"{phase}:1" for phase in PHASES]
            _tell(f"kills: {options.kills_a_phase} in each of {len(PHASES)} phases, {options.random_kills} at random")
            kills = run_kills(root / "kills", options.kills_a_phase, options.random_kills, cold, options.seed)
            _tell(
                f"kills inside sak drop and sak repair: at every point {options.maintenance_times} times, and at random"
            )
            maintenance = run_maintenance_kills(
                root / "maintenance", options.maintenance_times, options.random_kills, seed=options.seed
            )
            _tell(f"flips: {options.flips} bits, one at a time, and half as many where levels are coded together")
            flips = run_flips(root / "flips", options.flips, options.seed)
            together = run_flips(root / "flips-together", options.flips // 2, options.seed, PREDICTED)
    result = {
        "kills": kills,
        "kills_in_maintenance": maintenance,
        "flips": flips,
        "flips_of_levels_coded_together": together,
        "seconds": round(time.monotonic() - start),
    }
    if not options.json:
        print(_text(result))
    print(json.dumps(result, indent=1))


def _tell(message: str) -> None:
    print(message, file=sys.__stderr__, flush=True)


def _text(result: dict[str, Any]) -> str:
    kills, maintenance = result["kills"], result["kills_in_maintenance"]
    rows = [[f"killed: {phase}", str(count)] for phase, count in kills["by_phase"].items()]
    rows.append(["killed in all", str(kills["kills"])])
    rows.append(["stores finished, byte-identical", str(kills["stores_finished_byte_identical"])])
    rows.append(["committed files kept over a kill", str(kills["committed_files_kept"])])
    rows += [[f"killed: {command}", str(count)] for command, count in maintenance["by_command"].items()]
    rows.append(["stores finished after those, byte-identical", str(maintenance["stores_finished_byte_identical"])])
    for name, which in (("flips", ""), ("flips_of_levels_coded_together", " (levels coded together)")):
        flips = result[name]
        rows += [[f"flipped{which}: {place}", str(count)] for place, count in flips["by_place"].items()]
        rows.append([f"flipped in all{which}", str(flips["flips"])])
        rows.append(["found, named, refused as far as they reach, repaired", str(flips["found_named_and_repaired"])])
    return f"{table(['what', 'how often'], rows)}\n\nin {duration(result['seconds'])}"


if __name__ == "__main__":
    main()
