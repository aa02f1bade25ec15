"""Dask's workers, on this machine or on others: reaching them, and hearing what they made; no silent waits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from distributed import Client, as_completed

from pipeline.console import say
from pipeline.errors import UserError

if TYPE_CHECKING:
    from distributed import Future

CONNECT_S = 15.0
"""Seconds that a scheduler may take to answer."""
RETRIES = 2
"""Times that a failed task is tried again; a worker's death does not count."""
PATIENCE_S = 60.0
"""Seconds without any worker, after which the run gives up."""
GPU = {"GPU": 1}
"""What a task takes of its worker, where workers offer GPUs: so one runs there at a time."""


@contextmanager
def reached(scheduler: Any) -> Iterator[Client]:
    """A client of a scheduler, by its address or as an object of this process.

    Raises:
        UserError: it does not answer or has no workers.
    """
    try:
        client = Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise _unreached(scheduler, error) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE_S)
        except (OSError, TimeoutError) as error:
            raise _unreached(scheduler, error) from error
        link = client.dashboard_link if find_spec("bokeh") else f"{client.dashboard_link} (needs bokeh)"
        assert client.scheduler is not None  # as it is before it has begun
        say(f"{client.scheduler.address}: {len(offers(client))} workers, dashboard at {link}")
        yield client


def _unreached(scheduler: Any, error: Exception) -> UserError:
    return UserError(f"--scheduler {scheduler}: {error}; is it up, and has it workers?")


def offers(client: Client) -> dict[str, Mapping[str, float]]:
    """What each worker offers, by address."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {address: worker["resources"] for address, worker in workers.items()}


def offer_gpus(client: Client) -> bool:
    """Whether a worker offers a GPU."""
    return any(offer.get("GPU", 0) >= 1 for offer in offers(client).values())


def finished(client: Client, left: as_completed) -> Iterator[Future[Any]]:
    """Futures as they end, well or not; those that are added to `left` meanwhile, too.

    Raises:
        UserError: no worker has been there for `PATIENCE_S`, or the scheduler is gone.
    """
    last = time.monotonic()
    while not left.is_empty():
        batch = left.next_batch(block=False)
        if batch or offers(client):
            last = time.monotonic()
        elif time.monotonic() - last > PATIENCE_S:
            raise UserError(
                f"no worker for {PATIENCE_S:.0f} s; what is committed stays, the same command goes on from it"
            )
        for future in batch:
            if future.cancelled():
                raise UserError("the scheduler is gone; what is committed stays, the same command goes on from it")
            yield future
        if not batch:
            time.sleep(0.2)
