"""Plain readers open a store and get the numbers that ours gives."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from cache.format.spec import LevelSpec
from cache.store import Store
from tests import cache_toy as toy
from tests import stranger
from tests.stranger import Stranger

WIDE = (LevelSpec(0, (40, 30), 28, "fp16"), LevelSpec(1, (40, 30), 28, "bf16"))  # rows over 64 kB: padded to 4 KiB


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = toy.make_store(tmp_path_factory.mktemp("plain"))
    toy.write_teacher(store, 2, "wide", WIDE)
    return store


def arrays(store: Store) -> dict[str, np.ndarray]:
    """Every array of the store by our own reader, (view, sample, ...) as on disk."""
    found = {}
    for part in ("source", *(f"teachers/{name}" for name in store.teachers)):
        for path, spec in store.part(part).metadata.arrays.items():
            rows = store.rows(part, path)
            views = range(2) if spec.has_views else range(1)
            whole = np.stack([np.stack([rows.read(sample, view) for sample in range(13)]) for view in views])
            found[path] = whole if spec.has_views else whole[0]
    for name in store.teachers:
        calibration = store.calibration(name)
        assert calibration
        found |= {f"teachers/{name}/calibration/{key}": value for key, value in calibration.items()}
    return found


def test_zarr_python_reads_the_same(store: Store) -> None:
    import zarr

    group = zarr.open_group(store.path, mode="r")
    assert group.attrs["sak"]["spec"]["dataset"] == "toy"
    assert group["teachers/mini-dino"].attrs["sak"]["provenance"]["weights"] == "sha256:00"
    expected = arrays(store)
    for path, ours in expected.items():
        theirs = group[path]
        assert theirs.shape == ours.shape and theirs.dtype == ours.dtype, path
        np.testing.assert_array_equal(theirs[...], ours, err_msg=path)
    assert len(expected) == 10 + 6 + 6 * 7  # source, levels, and seven calibration arrays a level
    assert group["pixels"].metadata.dimension_names == ("view", "sample", "y", "x", "channel")


def test_zarrs_reads_the_same(store: Store) -> None:
    pytest.importorskip("zarrs")
    import zarr

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}), warnings.catch_warnings():
        warnings.simplefilter("error")  # zarrs warns where it leaves a codec to zarr-python
        group = zarr.open_group(store.path, mode="r")
        for path, ours in arrays(store).items():
            assert type(group[path]._async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
            np.testing.assert_array_equal(group[path][...], ours, err_msg=path)


def test_tensorstore_reads_the_same(store: Store) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    for path, ours in arrays(store).items():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store.path / path}/"}}
        theirs = tensorstore.open(spec, open=True).result()
        np.testing.assert_array_equal(theirs.read().result(), ours, err_msg=path)


def test_views_that_are_not_written_show_the_fill_value(tmp_path: Path) -> None:
    import zarr

    store = toy.make_store(tmp_path, num_views=1)
    store.ensure_views(2)
    group = zarr.open_group(store.path, mode="r")
    assert group["pixels"].shape[0] == 2 and not group["pixels"][1].any()
    assert (group["labels/normals"][1] == 255).all() and (group["labels/semseg"][1] == 255).all()
    assert group["teachers/mini-dino/level_0"].shape[0] == 1


# ---- a reader as a stranger would write it from docs/cache-format.md: tests/stranger.py ------------------------------


def test_a_stranger_needs_numpy_and_the_standard_library_alone() -> None:
    path = Path(stranger.__file__)
    assert len(path.read_text().splitlines()) < 100
    code = f"import sys; sys.path[:0] = [{str(path.parent)!r}]; import stranger; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    foreign = {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names
    assert {"cache", "sak_core", "zarr", "torch"}.isdisjoint(foreign) and "numpy" in foreign


def test_a_stranger_reads_the_same(store: Store) -> None:
    for path in ("pixels", "labels/normals", "views/box", "samples/ids", "samples/valid", "teachers/mini-dino/level_3"):
        part = "teachers/mini-dino" if path.startswith("teachers") else "source"
        reader = Stranger(store.path, part, path)
        for sample, view in ((0, 0), (5, 1), (12, 1), (12, 0)):
            view = view if reader.names[0] == "view" else 0
            np.testing.assert_array_equal(reader.row(sample, view), store.rows(part, path).read(sample, view))
    for teacher, levels in (("mini-dino", toy.LEVELS), ("mini-clip", toy.OTHER_LEVELS), ("wide", WIDE)):
        for level in levels:
            reader = Stranger(store.path, f"teachers/{teacher}", f"teachers/{teacher}/{level.array}")
            decoded, ours = reader.features(7, 1), store.features(teacher, level.level)[7, 1]
            assert decoded.dtype == np.float32
            np.testing.assert_allclose(decoded, ours, rtol=1e-6 if level.codec == "int8" else 0)


def test_a_stranger_sees_what_is_committed_and_what_is_damaged(tmp_path: Path) -> None:
    half = Store.create(tmp_path, toy.toy_spec())
    half.ensure_views(1)
    toy.SourceWriter(half).write_shard(0, 1, toy.source_arrays(half.spec, 0, 1))
    reader = Stranger(half.path, "source", "pixels")
    np.testing.assert_array_equal(reader.row(6), toy.pixels(half.spec, 6, 0))
    with pytest.raises(LookupError, match="sample 3, view 0"):
        reader.row(3)
    entry = half.path / "manifest/source/view_0000/shard_000001.json"
    entry.write_bytes(entry.read_bytes().replace(b'"shards":[1]', b'"shards":[0]'))
    with pytest.raises(ValueError, match="damaged"):
        reader.row(6)
