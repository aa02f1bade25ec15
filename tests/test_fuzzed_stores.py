"""Stores that were mutated at random, seeded: right numbers or the project's own errors, and nothing outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import program
from tests.fuzz_reader import CODECS

READER = "import sys; from pathlib import Path; from tests.fuzz_reader import main; "
READER += "main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
KINDS = {
    "flip", "garbage", "resized", "missing", "in place of another", "a terabyte of nothing", "no file", "link",
    "linked folder", "forged row", "told otherwise", "numbers agreed", "table", "index", "coded", "log",
}  # fmt: skip


def fuzzed(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Kind and outcome -> how many of `count` mutations of each small store; none may have failed."""
    done = program(READER, folder, str(count), str(seed))
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert not told["failures"], "\n".join(told["failures"][:3])
    counts: dict[str, int] = told["counts"]
    assert sum(counts.values()) == count * len(CODECS)
    return counts


@pytest.mark.slow
def test_a_few_hundred_mutations(tmp_path: Path) -> None:
    counts = fuzzed(tmp_path, 40, 7)
    assert {name.partition(":")[0] for name in counts} == KINDS
    outcomes = {name.partition(": ")[2] for name in counts}
    assert outcomes >= {"refused", "the right numbers", "other numbers, told by verify alone"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1000, 2000, 3000])
def test_two_thousand_mutations(seed: int, tmp_path: Path) -> None:
    fuzzed(tmp_path, 112, seed)
