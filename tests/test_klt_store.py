"""Stores whose features are entropy coded: our readers, plain readers, damage, and levels coded together."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cache.calibration.statistics import calibrated, calibration_rows
from cache.codecs.fidelity import Fidelity, FidelityMeter
from cache.errors import BadInput, CalibrationDiffers, CorruptFile
from cache.format.seals import seal
from cache.format.spec import LevelSpec
from cache.loading.loader import Loader
from cache.maintenance.verification import verify_store
from cache.reading.rows import RowReader
from cache.store import Store
from cache.writing.source_writer import TeacherWriter
from pipeline.cli import sak
from tests import cache_toy as toy
from tests.plain_klt import decode
from tests.trained_like import trained_like

GRID, WIDTH, VIEWS, SAMPLES, FIDELITY = (5, 4), 24, 2, 40, 0.98
TEACHERS = {
    "alone": [LevelSpec(level, GRID, WIDTH, "klt", fidelity=FIDELITY) for level in range(3)],
    "packed": [LevelSpec(0, GRID, WIDTH, "klt+pcodec", fidelity=FIDELITY), LevelSpec(1, GRID, WIDTH, "int4")],
    "together": [
        LevelSpec(level, GRID, WIDTH, "klt", fidelity=FIDELITY, predicts_from=level - 1 if level else None)
        for level in range(3)
    ],
    "smooth": [
        LevelSpec(3, GRID, WIDTH, "klt", fidelity=FIDELITY),
        LevelSpec(4, GRID, WIDTH, "klt+pcodec", fidelity=FIDELITY, predicts_from=3),
    ],
    "trellis": [
        LevelSpec(0, GRID, WIDTH, "klt+trellis", fidelity=FIDELITY),
        LevelSpec(1, GRID, WIDTH, "klt+trellis", fidelity=FIDELITY, predicts_from=0),
        LevelSpec(3, GRID, WIDTH, "klt+trellis", fidelity=FIDELITY),
    ],
}
FEATURES = [
    trained_like(VIEWS * SAMPLES, GRID[0] * GRID[1], WIDTH, level=level).reshape(VIEWS, SAMPLES, *GRID, WIDTH)
    for level in range(3)
]
for rough in FEATURES[:2]:  # neighbouring tokens that are alike
    FEATURES.append(rough[:, :, :1, :1] + 0.3 * rough)


def write(store: Store, name: str, levels: list[LevelSpec]) -> None:
    writer = TeacherWriter(store, {"name": name}, levels)
    halves = calibration_rows(store.valid(1), store.spec.seed, SAMPLES)
    writer.write_calibration(calibrated(levels, *([FEATURES[lv.level][0, rows] for lv in levels] for rows in halves)))
    for view, shard in writer.pending(VIEWS):
        rows = store.spec.rows(shard)
        writer.write_shard(view, shard, [FEATURES[lv.level][view, rows.start : rows.stop].copy() for lv in levels])


def make(root: Path) -> Store:
    store = Store.create(root, toy.toy_spec(num_samples=SAMPLES, rows_per_shard=16))
    toy.write_source(store, VIEWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.codecs.klt_trellis._LEAST_SAVING", -1)  # whatever it saves, on rows as small as these
        for name, levels in TEACHERS.items():
            write(store, name, levels)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make(tmp_path_factory.mktemp("klt"))


def test_what_is_promised_is_kept_and_recorded(store: Store) -> None:
    for name, levels in TEACHERS.items():
        calibration = store.calibration(name)
        assert calibration
        for level in levels:
            recorded = Fidelity.from_array(calibration[f"{level.array}/fidelity"])
            assert min(recorded.cosine, recorded.centred_cosine) >= (level.fidelity or 0.98)
            meter = FidelityMeter(calibration[f"{level.array}/mean"])
            for view in range(VIEWS):
                meter.update(FEATURES[level.level][view], store.features(name, level.level)[:, view])
            found = meter.compute()
            assert min(found.cosine, found.centred_cosine) >= (level.fidelity or 0.98)
            if level.fidelity:  # three standard errors of 20 maps above it
                assert recorded.centred_cosine < FIDELITY + 0.007, "no more bits than it takes"


def test_loader_gives_what_single_rows_are(store: Store) -> None:
    for batch in Loader(store, list(TEACHERS), batch_size=8, num_views=VIEWS):
        batch = batch.to("cpu")
        for name, levels in TEACHERS.items():
            for level, tensor in zip(levels, batch.features[name], strict=True):
                rows = [
                    store.features(name, level.level)[int(sample), int(view)]
                    for sample, view in zip(batch.samples, batch.views, strict=True)
                ]
                assert tensor.shape == (8, WIDTH, *GRID) and tensor.is_contiguous(memory_format=torch.channels_last)
                np.testing.assert_allclose(tensor.permute(0, 2, 3, 1), np.stack(rows), rtol=1e-4, atol=1e-3)


def test_one_level_of_a_group_costs_those_that_it_leans_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = RowReader.read_rows

    def counted(self: RowReader, samples: list[int], views: list[int], targets: list[memoryview]) -> None:
        read.append(self.array.path)
        plain(self, samples, views, targets)

    monkeypatch.setattr(RowReader, "read_rows", counted)
    for name, level, expected in (("together", 0, [0]), ("together", 2, [0, 1, 2]), ("alone", 2, [2])):
        read.clear()
        store.features(name, level)[3, 1]
        assert sorted(read) == [f"teachers/{name}/level_{number}" for number in expected]
        read.clear()
        batch = next(iter(Loader(store, {name: [level]}, batch_size=2, num_views=1, pixels=False))).to("cpu")
        assert len(batch.features[name]) == 1
        assert {path for path in read if path.startswith("teachers")} == {
            f"teachers/{name}/level_{number}" for number in expected
        }
    files = {name: [*store.path.glob(f"teachers/{name}/level_[12]/c.*")] for name in ("alone", "together")}
    sizes = {name: sum(file.stat().st_size for file in found) for name, found in files.items()}
    assert sizes["together"] < 0.97 * sizes["alone"]


def test_plain_readers_read_the_integers(store: Store) -> None:
    import zarr

    tensorstore = pytest.importorskip("tensorstore")
    pytest.importorskip("zarrs")
    for name, level in (("alone", 0), ("alone", 1), ("alone", 2), ("smooth", 3)):
        path = f"teachers/{name}/level_{level}"
        ours = np.stack([store.features(name, level).stored[:, view] for view in range(VIEWS)])
        assert ours.dtype == np.uint16 and ours.shape == (VIEWS, SAMPLES, WIDTH, GRID[0] * GRID[1])
        array = zarr.open_array(store.path / path, mode="r")
        assert array.metadata.dimension_names == ("view", "sample", f"level_{level}_component", f"level_{level}_cell")
        np.testing.assert_array_equal(array[...], ours)
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}), warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(zarr.open_array(store.path / path, mode="r")[...], ours)
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store.path / path}/"}}
        np.testing.assert_array_equal(tensorstore.open(spec, open=True).result().read().result(), ours)
    for name, level in (("packed", 0), ("trellis", 0), ("trellis", 3)):
        with pytest.warns(UserWarning, match="Numcodecs"):
            packed = zarr.open_array(store.path / f"teachers/{name}/level_{level}", mode="r")[...]
        np.testing.assert_array_equal(packed[1], store.features(name, level).stored[:, 1])


@pytest.mark.parametrize(("name", "level"), [("alone", 0), ("smooth", 3), ("trellis", 0), ("trellis", 3)])
def test_features_follow_from_the_integers_as_documented(store: Store, name: str, level: int) -> None:
    import zarr

    group = zarr.open_group(store.path / f"teachers/{name}/calibration/level_{level}", mode="r")
    tables = {table: array[...] for table, array in group.arrays()}
    assert ("dct_y" in tables) == (level == 3)
    assert (name != "trellis") or 0 < np.count_nonzero(tables["more_bits"]) < WIDTH, "some of both kinds"
    features = store.features(name, level)
    for view in range(VIEWS):
        found = decode(features.stored[:, view], tables).reshape(SAMPLES, *GRID, WIDTH)
        np.testing.assert_allclose(found, features[:, view], rtol=1e-4, atol=1e-3)


def test_a_transform_over_the_grid_is_taken_where_it_saves_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = {
        name: json.loads((store.path / f"manifest/teachers/{name}/calibration.json").read_text())["format"]
        for name in TEACHERS
    }
    assert formats == {"alone": 1, "packed": 1, "together": 1, "smooth": 2, "trellis": 2}, "older readers must refuse 2"
    info = json.loads(CliRunner().invoke(sak, ["info", str(store.path), "--json"], catch_exceptions=False).stdout)
    assert info["teachers"]["smooth"]["grid_transforms"] == {"level_3": "dct", "level_4": "dct"}
    assert info["teachers"]["packed"]["grid_transforms"] == {"level_0": "none"}
    monkeypatch.setattr("cache.codecs.klt._LEAST_SAVING", 1)
    without = Store.create(tmp_path, toy.toy_spec(num_samples=SAMPLES, rows_per_shard=16))
    toy.write_source(without, VIEWS)
    write(without, "smooth", TEACHERS["smooth"])
    for level in (3, 4):
        sizes = [
            sum(file.stat().st_size for file in made.path.glob(f"teachers/smooth/level_{level}/c.*"))
            for made in (store, without)
        ]
        assert sizes[0] < 0.9 * sizes[1]


def test_a_format_that_is_not_known_is_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec(num_samples=SAMPLES, rows_per_shard=16))
    toy.write_source(store, VIEWS)
    write(store, "smooth", TEACHERS["smooth"])
    file = store.path / "manifest/teachers/smooth/calibration.json"
    document = json.loads(file.read_text())
    del document["digest"]
    file.write_bytes(seal({**document, "format": 3}))
    with pytest.raises(CorruptFile, match="format 3, this version reads 1 and 2"):
        Store.open(store.path).features("smooth", 3)


def test_a_calibration_of_before_the_grid_transform_is_repaired_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a version came to other steps: what both agree on is mended, and what not is refused with what to do."""
    store = Store.create(tmp_path, toy.toy_spec(num_samples=SAMPLES, rows_per_shard=16))
    toy.write_source(store, VIEWS)
    with monkeypatch.context() as patch:
        patch.setattr("cache.codecs.klt._LEAST_SAVING", 1)
        write(store, "smooth", TEACHERS["smooth"])
    before = toy.tree(store.path)
    assert json.loads(before["manifest/teachers/smooth/calibration.json"])["format"] == 1
    folder = store.path / "teachers/smooth/calibration/level_3"
    (folder / "basis/c.0.0").unlink()
    (folder / "covariance/c.0.0").write_bytes(b"")
    write(Store.open(store.path), "smooth", TEACHERS["smooth"])
    assert toy.tree(store.path) == before
    (folder / "step/c.0").unlink()
    with pytest.raises(CalibrationDiffers, match=r"level_3/step/c\.0 differs.*version of sak"):
        write(Store.open(store.path), "smooth", TEACHERS["smooth"])


