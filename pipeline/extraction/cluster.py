"""`sak cache` on many processes or machines: Dask hands out shards, workers write them, this process commits to it all.

This process holds the locks of the parts, makes room for their views, and tidies; workers read and write the store,
which therefore lies where all of them reach it. A worker that is lost loses nothing: its shards are handed out again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Client, KilledWorker, Nanny, Scheduler, SpecCluster, as_completed

from cache.format.manifest import teacher_part
from cache.store import Store
from cache.writing.source_writer import SourceWriter
from cache.writing.teacher_writer import TeacherWriter
from pipeline.cluster import GPU, RETRIES, finished, offer_gpus, offers, reached
from pipeline.console import progress, say, warn
from pipeline.errors import UserError
from pipeline.extraction import cluster_tasks as tasks
from pipeline.extraction.cluster_tasks import Described, Job, ShardWork
from pipeline.extraction.extract import Timing
from pipeline.extraction.files import check_files
from pipeline.extraction.request import TeacherRequest
from pipeline.extraction.samples import DatasetRequest
from pipeline.extraction.sampling import TeacherSample
from pipeline.extraction.stored_fidelity import StoredFidelity
from sak_common.differences import first_difference

if TYPE_CHECKING:
    from distributed import Future

_LOG_LEVEL = logging.CRITICAL  # what goes wrong comes back as an error of its task


@contextmanager
def connected(scheduler: str | None, workers: int, device: str) -> Iterator[Client]:
    """A client of the scheduler at an address, or of one with `workers` on this machine that ends with the block.

    Raises:
        UserError: the scheduler does not answer or has no workers.
    """
    with ExitStack() as stack:
        client = stack.enter_context(reached(scheduler or stack.enter_context(_local_cluster(workers, device))))
        client.register_plugin(tasks.Setup(is_child=scheduler is None))
        yield client


def _local_cluster(workers: int, device: str) -> SpecCluster:
    """A scheduler and workers of one thread each, on the loopback alone; with GPUs, each worker sees one of them."""
    import torch

    gpus = torch.cuda.device_count() if device != "cpu" else 0
    options = {"nthreads": 1, "memory_limit": 0, "host": "127.0.0.1", "dashboard": False, "silence_logs": _LOG_LEVEL}
    pinned = (
        {"resources": GPU, "env": {"CUDA_VISIBLE_DEVICES": str(i % gpus)}} if gpus else {} for i in range(workers)
    )
    return SpecCluster(
        {i: {"cls": Nanny, "options": {**options, **own}} for i, own in enumerate(pinned)},
        {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}},
        silence_logs=_LOG_LEVEL,
    )


def needed_resources(client: Client, device: str) -> dict[str, int]:
    """What a teacher's task takes of its worker.

    Raises:
        UserError: no worker offers it: Dask would wait for one in silence.
    """
    has_gpus = offer_gpus(client)
    if device == "cpu" or (device == "auto" and not has_gpus):
        return {}
    if not has_gpus:
        there = offers(client).values()
        found = sorted({", ".join(f"{k}={v:g}" for k, v in offer.items()) or "nothing" for offer in there})
        raise UserError(
            f"--device {device}: teachers need workers that offer GPU=1, and of {len(there)} workers none does (they "
            f"offer: {'; '.join(found)}). Start them with `dask worker ... --resources GPU=1`, one a GPU"
        )
    return GPU


def describe_teachers(
    client: Client, requests: Sequence[TeacherRequest], size: tuple[int, int], resources: Mapping[str, int]
) -> list[Described]:
    """Load each teacher on the workers, and hear what its features would be made with.

    Raises:
        UserError: workers differ (device model, threads, versions, weights): bytes may depend on who made them.
    """
    able = [
        address for address, offer in offers(client).items() if all(offer.get(k, 0) >= v for k, v in resources.items())
    ]
    found = []
    for request in requests:
        asked = [
            client.submit(tasks.describe, request, size, workers=[address], resources=resources, pure=False)
            for address in able
        ]
        first, *others = _results(client, asked)
        for other, address in zip(others, able[1:], strict=True):
            if difference := first_difference(first.provenance, other.provenance):
                what, here, there = difference
                raise UserError(
                    f"{request.name}: workers differ in {what}: {here!r} at {able[0]}, {there!r} at {address}. "
                    "Use like machines, and give --threads"
                )
        found.append(first)
    return found


def measure_on_workers(
    client: Client,
    source: DatasetRequest,
    features: Path | str,
    requests: Sequence[TeacherRequest],
    described: Sequence[Described],
    resources: Mapping[str, int],
) -> dict[str, TeacherSample]:
    """Each teacher's sample by the name of its part in the store, measured by a worker."""
    asked = [
        client.submit(
            tasks.measure, request, _everywhere(source), tasks.portable(features), resources=resources, pure=False
        )
        for request in requests
    ]
    parts = [teacher_part(facts.provenance["name"]) for facts in described]
    return dict(zip(parts, _results(client, asked), strict=True))


def _everywhere(source: DatasetRequest) -> DatasetRequest:
    """The same data set, named as in any working directory."""
    return replace(source, root=source.root.resolve() if source.root else None)


