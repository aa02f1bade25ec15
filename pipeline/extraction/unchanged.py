"""The data set that a store was made from, opened again: the same samples, or an error that names the difference.

Sizes of files are compared; what they hold is compared as it is decoded (pipeline.extraction.contents).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cache.store import Store
from pipeline.advice import advised
from pipeline.errors import UserError
from pipeline.extraction.prepare import source_spec
from pipeline.extraction.samples import DatasetRequest
from pipeline.recipes.stores import row_of
from sak_common.differences import first_difference
from sak_common.names import UnknownName
from sak_core.errors import DatasetError
from sak_core.interfaces.dataset import Dataset


def unchanged_dataset(store: Store, root: Path | None, what: str) -> DatasetRequest:
    """How to open the data set that `store` was made from; a store with a limit takes as many samples again.

    Args:
        root: the data set's folder, where it has one.
        what: of the store that comes from the data set, in the plural, for errors.

    Raises:
        UserError: the data set is not there, or its samples, sizes of files, view policy or labels are no longer those
            of the store.
    """
    spec = store.spec
    asked, dataset = open_again(store, root, what)
    now = replace(source_spec(dataset, asked), rows_per_shard=spec.rows_per_shard)  # the store's own affair
    if difference := first_difference(spec.to_dict(), now.to_dict()):
        field, stored, found = difference
        raise UserError(
            f"the data set {spec.dataset} is no longer what the store was made from: {field} was {stored!r}, "
            f"is {found!r}"
        )
    return asked


def open_again(store: Store, root: Path | None, what: str) -> tuple[DatasetRequest, Dataset]:
    """How to open the data set that `store` was made from, and that data set; nothing of it is compared.

    Args:
        root, what: as of `unchanged_dataset`.

    Raises:
        UserError: the data set is not there.
    """
    spec = store.spec
    images = spec.dataset_info.get("images")
    asked = DatasetRequest(row_of(spec), spec.split, spec.size, root, None, spec.seed, images)
    try:
        dataset = asked.open()
        if len(dataset.ids) > spec.num_samples:
            asked = replace(asked, limit=spec.num_samples)
            dataset = asked.open()
    except (DatasetError, UnknownName) as error:
        raise UserError(f"{what} come from the data set: {advised(error)}") from error
    return asked, dataset