def test_equal_features_give_equal_bytes(store: Store, tmp_path: Path) -> None:
    assert toy.tree(make(tmp_path).path) == toy.tree(store.path)


def test_groups_that_cannot_be_are_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path, toy.toy_spec())
    for levels in (
        [LevelSpec(1, GRID, WIDTH, "klt", predicts_from=0)],
        [LevelSpec(0, (2, 2), WIDTH, "klt"), LevelSpec(1, GRID, WIDTH, "klt", predicts_from=0)],
    ):
        with pytest.raises(BadInput, match=r"level 1 is to be predicted from level 0"):
            TeacherWriter(store, {"name": "t"}, levels)
    with pytest.raises(BadInput, match=r"fidelity 1.5"):
        LevelSpec(0, GRID, WIDTH, "klt", fidelity=1.5)


def test_from_the_command_line(tmp_path: Path) -> None:
    common = ["cache", "--teacher", "mini-dino", "--limit", "24", "--views", "1", "--decoders", "0", "--threads", "1"]
    made_by = [*common, "--codec", "klt", "--fidelity", "0.99", "--predict-levels", "--out", str(tmp_path), "--json"]
    made = CliRunner().invoke(sak, made_by, catch_exceptions=False)
    assert made.exit_code == 0, made.output
    path = json.loads(made.stdout)["store"]
    info = json.loads(CliRunner().invoke(sak, ["info", path, "--json"], catch_exceptions=False).stdout)
    teacher = info["teachers"]["mini-dino"]
    assert teacher["provenance"]["fidelity"] == 0.99 and "numcodecs" in teacher["provenance"]["versions"]
    assert [level.get("predicts_from") for level in teacher["levels"]] == [None, 0, 1, 2]
    assert teacher["stored_fidelity"]["rows"] >= 1
    for level in teacher["levels"]:
        name = f"level_{level['level']}"
        promised, stored = teacher["fidelity"][name], teacher["stored_fidelity"]["levels"][name]
        assert min(promised["cosine"], promised["centred_cosine"]) >= 0.99
        assert stored["centred_cosine"] > 0.98 and 0 < stored["relative_mse_median"] <= stored["relative_mse_worst"]
    text = CliRunner().invoke(sak, ["info", path], catch_exceptions=False).stdout
    assert "0.99 promised" in text and "coded against level 2" in text and "stored rows" in text
    log = (Path(path) / "manifest/log.jsonl").read_bytes()
    again = CliRunner().invoke(sak, made_by, catch_exceptions=False)
    assert again.exit_code == 0 and "already cached" in again.stderr
    assert (Path(path) / "manifest/log.jsonl").read_bytes() == log, "nothing was measured anew"


def test_a_copy_of_a_level_brings_those_that_it_leans_on(store: Store, tmp_path: Path) -> None:
    command = ["copy", str(store.path), str(tmp_path), "--teacher", "together,alone", "--levels", "1", "--json"]
    done = CliRunner().invoke(sak, command, catch_exceptions=False)
    assert json.loads(done.stdout)["stores"][0]["teachers"] == {"alone": [1], "together": [0, 1]}
    assert "levels [0] of together come too: [1] are coded against them" in done.stderr
    copy = Store.open(tmp_path / store.name)
    assert verify_store(copy.place) == []
    assert [level.level for level in copy.teacher("together").levels] == [0, 1]
    for view in range(VIEWS):
        ours, theirs = (each.features("together", 1)[:, view] for each in (store, copy))
        np.testing.assert_array_equal(theirs, ours)
    alone = CliRunner().invoke(sak, [*command[:4], "alone", *command[5:]], catch_exceptions=False)
    assert "come too" not in alone.stderr
