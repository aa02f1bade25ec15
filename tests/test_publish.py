"""Caches handed out: what licences say first, the card beside them, features without images and joined again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from obstore.store import MemoryStore
from PIL import Image

import sak as front
from benchmarks import publishing
from cache.calibration.statistics import Calibrator
from cache.errors import BadInput
from cache.format.spec import LevelSpec
from cache.maintenance.verification import verify_store
from cache.places.local import LocalPlace
from cache.places.objects import ObjectPlace
from cache.store import Store, find_stores
from cache.writing.teacher_writer import TeacherWriter
from pipeline import api
from pipeline.errors import UserError
from pipeline.maintenance.copy_caches import CopyRequest, copy
from pipeline.maintenance.store_card import CARD, OTHER_CARD, is_ours, stated_licences
from pipeline.runs.licences import data_terms
from tests import cache_toy as toy
from tests.conftest import refusal, sak
from tests.fields import cache_fields, make_fields

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files(store: Path) -> dict[str, bytes]:
    """What a copy holds of a store: all but locks, log and times of files."""
    kept = toy.tree(store).items()
    return {name: raw for name, raw in kept if not name.endswith("/lock") and name != "manifest/source/files"}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled cache with two teachers."""
    out = tmp_path_factory.mktemp("rooms") / "features"
    sak(
        "cache", "--teacher", "mini-dino,mini-sam", "--limit", "10", "--views", "2", "--threads", "1",
        "--decoders", "0", "--codec", "int8", "--out", out,
    )  # fmt: skip
    return next(out.glob("*.zarr"))


def test_published_features_are_joined_to_the_store_byte_for_byte(rooms: Path, tmp_path: Path) -> None:
    there = tmp_path / "published"
    refused = sak("publish", rooms, there, "--without-pixels", check=False)
    assert refused.returncode == 2 and "--yes" in refused.stderr and not there.exists()
    for told in ("| images of rooms", "| weights of mini-dino |", "Apache-2.0", "Strictest: ", "without the pixels"):
        assert told in refused.stderr
    done = json.loads(sak("publish", rooms, there, "--without-pixels", "--yes", "--json").stdout)
    assert done["published"] and done["card"] == str(there / CARD)
    features = there / rooms.name
    assert not list(features.glob("pixels/*")) and not list(features.glob("labels/*/*"))
    assert not list(features.glob("manifest/log.jsonl")) and (there / "catalogue.json").is_file()
    assert "left out: labels/" in sak("verify", features).stdout
    assert "left out: labels/" in sak("info", features).stdout
    untrained = sak("distill", "--out", there, "--runs", tmp_path / "runs", check=False)
    assert untrained.returncode == 2 and f"`sak join {features} --root DIR`" in untrained.stderr
    more = sak("cache", "--teacher", "mini-clip", "--limit", "10", "--views", "2", "--out", there, check=False)
    assert more.returncode == 2 and "sak join" in more.stderr
    joined = sak("join", there, "--out", tmp_path / "joined")
    assert "whole: 20 rows rendered" in joined.stdout
    assert files(tmp_path / "joined" / rooms.name) == files(rooms)
    # again, and where it lies: nothing is left to do, or the same
    again = json.loads(sak("join", there, "--out", tmp_path / "joined", "--json").stdout)["stores"]
    assert [(store["joined"], store["rows"]) for store in again] == [(True, 0)]
    assert [store["joined"] for store in front.join(there)["stores"]] == [True]
    assert files(features) == files(rooms)
    for folder in (there, tmp_path / "joined"):
        card = (folder / CARD).read_text()
        assert is_ours(card) and "are not here" not in card and "holds pixels and labels" in card
    listed = json.loads((there / "catalogue.json").read_text())["stores"][rooms.name]
    assert "pixels/zarr.json" in listed and "manifest/source/left_out.json" not in listed


