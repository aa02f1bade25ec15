"""Shared by the tests of the whole line: a small rooms cache with the miniature teachers, made once a session."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# two test processes on two cores: a thread each, before torch is imported and chooses for itself
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from cache.store import Store
from tests import cache_toy as toy
from tests import hub, ready
from tests.small_images import cache_arguments, make_images

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a script's background job ignores Ctrl-C and hands that on to the commands whose Ctrl-C is tested
    signal.signal(signal.SIGINT, signal.default_int_handler)

SIZES = {"unlabelled": (48, 2), "train": (40, 2), "val": (16, 1), "test": (16, 1)}
BLOCKER = """
# makes three libraries look as if they had never been installed, and this project's teachers unimportable
import importlib.metadata
import sys

GONE = {"open_clip", "open_clip_torch", "segment_anything", "segment-anything", "transformers"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in GONE or name.startswith("sak_core.teachers"):
            raise ModuleNotFoundError(f"{name} must not be needed here", name=name)


real = importlib.metadata.distribution


def distribution(name):
    if name in GONE:
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)


importlib.metadata.distribution = distribution
importlib.metadata.version = lambda name: distribution(name).version
sys.meta_path.insert(0, Refuse())
"""

TINY = ["--set", "steps=4", "--set", "batch_size=8", "--set", "checkpoint_every=2"]


def sak(
    *arguments: str | Path, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would, in a process of its own, with `env` added to the environment."""
    words = [str(argument) for argument in arguments]
    done = ready.run(words, {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, timeout=580)
    if check and done.returncode:
        raise AssertionError(f"sak {' '.join(words)}: exit {done.returncode}\n{done.stderr}")
    return done


def refusal(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """What the command line says (stderr) where it refuses what it was asked for: exit code 2, and no traceback."""
    done = sak(*arguments, env=env, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def answer(*arguments: str | Path, env: dict[str, str] | None = None) -> Any:
    """What the command line gives with --json."""
    return json.loads(sak(*arguments, "--json", env=env).stdout)


def program(source: str, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python -c SOURCE ARGUMENTS` from the repository, in a process of its own; however it ends."""
    words = [str(argument) for argument in arguments]
    return ready.run(words, {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, timeout=280, program=source)


def start(*words: str | Path, module: str = "pipeline") -> subprocess.Popen[str]:
    """`python -m MODULE WORDS`, else the command line, in a group of its own; the test goes on beside it."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ready.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_until(reached: Callable[[], bool], *processes: subprocess.Popen[Any], seconds: float = 240) -> None:
    """Until `reached`; fails once one of the processes has ended, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while not reached() and time.monotonic() < deadline and all(process.poll() is None for process in processes):
        time.sleep(0.02)
    assert reached(), [process.communicate() for process in processes if process.poll() is not None] or "too slow"


def in_a_terminal(*words: str | Path) -> str:
    """What the command line shows on a terminal."""
    leader, follower = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *map(str, words)],
        stdout=follower,
        stderr=follower,
        cwd=ready.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert done.wait() == 0, shown.decode()
    return shown.decode()


def train(stage: str, settings: Sequence[str], features: Path, run: Path) -> None:
    """A stage of the demo in this process, without validation."""
    from pipeline.recipes.config import load_recipe, parse_set
    from pipeline.runs import Places
    from pipeline.training.distill import distill
    from pipeline.training.finetune import finetune

    recipe = load_recipe("demo", stage, parse_set(settings)).model_copy(update={"validation": None})  # type: ignore[arg-type]
    if stage == "distill":
        distill(recipe, run, Places(features))
    else:
        finetune(recipe, run, None, Places(features))


def cache_split(features: Path, split: str, *extra: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`sak cache` of one small rooms split."""
    samples, views = SIZES[split]
    options = ["--split", split, "--limit", str(samples), "--views", str(views), "--out", str(features)]
    return sak("cache", *options, "--threads", "1", "--decoders", "0", *extra, check=check)


def logged(run: Path) -> list[dict[str, Any]]:
    """The lines that training logged."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Nothing here survives a power cut, and nothing needs to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small caches with all three miniature teachers, which tests only read.

    One for all test processes: whichever asks first makes it, and another that asks meanwhile waits.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / "features"
    with (shared / "features.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            begun = tmp_path_factory.mktemp("features")
            for split in SIZES:
                cache_split(begun, split, "--teacher", "mini-dino,mini-clip,mini-sam")
            begun.rename(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 18 rooms in two views: two whole steps of 8 rows an epoch, two rows left over."""
    out = tmp_path_factory.mktemp("small")
    sak(
        "cache", "--teacher", "mini-dino", "--split", "unlabelled", "--limit", "18", "--views", "2", "--threads", "1",
        "--decoders", "0", "--out", out,
    )  # fmt: skip
    return out


@pytest.fixture(scope="session")
def trained(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run, barely trained, of SAK on `features`; the distilled one it began from lies beside it."""
    runs = tmp_path_factory.mktemp("runs")
    sak("distill", "demo", "--out", features, "--run", runs / "one", *TINY)
    sak("finetune", "demo", "--out", features, "--from", runs / "one", "--run", runs / "two", *TINY)
    return runs / "two"


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For what a file's tests share and is large: gone with the file, where pytest keeps such folders to the end."""
    folder = tmp_path_factory.mktemp("module")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A toy store on this machine's disk, to be compared with and not changed."""
    return toy.make_store(tmp_path_factory.mktemp("local"))


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    """The hub's stand-in, which this process's huggingface_hub talks to."""
    with hub.reached(tmp_path / "home", monkeypatch) as there:
        yield there


@pytest.fixture
def given(there: hub.Hub, local: Store) -> hub.Hub:
    """The hub's stand-in with a copy of `local` at `hub.ADDRESS`."""
    there.data["me/toy"] = hub.DataSet({"1" * 40: hub.files_of(local)})
    return there


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of small images, for one test file."""
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store of `images` with two miniature teachers, not to be changed."""
    out = tmp_path_factory.mktemp("whole")
    sak(*cache_arguments(images, out))
    return next(out.glob("*.zarr"))


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole`, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / whole.name))


@pytest.fixture(scope="session")
def no_teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which teachers and their libraries cannot be imported."""
    folder = tmp_path_factory.mktemp("blocker")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    environment = {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    refused = sak("cache", "--teacher", "mini-dino", "--out", folder / "x", env=environment, check=False)
    assert refused.returncode and "must not be needed here" in refused.stderr, "the blocker must block"
    return environment
