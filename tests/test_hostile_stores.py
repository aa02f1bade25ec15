"""A stranger's store: whatever it says, it is refused in words, and nothing outside of it is read or written."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.codecs.coders import get_coder
from cache.errors import BadInput, CorruptFile, LeadsAway
from cache.format.checksums import crc_suffix
from cache.format.seals import seal
from cache.maintenance.store_copy import plan_copy, select
from cache.maintenance.verification import verify_store
from cache.places.files import readable_json
from cache.store import Store
from cache.writing.source_writer import SourceWriter
from pipeline.errors import UserError
from pipeline.extraction.running import request_of
from pipeline.recipes.stores import store_tasks
from sak_common.names import UnknownName
from tests import cache_toy as toy
from tests.conftest import refusal, sak
from tests.fuzz_mutations import Mutator

SOURCE = "manifest/source/metadata.json"
TEACHER = "manifest/teachers/mini-dino/metadata.json"
TABLE = "teachers/mini-dino/calibration/level_1/max"


@pytest.fixture
def stranger(tmp_path: Path) -> Mutator:
    """A store in which anything can be changed so that all digests hold."""
    return Mutator(toy.make_store(tmp_path / "features", num_views=1).path, tmp_path / "outside", 0)


def refused(path: Path, match: str, act: Callable[[Store], Any] = lambda store: store.teacher("mini-dino")) -> None:
    """Opening the store, or what is done with it, is refused, and verifying tells why."""
    with pytest.raises(CorruptFile, match=match):
        act(Store.open(path))
    assert any(match in problem.what for problem in verify_store(path))


def changed(stranger: Mutator, name: str, change: Callable[[Any], Any]) -> Path:
    """The store after a change of one of its JSON files."""
    document = stranger.document(name)
    change(document)
    stranger.put_json(name, document)
    return stranger.store


def test_shapes_of_petabytes(stranger: Mutator) -> None:
    def large(document: Any) -> None:
        document["arrays"]["pixels"]["row_shape"] = [2**20, 2**20, 3]

    changed(stranger, SOURCE, large)
    changed(stranger, "zarr.json", lambda document: document["attributes"]["sak"]["spec"].update(size=[2**20, 2**20]))
    refused(stranger.store, "are read at once")
    assert "are read at once" in refusal("info", stranger.store)


@pytest.mark.parametrize("count", [10**15, 2**64, -1, 1.5, True, "13"])
def test_more_samples_than_there_are(count: Any, stranger: Mutator) -> None:
    changed(stranger, SOURCE, lambda document: document.update(num_samples=count))
    refused(stranger.store, "num_samples")


def test_writers_refuse_what_readers_would(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="are read at once"):
        Store.create(tmp_path, toy.toy_spec(size=(2**14, 2**14)))


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"shape": [2**31, 2**31]}, "shape"),
        ({"shape": [2**29]}, "are no float32"),
        ({"shape": [3]}, "are no float32"),
        ({"shape": [6], "data_type": "object"}, "data_type"),
        ({"shape": [3], "data_type": "float64"}, "is needed"),
        ({"shape": [-6]}, "shape"),
    ],
)
def test_tables_that_are_not_what_they_say(told: dict[str, Any], match: str, stranger: Mutator) -> None:
    path = changed(stranger, f"{TABLE}/zarr.json", lambda document: document.update(told))
    refused(path, match, lambda store: store.features("mini-dino", 1))


def test_tables_of_nan(stranger: Mutator) -> None:
    data = np.array([1, 2, np.nan, 4, 5, 6], np.float32).tobytes()
    stranger.put_recorded(f"{TABLE}/c.0", data + crc_suffix(data))
    refused(stranger.store, "NaN", lambda store: store.features("mini-dino", 1))


def test_levels_that_predict_themselves(stranger: Mutator) -> None:
    def circle(document: Any) -> None:
        document["attributes"]["sak"]["levels"][0]["predicts_from"] = 0

    refused(changed(stranger, "teachers/mini-dino/zarr.json", circle), "predicted from level 0")


@pytest.mark.parametrize("other", ["Teachers/mini-dino/level_0", "teachers/mini-dino/LEVEL_0", "pixels"])
def test_names_that_clash(other: str, stranger: Mutator) -> None:
    def clash(document: Any) -> None:
        document["arrays"][other] = document["arrays"]["teachers/mini-dino/level_0"]

    refused(changed(stranger, TEACHER, clash), "it names")


@pytest.mark.parametrize("name", ["manifest/source/metadata.json", "pixels/c.0.0.0.0.0", "samples/ids/zarr.json"])
def test_a_calibration_is_no_file_of_another_part(name: str, stranger: Mutator) -> None:
    def other(document: Any) -> None:
        document["files"][name] = next(iter(document["files"].values()))

    path = changed(stranger, TEACHER.replace("metadata", "calibration"), other)
    refused(path, "which is not of this part", lambda store: store.calibration("mini-dino"))


def test_an_index_that_leads_out_of_its_file(stranger: Mutator) -> None:
    name = "teachers/mini-dino/level_0/c.0.0.0.0.0"
    data = stranger.intact[name]
    for place, value in ((0, 2**63), (0, 2**64 - 1), (0, len(data)), (8, 2**62)):
        index = bytearray(data[-68:-4])
        struct.pack_into("<Q", index, place, value)
        stranger.put_recorded(name, data[:-68] + bytes(index) + crc_suffix(bytes(index)))
        with pytest.raises(CorruptFile, match="its index gives sample 0"):
            Store.open(stranger.store).features("mini-dino", 0)[0, 0]
        stranger.put(name, stranger.intact[name][:-68] + bytes(index) + b"xxxx")  # not what was committed: verifying
        assert verify_store(stranger.store)


def test_decoders_believe_no_header() -> None:
    row = np.arange(600, dtype=np.uint16)
    target = np.zeros(600, np.uint16)
    for name in ("blosc", "pcodec"):
        coder = get_coder(name)
        for other in (row[:599], np.append(row, row)):  # the rest would be what the memory held before
            with pytest.raises(ValueError, match=r"are|there"):
                coder.decode_into(memoryview(coder.encode(other)), target)
        coder.decode_into(memoryview(coder.encode(row)), target)
        assert np.array_equal(target, row)
    coded = bytearray(get_coder("blosc").encode(row))
    for place, value in ((12, len(coded) + 4096), (4, 2**31 - 1), (8, 2**31 - 1)):
        hostile = coded.copy()
        struct.pack_into("<I", hostile, place, value)
        with pytest.raises(ValueError, match="header"):
            get_coder("blosc").decode_into(memoryview(hostile), target)


@pytest.mark.parametrize("text", [b"[" * 100_000 + b"]" * 100_000, b"NaN", b'"\\ud800"', b"1" * 5000])
def test_json_that_is_none(text: bytes, stranger: Mutator) -> None:
    document = readable_json(stranger.document("zarr.json")).replace(b'"seed": 3', b'"seed": ' + text)
    stranger.put_recorded("zarr.json", document)
    refused(stranger.store, "it cannot be read as JSON")


@pytest.mark.parametrize("name", ["pixels/c.0.0.0.0.0", "zarr.json", SOURCE, f"{TABLE}/c.0", "samples/ids/c.0.0"])
def test_links_out_of_a_store(name: str, stranger: Mutator) -> None:
    stranger.outside.joinpath("file").write_bytes(stranger.intact[name])
    (stranger.store / name).unlink()
    (stranger.store / name).symlink_to(stranger.outside / "file")
    with pytest.raises((CorruptFile, LeadsAway), match="is a symbolic link"):
        store = Store.open(stranger.store)
        store.pixels[0, 0], store.ids(), store.features("mini-dino", 1)
    assert "is a symbolic link" in str(verify_store(stranger.store)[0])


def test_writers_follow_no_links(stranger: Mutator) -> None:
    """Not even to a file that is not there yet, nor through a folder."""
    store = Store.open(stranger.store)
    for name in ("manifest/source/lock", "manifest/log.jsonl"):
        (store.path / name).unlink(missing_ok=True)
        (store.path / name).symlink_to(stranger.outside / "made")
    with pytest.raises(LeadsAway, match="lock is a symbolic link"), store.lock("source"):
        pass
    with pytest.raises(LeadsAway, match="is a symbolic link"):
        store.log({"stage": "x"})
    shutil.move(store.path / "teachers/mini-clip", stranger.outside / "mini-clip")
    (store.path / "teachers/mini-clip").symlink_to(stranger.outside / "mini-clip")
    there = toy.tree(stranger.outside)
    place = Store.open(store.path).place
    with pytest.raises(LeadsAway, match="mini-clip is a symbolic link"):
        place.write({"teachers/mini-clip/new": [b"x"]})
    with pytest.raises(LeadsAway, match="mini-clip is a symbolic link"):
        place.delete([f"teachers/mini-clip/{name.partition('/')[2]}" for name in there])
    assert toy.tree(stranger.outside) == there


def test_a_store_may_itself_be_a_link(stranger: Mutator) -> None:
    (stranger.outside / "x.zarr").symlink_to(stranger.store)
    assert np.array_equal(Store.open(stranger.outside / "x.zarr").pixels[0, 0], toy.pixels(toy.toy_spec(), 0, 0))


def test_no_file_without_an_end_is_read(stranger: Mutator) -> None:
    for name in ("zarr.json", SOURCE, f"{TABLE}/c.0", "samples/ids/c.0.0", "pixels/c.0.0.0.0.0"):
        with (stranger.store / name).open("wb") as file:
            file.truncate(1 << 40)
        assert "bytes" in str(verify_store(stranger.store)[0])
        (stranger.store / name).unlink()
        os.mkfifo(stranger.store / name)
        assert "is no file" in str(verify_store(stranger.store)[0])
        (stranger.store / name).unlink()
        (stranger.store / name).write_bytes(stranger.intact[name])


def test_a_copy_mixes_no_stores(stranger: Mutator, tmp_path: Path) -> None:
    """Of one name and with other pixels: a teacher of those is none of these."""
    mine = Store.create(tmp_path / "mine", toy.toy_spec())
    mine.ensure_views(1)
    writer = SourceWriter(mine)
    for view, shard in writer.pending(1):
        made = toy.source_arrays(mine.spec, view, shard)
        made["pixels"] = made["pixels"] + np.uint8(1)
        writer.write_shard(view, shard, made)
    store = Store.open(stranger.store)
    with pytest.raises(BadInput, match=r"pixels of .* differ in view 0, samples 0 to 3"):
        plan_copy(store, tmp_path / "mine", select(store))


@pytest.mark.parametrize("table", ["arrays", "files"])
@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "pixels/../../outside", "a//b"])
def test_paths_that_climb_are_refused(table: str, name: str, tmp_path: Path) -> None:
    store = toy.make_store(tmp_path / "features", num_views=1)
    path = store.path / "manifest/source/metadata.json"
    document = json.loads(path.read_text())
    document[table][name] = next(iter(document[table].values()))
    path.write_bytes(seal({key: value for key, value in document.items() if key != "digest"}))
    with pytest.raises(CorruptFile, match="which is not below the store"):
        Store.open(store.path)
    assert "which is not below the store" in str(verify_store(store.path)[0])


def test_a_copy_writes_nothing_outside(tmp_path: Path) -> None:
    store = toy.make_store(tmp_path / "features", num_views=1)
    path = store.path / "manifest/teachers/mini-dino/calibration.json"
    document = json.loads(path.read_text())
    document["files"]["../../outside"] = next(iter(document["files"].values()))
    path.write_bytes(seal({key: value for key, value in document.items() if key != "digest"}))
    [problem] = verify_store(store.path)
    assert problem.file.endswith("mini-dino/calibration.json") and "not below the store" in problem.what
    assert "which is not below the store" in refusal("copy", tmp_path / "features", tmp_path / "copies")
    assert not (tmp_path / "outside").exists()


def test_free_values_are_told_or_refused(stranger: Mutator) -> None:
    """What made features, what a task is: any JSON, of anyone."""
    assert "provenance is not as `sak cache` writes it: teacher" in sak("info", stranger.store).stdout
    with pytest.raises(UserError, match="no 'teacher'"):
        request_of(Store.open(stranger.store).teacher("mini-dino").provenance)
    with pytest.raises(UserError, match="has no attribute 'get'"):
        request_of({"teacher": {"name": "x"}, "codec": "fp16", "notes": 7})

    def no_kind(document: Any) -> None:
        document["attributes"]["sak"]["spec"]["labels"]["normals"]["kind"] = "clases"

    with pytest.raises(UnknownName, match="kind of task 'clases'; did you mean classes"):
        store_tasks(Store.open(changed(stranger, "zarr.json", no_kind)), ["semseg"])


def test_names_and_reasons_steer_no_terminal(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "features", toy.toy_spec())
    toy.write_source(store, 1, {4: "\x1b]0;owned\x07\x1b[2Jtruncated\x9b31m"})
    told = sak("info", store.path).stdout
    assert "truncated" in told and not set("\x1b\x07\x9b") & set(told)