def _results(client: Client, futures: Sequence[Future[Any]]) -> list[Any]:
    by_key = {future.key: result for future, result in _finished(client, futures)}
    return [by_key[future.key] for future in futures]


def _finished(client: Client, futures: Iterable[Future[Any]]) -> Iterator[tuple[Future[Any], Any]]:
    """Futures with their results as they come; an error of a task is raised here."""
    for future in finished(client, as_completed(futures, loop=client.loop)):
        try:
            yield future, future.result()
        except KilledWorker as error:
            raise UserError(
                f"a task has killed its worker again and again ({error}); is its memory too small? Lower "
                "--batch-size, or look into the worker's log"
            ) from error


def extract_on_cluster(
    client: Client,
    store: Store,
    source: DatasetRequest,
    requests: Sequence[TeacherRequest],
    described: Sequence[Described],
    num_views: int,
    resources: Mapping[str, int],
    strict: bool,
) -> dict[str, Timing]:
    """Finish the store for `num_views` views: its source and each teacher, a task a shard.

    Returns:
        Where the workers' time went, by teacher; only of those of which something was left to write.
    """
    job = Job(uuid.uuid4().hex, tasks.portable(str(store)), _everywhere(source), strict)
    spec = store.spec
    with ExitStack() as held:
        held.enter_context(store.lock("source", on_wait=say))
        check_files(store, source.open(), source)
        store.ensure_views(num_views)
        left = SourceWriter(store).pending(num_views)
        views: dict[int, list[int]] = {}
        for view, shard in left:
            views.setdefault(shard, []).append(view)
        prepared = {
            shard: client.submit(tasks.prepare_shard, job, shard, tuple(own), retries=RETRIES, pure=False)
            for shard, own in views.items()
        }
        rows: dict[Any, tuple[str, int]] = {
            future.key: ("source", len(spec.rows(shard)) * len(views[shard])) for shard, future in prepared.items()
        }
        futures: list[Future[Any]] = list(prepared.values())
        for number, (request, facts) in enumerate(zip(requests, described, strict=True)):
            name = facts.provenance["name"]
            held.enter_context(store.lock(f"teachers/{name}", on_wait=say))
            writer = TeacherWriter(store, facts.provenance, facts.levels)
            writer.ensure_views(num_views)
            run = {"resources": resources, "priority": -number, "retries": RETRIES, "pure": False}
            todo = writer.pending(num_views)
            calibrated = None
            if todo and writer.calibration() is None:
                first = [future for shard, future in prepared.items() if 0 in views[shard]]
                calibrated = client.submit(tasks.calibrate_teacher, job, request, facts.provenance, first, **run)
                futures.append(calibrated)
            for view, shard in todo:
                after = (prepared.get(shard), calibrated)
                future = client.submit(tasks.extract_shard, job, request, facts.provenance, view, shard, after, **run)
                rows[future.key] = (name, len(spec.rows(shard)))
                futures.append(future)
        done = _follow(client, futures, rows, spec.num_samples * num_views)
        SourceWriter(store)  # compacts what is complete
        for facts in described:
            TeacherWriter(store, facts.provenance, facts.levels)
        return {
            facts.provenance["name"]: _summed_up(store, facts, done[facts.provenance["name"]])
            for facts in described
            if facts.provenance["name"] in done
        }


def _summed_up(store: Store, facts: Described, works: Sequence[ShardWork]) -> Timing:
    """Log and say what the shards of a teacher took, and log what their rows are worth."""
    name = facts.provenance["name"]
    fidelity = StoredFidelity(store, name, facts.levels)
    spent = dict.fromkeys(("busy", "pixels", "encoding", "disk"), 0.0)
    for work in works:
        fidelity.add_row_of(work.meters)
        spent = {what: seconds + work.seconds.get(what, 0.0) for what, seconds in spent.items()}
    fidelity.log()
    seconds = sum(spent.values())
    shares = (round(part / seconds, 4) for part in spent.values())
    timing = Timing(sum(work.rows for work in works), round(seconds, 2), *shares)
    store.log({"stage": "extract", "teacher": name, **asdict(timing)})
    say(f"{name}: over all workers, {timing}")
    return timing


def _follow(
    client: Client, futures: Sequence[Future[Any]], rows: Mapping[Any, tuple[str, int]], total: int
) -> dict[str, list[ShardWork]]:
    """Show the progress of each part until all tasks are done; on an error drop those that have not begun.

    Returns:
        What workers say of each teacher's shards.
    """
    unreadable: dict[str, str] = {}
    done: dict[str, list[ShardWork]] = {}
    left: dict[str, int] = {}
    for part, count in rows.values():
        left[part] = left.get(part, 0) + count
    with ExitStack() as shown:
        shown.callback(client.cancel, list(futures), force=True)
        advance = {part: shown.enter_context(progress(part, total, "rows", total - n)) for part, n in left.items()}
        for future, result in _finished(client, futures):
            if future.key in rows:
                part, count = rows[future.key]
                advance[part](count)
                if isinstance(result, ShardWork):
                    done.setdefault(part, []).append(result)
                else:
                    unreadable |= result
    for name, reason in sorted(unreadable.items()):
        warn(f"unreadable, its rows are marked invalid: {name}: {reason}")
    return done
