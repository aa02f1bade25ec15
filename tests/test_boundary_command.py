"""`sak boundary` as a person runs it: against the benchmark's counts, in every layout, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from pipeline.boundary_scores import BoundaryRequest, score_folders
from sak_core.boundary import boundary_counts, f_measure, nms
from sak_core.datasets.boundary_files import pair_files, read_annotations, read_strengths
from sak_core.errors import DatasetError, UnreadableSample
from tests.conftest import refusal, sak

FIXTURES = Path(__file__).parent / "fixtures"
ONE = json.loads((FIXTURES / "odsf" / "expected.json").read_text())
SEVERAL = json.loads((FIXTURES / "bsds" / "expected.json").read_text())
NAMES = ("astronaut", "coins", "rocket")


@pytest.fixture
def single(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of equally named PNGs."""
    for name in ("camera", "chelsea", "coffee"):
        for what in ("prediction", "boundary"):
            (tmp_path / what).mkdir(exist_ok=True)
            shutil.copy(FIXTURES / "odsf" / f"{name}-{what}.png", tmp_path / what / f"{name}.png")
    return tmp_path / "prediction", tmp_path / "boundary"


@pytest.fixture
def several(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions, and three numbered annotations each."""
    predictions, truths = tmp_path / "p", tmp_path / "t"
    predictions.mkdir()
    truths.mkdir()
    for name in NAMES:
        shutil.copy(FIXTURES / "bsds" / f"{name}.png", predictions)
        for number in (1, 2, 3):
            shutil.copy(FIXTURES / "bsds" / f"{name}-{number}.png", truths)
    return predictions, truths


@pytest.mark.parametrize("max_dist", ONE["sets"])
@pytest.mark.parametrize("suppress", [False, True])
def test_scores_of_two_folders_are_the_benchmarks(single, max_dist, suppress):
    expected = ONE["nms_sets" if suppress else "sets"][max_dist]
    scores = score_folders(*single, BoundaryRequest(float(max_dist), 24, suppress, workers=0))
    assert list(scores) == ["odsF", "threshold", "oisF", "AP"]
    assert scores["odsF"] == pytest.approx(expected["odsF"], abs=0.003)
    assert scores["threshold"] == pytest.approx(expected["threshold"], abs=0.0401)
    assert scores["odsF"] <= scores["oisF"] < 1 and 0 < scores["AP"] < 1


def test_the_command_prints_the_scores_of_its_workers(single):
    done = sak("boundary", *single, "--max-dist", "0.02", "--thresholds", "24", "--json", "--workers", "2", "--nms")
    assert json.loads(done.stdout) == score_folders(*single, BoundaryRequest(0.02, 24, suppress=True, workers=0))
    assert "3/3 images" in done.stderr


def as_mat(predictions: Path, truths: Path) -> Path:
    """The annotations as BSDS keeps them: groundTruth, a 1×N cell of structs."""
    folder = truths.parent / "mat"
    folder.mkdir()
    for name in NAMES:
        annotators = np.empty((1, 3), dtype=object)
        for i in range(3):
            boundary = np.array(Image.open(truths / f"{name}-{i + 1}.png")).astype(np.uint8)
            annotators[0, i] = {"Segmentation": boundary.astype(np.uint16) + 1, "Boundaries": boundary}
        scipy.io.savemat(folder / f"{name}.mat", {"groundTruth": annotators})
    return folder


def in_folders(predictions: Path, truths: Path) -> Path:
    """NAME/1.png and so on."""
    folder = truths.parent / "folders"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        for number in (1, 2, 3):
            shutil.copy(truths / f"{name}-{number}.png", folder / name / f"{number}.png")
    return folder


def numbered(predictions: Path, truths: Path) -> Path:
    return truths


@pytest.mark.parametrize("layout", [numbered, as_mat, in_folders])
def test_several_annotations_score_as_the_benchmark_scores_them(several, layout):
    truths = layout(*several)
    for case in SEVERAL["sets"].values():
        request = BoundaryRequest(case["max_dist"], 19, suppress=case["nms"], workers=0)
        assert score_folders(several[0], truths, request)["odsF"] == pytest.approx(case["odsF"], abs=0.002)


@pytest.mark.parametrize("case", SEVERAL["sets"])
@pytest.mark.parametrize("name", NAMES)
def test_counts_with_several_annotations_are_the_benchmarks(several, name, case):
    """Also which predicted pixels are matched, whose union over annotators counts: near ones first."""
    expected = SEVERAL["sets"][case]
    strength = read_strengths(several[0] / f"{name}.png")
    truths = [truth for n in (1, 2, 3) for truth in read_annotations(several[1] / f"{name}-{n}.png")]
    ours = boundary_counts(
        nms(strength) if expected["nms"] else strength, truths, SEVERAL["thresholds"], expected["max_dist"]
    )
    theirs = np.array(expected["counts"][name])
    assert np.array_equal(ours[1], theirs[1])
    assert np.all(np.abs(ours - theirs) <= np.maximum(0.02 * theirs, 2))
    assert np.abs(f_measure(ours) - f_measure(theirs)).max() < 0.004


def test_a_number_may_be_a_part_of_the_name(several):
    """Where predictions are numbered too, equal names go before numbers."""
    predictions, truths = several
    for name in NAMES:
        (predictions / f"{name}.png").rename(predictions / f"{name}-1.png")
        for number in (2, 3):
            (truths / f"{name}-{number}.png").unlink()
    pairs = pair_files(predictions, truths)
    assert {name: [t.name for t in truths] for name, (_, truths) in pairs.items()} == {
        f"{name}-1": [f"{name}-1.png"] for name in NAMES
    }


def test_annotations_come_in_the_order_of_their_numbers(tmp_path):
    for folder, names in (("p", ["a.png"]), ("t", ["a-10.png", "a-2.png", "a_1.png"])):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("L", (4, 4)).save(tmp_path / folder / name)
    ((_, paths),) = pair_files(tmp_path / "p", tmp_path / "t").values()
    assert [path.name for path in paths] == ["a_1.png", "a-2.png", "a-10.png"]


def test_names_that_do_not_match_are_refused(single):
    predictions, truths = single
    refused = [
        (lambda: (truths / "coffee.png").unlink(), r"coffee\.png of .*prediction has no annotation in .*boundary"),
        (lambda: (predictions / "coffee.png").unlink(), None),
        (lambda: shutil.copy(truths / "camera.png", truths / "dog.png"), r"dog\.png of .* has no prediction"),
        (lambda: (truths / "dog.png").rename(truths / "camera-2.png"), r"camera\.png, camera-2\.png for camera"),
        (lambda: [path.unlink() for path in predictions.iterdir()], "holds no PNGs"),
        (lambda: predictions.rmdir(), "no folder"),
    ]
    for change, words in refused:
        change()
        if words is None:
            assert set(pair_files(predictions, truths)) == {"camera", "chelsea"}
            continue
        with pytest.raises(DatasetError, match=words):
            pair_files(predictions, truths)


def test_sizes_that_differ_are_named_by_the_command(single):
    predictions, truths = single
    Image.open(truths / "camera.png").crop((0, 0, 50, 40)).save(truths / "camera.png")
    said = refusal("boundary", predictions, truths)
    assert "boundary/camera.png is 40x50 px, its prediction" in said and "200x200" in said


def test_pictures_that_are_no_strengths_are_refused(tmp_path):
    path = tmp_path / "a.png"
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(path)
    assert np.array_equal(read_strengths(path), grey)  # grey in three channels
    Image.fromarray(grey).convert("P").save(path)
    assert np.array_equal(read_strengths(path), grey)
    Image.fromarray(grey > 100).save(path)
    assert np.array_equal(read_strengths(path), (grey > 100) * 255)
    for image, words in (
        (Image.fromarray(np.stack([grey, grey, 255 - grey], axis=-1)), "is coloured: grey levels"),
        (Image.fromarray(np.stack([grey] * 4, axis=-1)), "is transparent"),
        (Image.fromarray(grey.astype(np.uint16) * 257), "has 16 bits"),
    ):
        image.save(path)
        with pytest.raises(UnreadableSample, match=words):
            read_strengths(path)


def test_a_mat_file_that_is_not_bsds_is_refused(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"other": 1})
    with pytest.raises(UnreadableSample, match=r"a\.mat: has no variable 'groundTruth'"):
        read_annotations(tmp_path / "a.mat")
    scipy.io.savemat(tmp_path / "a.mat", {"groundTruth": np.ones((2, 2))})
    with pytest.raises(UnreadableSample, match="not laid out as BSDS's"):
        read_annotations(tmp_path / "a.mat")


def test_the_commands_options_are_checked(single):
    for options in (["--max-dist", "0"], ["--thresholds", "0"]):
        assert options[0] in refusal("boundary", *single, *options)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2)])
def test_pictures_of_a_few_pixels_are_scored(shape, tmp_path):
    Image.fromarray(np.full(shape, 255, np.uint8)).save(tmp_path / "a.png")
    done = sak("boundary", tmp_path, tmp_path, "--nms", "--thresholds", "3", "--json")
    assert 0 <= json.loads(done.stdout)["odsF"] <= 1
