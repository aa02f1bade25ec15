"""What the command line adds to an error of the floors below: what to do."""

from __future__ import annotations

import pickle
import shutil
import signal
from pathlib import Path

import pytest

from cache import errors
from pipeline.advice import ADVICE, advised
from pipeline.errors import UserError
from pipeline.interrupts import Interrupted
from sak_common.errors import SakError
from sak_common.names import UnknownName
from sak_core.errors import NoWeights, PerhapsOwnCode, SeveralInputs, UnreadableSample
from tests.conftest import cache_split, refusal


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (errors.CorruptFile("x.zarr/pixels/c.0", "it is empty"), "`sak repair` mends it"),
        (errors.UncommittedRow("pixels", 3, 1, 0), "run `sak cache` again to finish the store"),
        (errors.SpecMismatch("the store x", "seed", 1, 2), "ask for the stored value, or give another output folder"),
        (errors.CalibrationDiffers("clip", "level_0/step/c.0"), "`sak drop --teacher clip` and extract it again"),
        (errors.StoreFull("no space left"), "; make room and run the same command again"),
        (errors.TooManyOpenFiles("x: Too many open files"), "`ulimit -n`"),
        (errors.NotLocal("s3://b/x is not a folder of this machine"), "`sak copy` brings it here"),
        (SeveralInputs("x.tar: 0 has several images (.rgb.png, .seg.png)"), "say which to take with --images"),
        (NoWeights("no weights for clip"), "a file (--weights FILE, safetensors or .pth), or try the untrained tower"),
        (PerhapsOwnCode("unknown teacher library 'mine'"), "--allow-code lets it run"),
    ],
)
def test_an_error_of_the_lower_floors_gets_its_advice(error: SakError, advice: str) -> None:
    assert advised(error).startswith(f"{error}; ") and advice in advised(error)


def test_the_nearest_row_counts_and_none_adds_nothing() -> None:
    assert issubclass(errors.StoreFull, errors.WriteFailed)
    assert ADVICE[errors.StoreFull] not in advised(errors.WriteFailed("Input/output error"))
    assert advised(errors.StoreNotFound("x is no store: nothing there")) == "x is no store: nothing there"


def test_the_command_line_says_what_to_do(features: Path, tmp_path: Path) -> None:
    store = tmp_path / next(features.glob("*-val-*.zarr")).name
    shutil.copytree(features / store.name, store)
    other = cache_split(tmp_path, "val", "--teacher", "mini-dino", "--codec", "int8", check=False)
    assert other.returncode == 2 and "codec = 'fp16', asked for is 'int8'; ask for the stored value" in other.stderr
    (store / "manifest/source/metadata.json").unlink()
    said = refusal("info", store)
    assert said.strip().endswith("run `sak cache` again")
    shutil.rmtree(store)
    shutil.copytree(features / store.name, store)
    for folder in ("teachers", "manifest/teachers"):
        shutil.rmtree(store / folder / "mini-dino")
    next((store / "pixels").glob("c.0.0*")).write_bytes(b"")
    torn = cache_split(tmp_path, "val", "--teacher", "mini-dino", check=False)
    assert torn.returncode == 2 and "`sak repair` mends it" in torn.stderr


def test_errors_reach_another_process_whole() -> None:
    """A worker's error is pickled on its way; one that cannot be made again there ends the whole pool instead."""
    told = UserError("no")
    told.add_note("but yes")
    for error in (
        told,
        errors.CorruptFile("a/b", "is cut short"),
        errors.SpecMismatch("a.zarr", "policy.scale", 1.0, 2.0),
        errors.UncommittedRow("level_1", 3, 1, 0),
        errors.CalibrationDiffers("mini-sam", "weight"),
        UnknownName("unknown teacher 'x'"),
        UnreadableSample("room.png", "is cut short"),
        Interrupted(signal.SIGTERM),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
