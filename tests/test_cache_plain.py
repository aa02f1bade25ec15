"""Plain readers open a store and get the numbers that ours gives."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from cache.spec import LevelSpec
from cache.store import Store
from tests import cache_toy as toy
from tests.cache_toy import no_fsync  # noqa: F401 (an autouse fixture)

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
    assert len(expected) == 10 + 6 + 6 * 6  # source, levels, and six calibration arrays a level
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


# ---- a reader as a stranger would write it from docs/cache-format.md: numpy and the standard library alone ----------


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, a byte at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFFFFFF


def checked(data: bytes) -> bytes:
    assert crc32c(data[:-4]) == struct.unpack("<I", data[-4:])[0], "damaged"
    return data[:-4]


class Stranger:
    """Reads rows of one array of a store."""

    def __init__(self, store: Path, array: str) -> None:
        self.folder = store / array
        meta = json.loads((self.folder / "zarr.json").read_text())
        self.shape, self.names = meta["shape"], meta["dimension_names"]
        self.per_shard = meta["chunk_grid"]["configuration"]["chunk_shape"][self.names.index("sample")]
        self.is_sharded = meta["codecs"][0]["name"] == "sharding_indexed"
        self.dtype = np.dtype(meta["data_type"]).newbyteorder("<")
        self.row_shape = self.shape[self.names.index("sample") + 1 :]

    def row(self, sample: int, view: int = 0) -> np.ndarray:
        shard, place = divmod(sample, self.per_shard)
        grid = ([view] if self.names[0] == "view" else []) + [shard] + [0] * len(self.row_shape)
        data = (self.folder / ("c." + ".".join(map(str, grid)))).read_bytes()
        if not self.is_sharded:
            rows = np.frombuffer(checked(data), self.dtype).reshape(self.per_shard, *self.row_shape)
            return rows[place]
        index = np.frombuffer(checked(data[-16 * self.per_shard - 4 :]), "<u8").reshape(self.per_shard, 2)
        start, num_bytes = map(int, index[place])
        return np.frombuffer(checked(data[start : start + num_bytes]), self.dtype).reshape(self.row_shape)


def test_a_stranger_reads_the_same(store: Store) -> None:
    for path in ("pixels", "labels/normals", "views/box", "samples/ids", "samples/valid", "teachers/mini-dino/level_3"):
        stranger = Stranger(store.path, path)
        part = "teachers/mini-dino" if path.startswith("teachers") else "source"
        for sample, view in ((0, 0), (5, 1), (12, 1), (12, 0)):
            view = view if stranger.names[0] == "view" else 0
            np.testing.assert_array_equal(stranger.row(sample, view), store.rows(part, path).read(sample, view))
    # and decodes: bf16 is the upper half of a float32; int8 has one step a channel between calibration's min and max
    bits = Stranger(store.path, "teachers/mini-dino/level_3").row(7, 1)
    decoded = (bits.astype("<u4") << 16).view("<f4")
    np.testing.assert_array_equal(decoded, store.features("mini-dino", 3)[7, 1])
    folder = store.path / "teachers/mini-dino/calibration/level_1"
    low, high = (np.frombuffer(checked((folder / name / "c.0").read_bytes()), "<f4") for name in ("min", "max"))
    step = ((high - low.astype("f8")) / 255).astype("f4")
    stored = Stranger(store.path, "teachers/mini-dino/level_1").row(7, 1)
    decoded = stored * step + (low + 128 * step.astype("f8")).astype("f4")
    np.testing.assert_allclose(decoded, store.features("mini-dino", 1)[7, 1], rtol=1e-6)