def test_images_that_differ_are_named_and_the_store_stays_without(whole: Path, images: Path, tmp_path: Path) -> None:
    """Of 70 pictures one is unreadable, as it was; then one is gone, one is another, one cannot be read."""
    front.publish(whole, tmp_path / "there", pixels=False, confirm=lambda question: True)
    data = tmp_path / "images"
    shutil.copytree(images, data)
    kept = {name: (data / name).read_bytes() for name in ("0003.png", "0005.png", "0066.png")}
    (data / "0003.png").rename(data / "no-picture.txt")
    out = ("--root", data, "--out", tmp_path / "out")
    gone = sak("join", tmp_path / "there", *out, check=False)
    assert gone.returncode == 1 and "0003.png: it is not in the data set" in gone.stdout
    assert "NOT whole: 1 images" in gone.stdout and not (tmp_path / "out").exists()
    (data / "no-picture.txt").rename(data / "0003.png")
    (data / "0003-more.png").write_bytes(kept["0003.png"])
    surplus = sak("join", tmp_path / "there", *out, check=False)
    assert surplus.returncode == 1 and "NOT whole: 1 images" in surplus.stdout
    assert "0003-more.png: it is in the data set, and not in the store" in surplus.stdout
    (data / "0003-more.png").rename(data / "more.png")  # behind the others it is in nobody's way
    Image.fromarray(np.asarray(Image.open(data / "0005.png")) ^ 1).save(data / "0005.png")
    (data / "0066.png").write_bytes(b"not a picture")
    wrong = sak("join", tmp_path / "there", *out, "--json", check=False)
    (told,) = json.loads(wrong.stdout)["stores"]
    assert wrong.returncode == 1 and not told["joined"] and told["images"].keys() == {"0005.png", "0066.png"}
    assert "other pixels" in told["images"]["0005.png"] and "cannot be read" in told["images"]["0066.png"]
    (store,) = find_stores(tmp_path / "out")
    assert store.left_out == {"pixels"} and verify_store(store.path) == []
    # what was unreadable may be readable here: its rows stay filled, as they were
    (data / "0069.png").write_bytes(kept["0003.png"])
    for name in ("0066.png", "0005.png"):
        (data / name).write_bytes(kept[name])
        last = sak("join", tmp_path / "there", *out, check=False)
    assert last.returncode == 0 and files(store.path) == files(whole)


@pytest.mark.parametrize("fault", ["repair:1", "repair:2", "join:1"])
def test_a_killed_join_goes_on(fault: str, whole: Path, images: Path, tmp_path: Path) -> None:
    front.publish(whole, tmp_path, pixels=False, confirm=lambda question: True)
    at = ("join", tmp_path, "--root", images)
    assert sak(*at, env={"SAK_FAULT": fault}, check=False).returncode == -signal.SIGKILL
    store = Store.open(tmp_path / whole.name)
    assert store.left_out == {"pixels"} and verify_store(store.path) == []
    sak(*at)
    assert files(store.path) == files(whole)


def test_labels_that_differ_are_told(tmp_path: Path) -> None:
    make_fields(tmp_path / "data", crops=True)
    cache_fields(tmp_path / "data", tmp_path / "features", "--teacher", "mini-dino", "--size", "64")
    front.publish(tmp_path / "features", tmp_path / "there", pixels=False, confirm=lambda question: True)
    make_fields(tmp_path / "data", crops=False)  # files of the same sizes
    done = sak("join", tmp_path / "there", "--root", tmp_path / "data", check=False)
    assert done.returncode == 1 and "labels/semseg" in done.stdout and "NOT whole: 0 images and 1 files" in done.stdout
    assert [store.left_out for store in find_stores(tmp_path / "there")] == [{"pixels", "labels/semseg"}] * 2
    make_fields(tmp_path / "data", crops=True)
    sak("join", tmp_path / "there", "--root", tmp_path / "data")
    for store in find_stores(tmp_path / "there"):
        assert files(store.path) == files(tmp_path / "features" / store.name)


