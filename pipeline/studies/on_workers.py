"""A study's runs on the workers of a Dask scheduler: they are handed out whole.

A worker trains in a process of its own (`pipeline.studies.group`), so that nothing which another task left in the
worker touches a run. That process saves a checkpoint and ends when the run is no longer wanted, or the worker ends;
whoever is given the run then waits until its folder is free, and goes on from there.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from distributed import Client, KilledWorker, as_completed, get_worker

import pipeline
from pipeline.cluster import GPU, RETRIES, finished, offer_gpus
from pipeline.errors import UserError
from pipeline.studies.schedule import Call

GROUP = "pipeline.studies.group"


@dataclass(frozen=True)
class Order:
    """What a worker is asked for.

    Attributes:
        folder: that the study was started in, which relative paths in recipes mean.
        version: of this package.
        group: runs that share a read, pickled.
    """

    folder: str
    version: str
    group: bytes


def hand_out(client: Client, next_group: Callable[[], list[Call] | None]) -> Iterator[tuple[list[Call], str, Any]]:
    """Have groups trained; each as it ends, where it was, and what `run_group` gave.

    That is a text where there was no answer: why. The scheduler is offered what is ready: `next_group` gives None while
    nothing is, and is asked again whenever a group has ended. What has not ended is given up with the iteration.
    """
    resources = GPU if offer_gpus(client) else {}
    here, version = str(Path.cwd()), pipeline.__version__
    given: dict[Any, list[Call]] = {}
    left = as_completed(loop=client.loop)

    def offer() -> None:
        while group := next_group():
            order = Order(here, version, pickle.dumps(group))
            future = client.submit(train, order, resources=resources, retries=RETRIES, pure=False)
            given[future] = group
            left.add(future)

    try:
        offer()
        for future in finished(client, left):
            try:
                where, answer = future.result()
            except KilledWorker as error:
                where = "workers that are gone"
                answer = f"it has killed its worker again and again ({error}); is its memory too small?"
            except RuntimeError as error:
                where, answer = "a worker", str(error)
            yield given[future], where, answer
            offer()
    finally:
        client.cancel(list(given), force=True)


# -- on a worker ----------------------------------------------------------------------------------


def train(order: Order) -> tuple[str, Any]:
    """Train a group in a process of its own; returns where, and what it answered.

    Raises:
        UserError: this machine does not see the study's folder, or has another version of this package.
        RuntimeError: the process died.
    """
    worker = get_worker()
    key = worker.get_current_task()
    if order.version != pipeline.__version__:
        raise UserError(f"{worker.address} has version {pipeline.__version__}, the study was begun by {order.version}")
    if not Path(order.folder).is_dir():
        raise UserError(
            f"{worker.address} does not see {order.folder}: begin the study in a folder that all machines see"
        )
    child = subprocess.Popen(
        [sys.executable, "-m", GROUP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=order.folder,
        env=_environment(is_nannys=worker.nanny is not None),
    )
    question: bytes | None = order.group
    while True:
        try:
            answer, _ = child.communicate(question, timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            question = None
        if not _is_wanted(worker, key):
            child.terminate()
    if child.returncode:
        raise RuntimeError(f"its process at {worker.address} ended with exit code {child.returncode}, see its log")
    return worker.address, pickle.loads(answer)


def _is_wanted(worker: Any, key: Any) -> bool:
    """Whether the worker goes on, and somebody still waits for this task."""
    task = worker.state.tasks.get(key)
    return worker.status.name in ("running", "paused") and task is not None and task.state != "cancelled"


def _environment(is_nannys: bool) -> dict[str, str]:
    """That of this worker, without the one thread that a nanny leaves to libraries: a run takes the cores that are
    there (or its recipe's `threads`), as anywhere."""
    environment = dict(os.environ)
    package = str(Path(pipeline.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    for name, value in dask.config.get("distributed.nanny.pre-spawn-environ", {}).items() if is_nannys else ():
        if name.endswith("_NUM_THREADS") and environment.get(name) == str(value):
            del environment[name]
    return environment
