"""The caches of a study, made as its file says; what is there already stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.console import each_in_worker
from pipeline.extraction.caching import run_cache
from pipeline.extraction.prepare import prepare
from pipeline.extraction.request import CacheRequest, TeacherOptions
from pipeline.extraction.samples import DatasetRequest
from pipeline.recipes.config import StudyCache
from pipeline.recipes.stores import caches_below, parse_size


def prepare_caches(caches: Sequence[StudyCache], features: Path | str) -> None:
    """Pixels and labels of every cache."""
    for cache in caches:
        prepare(_source(cache), caches_below(features, cache.folder), cache.views)


def run_teachers(caches: Sequence[StudyCache], features: Path | str, workers: int) -> None:
    """Every teacher over every cache, whose sources must be there; `workers` teachers at once, a core each."""
    probed = {cache.probes for cache in caches}
    labelled = {cache.split: _address(cache, features) for cache in reversed(caches) if cache.split in probed}
    requests = [
        _request(cache, teacher, features, labelled.get(cache.probes)) for cache in caches for teacher in cache.teachers
    ]
    for _ in each_in_worker(run_cache, requests, min(workers, len(requests)) or 1):
        pass


def _source(cache: StudyCache) -> DatasetRequest:
    size = parse_size(cache.size) if cache.size else None
    return DatasetRequest(cache.dataset, cache.split, size, limit=cache.limit)


def _request(cache: StudyCache, teacher: str, features: Path | str, probes: str | None) -> CacheRequest:
    options = TeacherOptions(codec=cache.codec, fidelity=cache.fidelity, threads=1, probes=probes)
    below = caches_below(features, cache.folder)
    return CacheRequest(_source(cache), (teacher,), cache.views, below, options, decoders=0, strict=True)


def _address(cache: StudyCache, features: Path | str) -> str:
    """Where the cache lies, whose source is there."""
    return prepare(_source(cache), caches_below(features, cache.folder), cache.views).place.shown