def test_what_may_leave_is_said_first(whole: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    with pytest.raises(UserError, match="nothing was published"):
        api.publish(whole, tmp_path / "there", confirm=lambda question: bool(asked.append(question)))
    assert "publish 1 stores" in asked[0] and not (tmp_path / "there").exists()
    with pytest.raises(UserError, match="nothing was published"):
        api.publish(whole, tmp_path / "there")
    dry = sak("publish", whole, tmp_path / "there", "--dry-run")
    assert "NOT KNOWN" in dry.stdout and "would publish" in dry.stdout and not (tmp_path / "there").exists()
    stated = sak("publish", whole, tmp_path / "there", "--dry-run", "--data-licence", "CC-BY-NC-4.0")
    assert "which their licence allows" in stated.stdout and "non-commercial use alone" in stated.stderr
    # pixels that lie there already are not without
    sak("publish", whole, tmp_path / "there", "--yes")
    held = sak("publish", whole, tmp_path / "there", "--yes", "--without-pixels", check=False)
    assert held.returncode == 2 and "holds pixels already" in held.stderr
    assert files(tmp_path / "there" / whole.name) == files(whole)
    nothing = sak("publish", tmp_path, tmp_path / "x", "--yes", check=False)
    assert nothing.returncode == 2 and "no folder that holds one" in nothing.stderr


@pytest.mark.parametrize("answer", ["n", "y"])
def test_at_a_terminal_it_asks(answer: str, tmp_path: Path) -> None:
    toy.make_store(tmp_path / "features", 1)
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "pipeline", "publish", tmp_path / "features", tmp_path / "there"]
    running = subprocess.Popen(
        command, cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.write(ours, f"{answer}\n".encode())
    _, told = running.communicate(timeout=280)
    os.close(ours)
    os.close(theirs)
    assert "publish 1 stores" in told and "| images of toy" in told and told.index("| images") < told.index("publish 1")
    assert running.returncode == (0 if answer == "y" else 2) and (tmp_path / "there").exists() == (answer == "y")


def test_half_a_store_is_not_published(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "half", toy.toy_spec())
    store.ensure_views(1)
    with pytest.raises(UserError, match="source is not complete"):
        api.publish(store.path, tmp_path / "there", confirm=lambda question: True)


def test_data_sets_say_what_they_allow() -> None:
    spec = toy.toy_spec()
    known = {name: data_terms(toy.toy_spec(dataset=name)) for name in ("rooms", "imagenet", "nyud", "pascal_context")}
    assert {name: terms.may_share for name, terms in known.items()} == {
        "rooms": True, "imagenet": False, "nyud": None, "pascal_context": None,
    }  # fmt: skip
    assert data_terms(spec).licence == "unknown"
    shared = {
        licence: data_terms(spec, licence).may_share for licence in ("CC-BY-SA-4.0", "mit", "CC-BY-ND-4.0", "mine")
    }
    assert shared == {"CC-BY-SA-4.0": True, "mit": True, "CC-BY-ND-4.0": None, "mine": None}


# ---- the card ------------------------------------------------------------------------------------------------------


def with_codec(root: Path, codec: str, is_smooth: bool) -> Store:
    """A toy store of one level of 8x8 cells in `codec`; klt transforms it over the grid where it is smooth."""
    level = LevelSpec(2, (8, 8), 32, codec, fidelity=0.99 if codec.startswith("klt") else None)
    store = Store.create(root, toy.toy_spec(num_samples=96, rows_per_shard=32))
    toy.write_source(store, 1)
    teacher = {"library": "timm", "model": "m", "weights": "sha256:" + "1" * 64, "licence": "MIT"}
    writer = TeacherWriter(store, {"name": "mini-dino", "teacher": teacher}, [level])
    draw = np.random.default_rng(0)
    slopes = np.linspace(-1, 1, 8)[:, None, None] + np.linspace(-1, 1, 8)[None, :, None]
    noise = draw.uniform(-1, 1, (96, 8, 8, 32)) * (0.05 if is_smooth else 2)
    maps = (slopes * draw.uniform(-1, 1, (96, 1, 1, 32)) + noise).astype(np.float32)
    calibrator = Calibrator([level])
    calibrator.fit([maps[:64]])
    calibrator.measure([maps[64:]])
    writer.write_calibration(calibrator.arrays())
    for view, shard in writer.pending(1):
        samples = store.spec.rows(shard)
        writer.write_shard(view, shard, [maps[samples.start : samples.stop]])
    return store


@pytest.mark.parametrize("codec", ["fp32", "fp16", "bf16", "int8", "int4", "klt", "klt smooth", "klt+trellis"])
def test_the_lines_of_the_card_read_the_features(codec: str, tmp_path: Path) -> None:
    codec, _, smooth = codec.partition(" ")
    store = with_codec(tmp_path / "features", codec, bool(smooth))
    there = tmp_path / "there"
    api.publish(store.path, there, pixels=False, data_licence="CC-BY-4.0", confirm=lambda question: True)
    card = DatasetCard.load(there / CARD)
    assert card.data.license == "other" and "sak join" in card.text and "CC-BY-4.0" in card.text
    for fact in ("`sha256:1111111111111111`", codec, "mini-dino", "8x8x32", "@inproceedings", "toy train, 96"):
        assert fact in card.text
    assert ("| 0.99 |" in re.sub(" +", " ", card.text)) == codec.startswith("klt")
    ours, plain = BLOCK.findall(card.text)
    assert ("dct_y" in plain) == bool(smooth)
    expected = store.features("mini-dino", 2)[0, 0]
    stored = codec == "klt+trellis"
    for block in (ours, plain):
        lines = [line for line in block.splitlines() if line and not line.startswith(("import", "from"))]
        assert len(lines) <= (4 if "dct_y" not in block else 6)
        shown = "stored" if stored and block == plain else "features"
        code = f"{block}\nimport numpy, sys; numpy.save(sys.argv[1], {shown})"
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / "read.npy"],
            cwd=there, check=True, env={"PYTHONPATH": str(ROOT), "PATH": ""},
        )  # fmt: skip
        found = np.load(tmp_path / "read.npy")
        if shown == "stored":
            assert found.shape == (32, 64)
        else:
            np.testing.assert_allclose(found.reshape(8, 8, 32), expected, rtol=1e-5, atol=1e-5)


