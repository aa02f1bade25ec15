"""Damage of every kind, repaired from the store's own pixels or the data set: byte-identical, or left as it was."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache.errors import CorruptFile, RemadeDiffers
from cache.format.manifest import PartManifest
from cache.maintenance.metadata_repair import mend_metadata
from cache.maintenance.verification import verify_store
from cache.store import Store
from pipeline.extraction.prepare import prepare
from pipeline.extraction.samples import DatasetRequest
from pipeline.maintenance.repair import RepairRequest, repair_store
from tests import cache_toy as toy
from tests.conftest import answer, sak
from tests.fields import make_fields


def repaired(store: Path, **request: object) -> dict[str, object]:
    return repair_store(store, RepairRequest(**request))  # type: ignore[arg-type]


METADATA = [
    "zarr.json",
    "manifest/zarr.json",
    "pixels/zarr.json",
    "views/zarr.json",
    "teachers/mini-dino/zarr.json",
    "teachers/mini-sam/level_1/zarr.json",
    "manifest/source/metadata.json",
    "manifest/source/view_0000.json",
    "manifest/teachers/mini-dino/metadata.json",
    "manifest/teachers/mini-dino/calibration.json",
    "manifest/teachers/mini-dino/view_0001.json",
    "teachers/mini-dino/calibration/zarr.json",
]


@pytest.mark.parametrize("file", METADATA)
def test_a_flipped_bit_of_metadata_is_turned_back(file: str, whole: Path, store: Path) -> None:
    size = (store / file).stat().st_size
    for byte in (0, size // 2, size - 2):
        toy.flip(store / file, byte)
        assert [problem.file for problem in verify_store(store)] == [file]
        assert mend_metadata(store) == ([file], [])
        assert (store / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize(("below", "file"), [("", "zarr.json"), ("teachers/mini-dino", "teachers/mini-dino/zarr.json")])
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_consolidated_metadata_is_named_and_taken_out(below: str, file: str, whole: Path, store: Path) -> None:
    """It would go stale with the next teacher or view: zarr-python prefers it to what each array says."""
    zarr.consolidate_metadata(zarr.storage.LocalStore(store), path=below)
    told = "committed: zarr.consolidate_metadata has written into it"
    done = sak("info", store, check=False)
    assert done.returncode != 0 and told in done.stderr and "sak repair" in done.stderr
    assert [problem.file for problem in verify_store(store)] == [file] and told in str(verify_store(store)[0])
    sak("repair", store)
    assert (store / file).read_bytes() == (whole / file).read_bytes() and verify_store(store) == []


@pytest.mark.parametrize("what", ['"sha256":["', '"bytes":[', '"digest":"'])
def test_a_manifest_file_too_large_to_search_is_put_right_by_the_files(
    what: str, whole: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.maintenance.metadata_repair.MAX_SEARCHED_BYTES", 100)
    file = "manifest/teachers/mini-dino/view_0001.json"
    bits = (0,) if what == '"bytes":[' else (0, 6)  # still a number or a hex digit, and no longer
    for bit in bits:
        toy.flip(store / file, (store / file).read_bytes().index(what.encode()) + len(what) + 1, bit)
        assert file in [problem.file for problem in verify_store(store)]
        assert mend_metadata(store) == ([file], [])
        assert (store / file).read_bytes() == (whole / file).read_bytes()


def test_a_large_manifest_file_is_not_believed_where_a_shard_is_damaged_too(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.maintenance.metadata_repair.MAX_SEARCHED_BYTES", 100)
    file = store / "manifest/teachers/mini-dino/view_0001.json"
    toy.flip(file, file.read_bytes().index(b'"sha256":["') + 12)
    toy.flip(store / "teachers/mini-dino/level_2/c.1.0.0.0.0", 77)
    damaged = file.read_bytes()
    assert mend_metadata(store)[0] == [] and file.read_bytes() == damaged


def test_metadata_that_follows_from_the_manifest_is_written_again(whole: Path, store: Path) -> None:
    for file in ("pixels/zarr.json", "labels/zarr.json", "teachers/mini-sam/level_3/zarr.json", "samples/zarr.json"):
        (store / file).unlink(missing_ok=True)
    assert not mend_metadata(store)[1]
    assert toy.tree(store) == toy.tree(whole)


@pytest.mark.parametrize(
    ("file", "byte"),
    [
        ("pixels/c.1.0.0.0.0", 4000),
        ("samples/ids/c.1.0", 3),
        ("samples/valid/c.1", 2),
        ("views/box/c.0.1.0", 7),
        ("teachers/mini-dino/level_0/c.0.0.0.0.0", 1000),
        ("teachers/mini-dino/level_3/c.1.1.0.0.0", -2),  # the index
        ("teachers/mini-sam/level_2/c.1.0.0.0.0", 5),
        ("teachers/mini-dino/calibration/level_1/covariance/c.0.0", 4321),
        ("teachers/mini-dino/calibration/level_1/min/c.0", 9),
        ("teachers/mini-sam/calibration/level_0/fidelity/zarr.json", 30),
    ],
)
def test_one_flip_is_found_and_repaired(file: str, byte: int, images: Path, whole: Path, store: Path) -> None:
    toy.flip(store / file, byte)
    stamps = {path: path.stat().st_mtime_ns for path in store.rglob("c.*") if path != store / file}
    result = repaired(store, root=images)
    assert result["mended"] == [file] and not result["left"]
    assert toy.tree(store) == toy.tree(whole)
    if "calibration" not in file:  # nothing else was touched
        assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_a_calibrations_manifest_beyond_mending_hinders_no_other_repair(store: Path) -> None:
    part = store / "manifest" / "teachers" / "mini-dino"
    lost, beyond = store / "teachers" / "mini-dino" / "zarr.json", part / "calibration.json"
    whole = lost.read_bytes()
    lost.unlink()
    beyond.write_bytes(beyond.read_bytes()[::-1])
    mended, left = mend_metadata(store)
    assert mended == ["teachers/mini-dino/zarr.json"] and lost.read_bytes() == whole
    assert [problem.file for problem in left] == ["manifest/teachers/mini-dino/calibration.json"]


def test_damage_all_over_the_store_at_once(images: Path, whole: Path, store: Path) -> None:
    toy.flip(store / "zarr.json", 50)
    toy.flip(store / "pixels/c.0.1.0.0.0", 10)
    (store / "views/flip/c.1.0").unlink()
    (store / "teachers/mini-dino/level_1/c.0.1.0.0.0").write_bytes(b"")
    toy.flip(store / "manifest/teachers/mini-sam/view_0000.json", 60)
    toy.flip(store / "teachers/mini-sam/level_1/c.0.0.0.0.0", 100)
    toy.flip(store / "teachers/mini-sam/calibration/level_0/mean/c.0", 0)
    (store / "teachers/mini-dino/calibration/level_0/std/c.0").unlink()
    result = repaired(store, root=images)
    assert not result["left"] and len(result["damaged"]) > 5  # type: ignore[arg-type]
    assert toy.tree(store) == toy.tree(whole)
    assert repaired(store) == {"store": str(store), "damaged": [], "mended": [], "left": []}


@pytest.mark.parametrize("part", ["source", "teachers/mini-dino"])
def test_a_manifest_file_beyond_mending_costs_its_view_alone(part: str, images: Path, whole: Path, store: Path) -> None:
    file = store / f"manifest/{part}/view_0001.json"
    file.write_bytes(b"x" + file.read_bytes()[2:])
    other = store / "pixels/c.0.0.0.0.0"
    stamp = other.stat().st_mtime_ns
    assert not repaired(store, root=images)["left"]
    assert toy.tree(store) == toy.tree(whole)
    assert other.stat().st_mtime_ns == stamp


def test_without_the_images_pixels_are_left_as_they_were_and_teachers_are_repaired(store: Path) -> None:
    toy.flip(store / "pixels/c.1.0.0.0.0", 4000)
    toy.flip(store / "teachers/mini-dino/level_0/c.0.0.0.0.0", 1000)
    before = (store / "pixels/c.1.0.0.0.0").read_bytes()
    done = sak("repair", store, "--json", check=False)
    result = json.loads(done.stdout)
    assert done.returncode == 1
    assert result["mended"] == ["teachers/mini-dino/level_0/c.0.0.0.0.0"]
    (left,) = result["left"]
    assert (left["part"], left["level"], left["view"], left["shard"], left["rows"]) == ("source", "pixels", 1, 0, [1])
    assert "--root" in left["why"]
    assert (store / "pixels/c.1.0.0.0.0").read_bytes() == before


def test_changed_images_are_refused(images: Path, store: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(images, tmp_path / "images"))
    (changed / "0003.png").write_bytes((changed / "0004.png").read_bytes())  # another size: told by the spec
    toy.flip(store / "pixels/c.0.0.0.0.0", 4000)
    (left,) = repaired(store, root=changed)["left"]  # type: ignore[misc]
    assert "samples_digest" in left["why"]
    same_size = bytearray((images / "0003.png").read_bytes())
    same_size[-40:] = bytes(40)  # the same size, other content: told by the recorded digest
    (changed / "0003.png").write_bytes(same_size)
    (left,) = repaired(store, root=changed)["left"]  # type: ignore[misc]
    assert "what was made again is not what was committed" in left["why"]


def test_a_described_data_set_is_found_again_whatever_it_calls_itself(tmp_path: Path) -> None:
    """By its `dataset.toml`: no data set is known by the name that it gives itself."""
    root = make_fields(tmp_path / "data", crops=True)
    made = prepare(DatasetRequest("labelled", "train", (64, 64), root), tmp_path / "features", 1, decoders=0)
    before = toy.tree(made.path)
    toy.flip(made.path / "labels/semseg/c.0.0.0.0", 1000)
    done = sak("repair", made.path, "--root", root)
    assert "1 files mended, 0 problems left" in done.stdout and toy.tree(made.path) == before


def test_features_of_damaged_pixels_wait_for_the_pixels(images: Path, whole: Path, store: Path) -> None:
    toy.flip(store / "pixels/c.0.0.0.0.0", 4000)
    toy.flip(store / "teachers/mini-dino/level_0/c.0.0.0.0.0", 1000)
    left = repaired(store)["left"]
    assert {problem["part"] for problem in left} == {"source", "teachers/mini-dino"}  # type: ignore[attr-defined]
    assert "pixels" in left[1]["why"]  # type: ignore[index]
    assert not repaired(store, root=images)["left"]
    assert toy.tree(store) == toy.tree(whole)


@pytest.mark.parametrize("part", ["source", "teachers/mini-dino"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_lost_spec_or_provenance_is_named_and_made_again(
    part: str, content: bytes | None, whole: Path, store: Path
) -> None:
    file = "zarr.json" if part == "source" else f"{part}/zarr.json"
    if content is None:
        (store / file).unlink()
    else:
        (store / file).write_bytes(content)
    verified = sak("verify", store, "--json", check=False)
    (problem,) = json.loads(verified.stdout)["problems"]
    assert verified.returncode == 1 and (problem["part"], problem["file"]) == (part, file)
    done = answer("repair", store)
    assert done["mended"] == [file] and not done["left"]
    assert toy.tree(store) == toy.tree(whole)


def test_without_a_second_copy_it_is_said_what_to_do(store: Path) -> None:
    """Stores of before the manifest kept the attributes of groups."""
    for part in ("source", "teachers/mini-dino"):
        manifest = PartManifest(store, part)
        manifest.commit_metadata(replace(manifest.metadata, groups={}), replace=True)
        assert b"groups" not in (store / f"manifest/{part}/metadata.json").read_bytes()
    assert verify_store(store) == []
    (store / "teachers/mini-dino/zarr.json").write_text("{}")
    (left,) = repaired(store)["left"]  # type: ignore[misc]
    assert "put the file of another copy" in left["why"] and "sak drop --teacher mini-dino" in left["why"]
    Store.open(store).features("mini-sam", 0)[0, 0]
    with pytest.raises(CorruptFile):
        Store.open(store).features("mini-dino", 0)
    (store / "zarr.json").unlink()
    assert {problem.file for problem in verify_store(store)} == {"zarr.json", "teachers/mini-dino/zarr.json"}
    done = sak("repair", store, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "zarr.json: nothing in the store says what was there" in done.stdout
    assert "make the store again" in done.stdout


def test_a_dry_run_says_what_and_does_nothing(store: Path) -> None:
    toy.flip(store / "teachers/mini-dino/level_0/c.0.0.0.0.0", 1000)
    before = toy.tree(store)
    done = sak("repair", store, "--dry-run")
    assert "would repair" in done.stdout and "level_0/c.0.0.0.0.0" in done.stdout
    assert toy.tree(store) == before


def test_a_committed_shard_is_written_again_only_as_it_was(tmp_path: Path) -> None:
    store = toy.make_store(tmp_path, num_views=1)
    before = toy.tree(store.path)
    toy.flip(store.path / "pixels/c.0.1.0.0.0", 9)
    from cache.writing.source_writer import SourceWriter

    writer = SourceWriter(store)
    changed = toy.source_arrays(store.spec, 0, 1)
    changed["pixels"] = np.zeros_like(changed["pixels"])
    with pytest.raises(RemadeDiffers, match=r"pixels/c\.0\.1\.0\.0\.0"):
        writer.write_shard(0, 1, changed, {4: toy.INVALID[4]})
    writer.write_shard(0, 1, toy.source_arrays(store.spec, 0, 1), {4: toy.INVALID[4]})
    assert toy.tree(store.path) == before