def test_a_readme_by_hand_is_kept_and_what_was_stated_is_remembered(tmp_path: Path) -> None:
    there = tmp_path / "there"
    for name, licence in (("one", "CC-BY-4.0"), ("two", None)):
        store = toy.make_store(tmp_path / name, dataset=name)
        api.publish(store.path, there, data_licence=licence, confirm=lambda question: True)
    text = (there / CARD).read_text()
    assert "| images of one" in text and "CC-BY-4.0" in text and "| images of two" in text
    assert text.count("\n## ") == 4 and not (there / OTHER_CARD).exists()
    again = api.publish([tmp_path / "one", tmp_path / "two"], there, confirm=lambda question: True)
    assert (there / CARD).read_text() == text and "which their licence allows" in again["stores"][0]["images"]
    assert stated_licences(LocalPlace(there)) == {next((tmp_path / "one").iterdir()).name: "CC-BY-4.0"}
    (there / CARD).write_text(text.replace("# Cached features", "# Our features"))
    again = api.publish(tmp_path / "two", there, confirm=lambda question: True)
    assert again["card"] == str(there / OTHER_CARD) and "# Our features" in (there / CARD).read_text()
    assert (there / OTHER_CARD).read_text() == text
    (there / CARD).write_text("mine")
    (there / OTHER_CARD).unlink()
    api.publish(tmp_path / "two", there, confirm=lambda question: True)
    assert (there / CARD).read_text() == "mine"


def test_any_place_takes_them(tmp_path: Path) -> None:
    bucket = ObjectPlace(MemoryStore(), "x/", "s3://bucket/x")
    store = toy.make_store(tmp_path)
    done = api.publish(store.path, bucket, pixels=False, confirm=lambda question: True)  # type: ignore[arg-type]
    card = bucket.read(CARD).decode()
    assert done["card"] == f"s3://bucket/x/{CARD}" and f'Store.open("s3://bucket/x/{store.name}")' in card
    assert is_ours(card) and verify_store(bucket / store.name) == []


def test_what_a_stranger_stated_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    mark = json.dumps({"images": {"a.zarr": "MIT\x1b[2J", "b.zarr": "CC-BY-4.0\n| forged |", "c.zarr": "CC0-1.0"}})
    (tmp_path / CARD).write_text(f"theirs\n<!-- sak publish: {mark} -->\n")
    assert stated_licences(LocalPlace(tmp_path)) == {"c.zarr": "CC0-1.0"}


@pytest.mark.parametrize("last", ["", "<!-- sak publish: {no json} -->", '<!-- sak publish: {"images": 3} -->'])
def test_a_strangers_readme_is_not_ours(last: str, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(f"theirs\n{last}\n")
    assert not is_ours((tmp_path / CARD).read_text())
    api.publish(toy.make_store(tmp_path / "one").path, tmp_path, data_licence="a --> b", confirm=lambda question: True)
    assert (tmp_path / CARD).read_text() == f"theirs\n{last}\n" and is_ours((tmp_path / OTHER_CARD).read_text())
    assert set(stated_licences(LocalPlace(tmp_path)).values()) == {"a --> b"}


# ---- copies of what was published ----------------------------------------------------------------------------------


def published(root: Path, dataset: str = "one", licence: str | None = "CC-BY-4.0") -> Path:
    store = toy.make_store(root / "own", 1, dataset=dataset)
    api.publish(store.path, root / "there", data_licence=licence, confirm=lambda question: True)
    return root / "there"


def test_a_copy_has_the_card_and_what_was_stated(tmp_path: Path) -> None:
    there = published(tmp_path)
    (store,) = find_stores(there)
    for source, copies in ((there, tmp_path / "all"), (store.path, tmp_path / "alone")):
        copy(CopyRequest(source, copies))
        card = (copies / CARD).read_text()
        assert card == (there / CARD).read_text() and is_ours(card) and "CC-BY-4.0" in card
        assert verify_store(copies / store.name) == [] and len(find_stores(copies)) == 1
    narrowed = tmp_path / "narrowed"
    copy(CopyRequest(there, narrowed, teachers=("mini-dino",)))
    assert "mini-clip" in card and "mini-clip" not in (narrowed / CARD).read_text()
    again = api.publish(narrowed, tmp_path / "on", dry_run=True)
    assert {"of": "images of one", "licence": "CC-BY-4.0"} in again["licences"]
    copy(CopyRequest(tmp_path / "own", tmp_path / "plain"))
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["catalogue.json", store.name]


def test_a_join_elsewhere_brings_whole_stores_and_the_card_too(tmp_path: Path) -> None:
    there = published(tmp_path)
    (done,) = api.join(there, out=tmp_path / "out")["stores"]
    (store,) = find_stores(tmp_path / "out")
    assert done == {"store": str(store), "joined": True, "rows": 0, "images": {}, "files": []}
    assert (tmp_path / "out" / CARD).read_text() == (there / CARD).read_text()


def test_a_copys_card_takes_nobodys_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, copies = published(tmp_path), tmp_path / "copies"
    copies.mkdir()
    (copies / CARD).write_text("mine")
    copy(CopyRequest(there, copies))
    assert (copies / CARD).read_text() == "mine" and "CC-BY-4.0" in (copies / OTHER_CARD).read_text()
    (there / CARD).write_text("of theirs")  # with their card beside it
    api.publish(tmp_path / "own", there, confirm=lambda question: True)
    copy(CopyRequest(there, tmp_path / "whole"))
    assert (tmp_path / "whole" / CARD).read_text() == "of theirs" and is_ours(
        (tmp_path / "whole" / OTHER_CARD).read_text()
    )
    capsys.readouterr()
    (copies / OTHER_CARD).write_text("mine, too")
    copy(CopyRequest(there, copies))
    told = capsys.readouterr().err
    assert "is left as it is; another one belongs to the copies" in told and "no room for a card" in told
    assert [(copies / name).read_text() for name in (CARD, OTHER_CARD)] == ["mine", "mine, too"]
    (there / CARD).unlink()
    (there / CARD).symlink_to(copies / CARD)
    copy(CopyRequest(there, tmp_path / "linked"))
    assert "stays behind" in capsys.readouterr().err and not (tmp_path / "linked" / CARD).exists()


def test_files_of_others_are_not_written_over(tmp_path: Path) -> None:
    own, there = toy.make_store(tmp_path / "own", 1), tmp_path / "there"
    there.mkdir()
    for name, text in (("catalogue.json", '["of a web page"]'), (OTHER_CARD, "mine")):
        (there / name).write_text(text)
        (there / CARD).write_text("mine")
        with pytest.raises((BadInput, UserError), match=r"move it away|move one of them away"):
            api.publish(own.path, there, confirm=lambda question: True)
        assert (there / name).read_text() == text and not (there / own.name).exists()
        (there / name).unlink()
    (there / "catalogue.json").write_text("{}")
    said = refusal("copy", tmp_path / "own", there)
    assert "it is no catalogue of stores" in said and "move it away" in said and not (there / own.name).exists()


def test_one_licence_is_of_one_data_set(tmp_path: Path) -> None:
    for name in ("one", "two"):
        toy.make_store(tmp_path / "own", 1, dataset=name)
    with pytest.raises(UserError, match=r"CC0-1\.0 would be said of one, two"):
        api.publish(tmp_path / "own", tmp_path / "there", data_licence="CC0-1.0", confirm=lambda question: True)


# ---- costs ---------------------------------------------------------------------------------------------------------


def test_the_page_tells_the_costs_that_the_plan_would(tmp_path: Path) -> None:
    assert publishing.costs() in (ROOT / "docs/sharing.md").read_text()
    planned = sak(
        "cache", "--dry-run", "--json", "--teacher", "mini-dino,mini-sam", "--limit", "70", "--views", "2",
        "--codec", "int8", "--grid", "6x6", "--out", tmp_path,
    )  # fmt: skip
    parts = json.loads(planned.stdout)["parts"]
    data = publishing.Published("Rooms", "rooms", (96, 96), ((70, 2),))
    teachers = sum(part["pending_bytes"] for part in parts if part["part"] != "source")
    assert publishing.feature_bytes(data, "int8", (6, 6), ("mini-dino", "mini-sam")) == teachers
    (source,) = (part["pending_bytes"] for part in parts if part["part"] == "source")
    assert abs(publishing.pixel_bytes(data) - source) <= 64 * 128  # ids are as wide as they need to be
