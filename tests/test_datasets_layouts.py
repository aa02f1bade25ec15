"""NYUD-v2 and PASCAL-Context in the field's layouts: as the reference loaders read them, and rules beyond."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
from PIL import Image
from skimage.morphology import thin

from sak_core.datasets import open_dataset
from sak_core.datasets.nyud import CLASSES as NYUD_CLASSES
from sak_core.datasets.pascal_context import boundaries
from sak_core.datasets.pascal_parts import PART_CLASSES, PART_INDEX, draw_parts
from sak_core.errors import DatasetError, UnreadableSample
from sak_core.views.view import EVALUATION, STAGE2, apply_view, draw_view
from tests import layouts

FIXTURES = Path(__file__).parent / "fixtures" / "layouts"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES, tmp_path / "layouts"))


def test_every_split_and_id_is_read_as_the_reference_reads_it(capsys):
    right = layouts.main(FIXTURES)
    lines = capsys.readouterr().out.splitlines()
    assert right == 0, lines
    assert lines[-1] == "layouts: all within tolerance"
    labels = {line.split(":")[0] for line in lines[:-1]}
    assert labels == {
        *(f"nyud {what}" for what in ("image", "semseg", "depth", "normals", "edge")),
        *(f"pascal-context {what}" for what in ("image", "semseg", "human_parts", "sal", "normals", "edge")),
    }


def test_the_comparison_notices_what_differs(copy, capsys):
    path = copy / "nyud" / "segmentation" / "0003.png"
    semseg = np.array(Image.open(path))
    semseg[0, 0] = 7 if semseg[0, 0] != 7 else 8
    Image.fromarray(semseg).save(path)
    assert layouts.main(copy) == 1
    told = capsys.readouterr().out
    assert "nyud semseg" in told and "BEYOND" in told and told.endswith("NOT within tolerance\n")
    (copy / "nyud" / "gt_sets" / "val.txt").write_text("0001\n0012\n")
    (copy / "pascal-context" / "sal_distill" / "2008_000099.png").unlink()
    assert layouts.main(copy) == 1
    told = capsys.readouterr().out
    assert "ids differ: ['0012']" in told and "2008_000099.png: cannot be read: No such file" in told


def test_tasks_sizes_and_views():
    nyud = open_dataset("nyud", "train", FIXTURES / "nyud")
    assert [(t.name, t.kind, t.channels, t.weight) for t in nyud.tasks] == [
        ("semseg", "classes", 40, 1.0),
        ("depth", "depth", 1, 1.0),
        ("normals", "normals", 3, 10.0),
        ("edge", "boundary", 1, 50.0),
    ]
    assert (nyud.default_size, nyud.policy) == ((448, 576), STAGE2)
    pascal = open_dataset("pascal_context", "val", FIXTURES / "pascal-context")
    assert [(t.name, t.kind, t.channels, t.weight) for t in pascal.tasks] == [
        ("semseg", "classes", 21, 1.0),
        ("human_parts", "classes", 7, 2.0),
        ("sal", "saliency", 2, 5.0),
        ("normals", "normals", 3, 10.0),
        ("edge", "boundary", 1, 50.0),
    ]
    assert (pascal.default_size, pascal.policy) == ((512, 512), EVALUATION)
    assert len(set(NYUD_CLASSES)) == 40 and NYUD_CLASSES[19] == "floor mat"
    sample = nyud.load(0)
    view = draw_view(nyud.policy, 0, 0, 0, sample.image.shape[:2], (64, 64), sample.labels["semseg"])
    kinds = {task.name: task.kind for task in nyud.tasks}
    _, labels = apply_view(nyud.policy, view, sample.image, sample.labels, kinds, (64, 64))
    assert all(labels[t.name].dtype == t.spec.label_dtype for t in nyud.tasks)


def test_voc_goes_before_pascal_context(copy):
    root = copy / "pascal-context"
    name = "2008_000008"
    other = np.full((50, 52), 3, np.uint8)
    Image.fromarray(other).save(root / "semseg" / "pascal-context" / f"{name}.png")
    data = open_dataset("pascal_context", "train", root)
    first = data.load(0).labels["semseg"]
    assert not np.array_equal(first, other)
    (root / "semseg" / "VOC12" / f"{name}.png").unlink()
    assert np.array_equal(data.load(0).labels["semseg"], other)


def anno(tmp_path: Path, objects: list[tuple[int, list[tuple[str, np.ndarray]]]]) -> np.ndarray:
    """An annotation as MATLAB would have written it, read back."""

    parts = [
        layouts.struct({"part_name": [n for n, _ in p], "mask": [m for _, m in p]}) if p else np.zeros((0, 0))
        for _, p in objects
    ]
    kinds = [c for c, _ in objects]
    masks = [np.ones((4, 6), np.uint8) for _ in objects]
    whole = layouts.struct({"class": ["x"] * len(kinds), "class_ind": kinds, "mask": masks, "parts": parts})
    scipy.io.savemat(tmp_path / "a.mat", {"anno": layouts.struct({"imname": ["a"], "objects": [whole]})})
    return scipy.io.loadmat(tmp_path / "a.mat")["anno"]


def strip(column: int) -> np.ndarray:
    mask = np.zeros((4, 6), np.uint8)
    mask[:, column:] = 1
    return mask


def test_all_24_parts_have_their_class(tmp_path):
    table = {
        1: "head hair leye reye lear rear lebrow rebrow nose mouth",
        2: "torso neck",
        3: "luarm ruarm",
        4: "llarm rlarm lhand rhand",
        5: "luleg ruleg",
        6: "llleg rlleg lfoot rfoot",
    }
    wanted = {name: value for value, names in table.items() for name in names.split()}
    assert wanted == PART_INDEX and len(PART_INDEX) == 24 and len(PART_CLASSES) == 7
    for name, value in wanted.items():
        drawn = draw_parts(Path("a"), anno(tmp_path, [(15, [(name, strip(2))])]), (4, 6), has_person=True)
        assert (drawn == strip(2) * value).all()


def test_later_parts_and_persons_overwrite_earlier_ones(tmp_path):
    objects = [
        (15, [("head", strip(0)), ("torso", strip(1))]),
        (1, [("body", strip(0))]),  # an aeroplane's, not drawn
        (15, []),
        (15, [("lfoot", strip(3)), ("hair", strip(5))]),
    ]
    drawn = draw_parts(Path("a"), anno(tmp_path, objects), (4, 6), has_person=True)
    assert (drawn == [1, 2, 2, 6, 6, 1]).all()


def test_images_without_parts_count_for_nothing(tmp_path):
    person = anno(tmp_path, [(15, [("head", strip(0))])])
    assert (draw_parts(Path("a"), person, (4, 6), has_person=False) == 255).all()
    assert (draw_parts(Path("a"), anno(tmp_path, [(15, [])]), (4, 6), has_person=True) == 255).all()
    assert (draw_parts(Path("a"), anno(tmp_path, [(9, [])]), (4, 6), has_person=True) == 255).all()


def test_wrong_annotations_are_named(tmp_path):
    for objects, words in (([(15, [("tail", strip(0))])], "'tail'"), ([(15, [("head", np.ones((4, 5)))])], "4, 5")):
        with pytest.raises(UnreadableSample, match=words):
            draw_parts(Path("a.mat"), anno(tmp_path, objects), (4, 6), has_person=True)
    with pytest.raises(UnreadableSample, match=r"a\.mat.*laid out"):
        draw_parts(Path("a.mat"), np.zeros((1, 1)), (4, 6), has_person=True)


def test_boundaries_are_where_the_laplacian_is():
    labels = np.zeros((9, 9), np.uint16)
    labels[:, 4:] = 500
    edges = boundaries(labels)
    assert edges.dtype == np.uint8 and edges[1:].sum(axis=1).tolist() == [1] * 8  # thinned to one pixel
    # up + down + left + right − 4 · centre can vanish where labels differ: a ramp has no boundary inside
    ramp = np.tile(np.arange(9, dtype=np.uint16), (9, 1))
    assert boundaries(ramp)[:, 1:-1].sum() == 0


def test_borders_are_mirrored_without_repeating_the_outermost_pixel():
    """As OpenCV's Laplacian does it, which the published labels come from; on noise, where much cancels."""
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    for seed in range(20):
        labels = np.random.default_rng(seed).integers(0, 4, (12, 15)).astype(np.uint16)
        laplacian = scipy.ndimage.convolve(labels.astype(np.float64), kernel, mode="mirror")
        assert np.array_equal(boundaries(labels), thin(laplacian != 0))


def test_saliency_begins_above_one_half(copy):
    path = copy / "pascal-context" / "sal_distill" / "2008_000002.png"
    grey = np.zeros((43, 48), np.uint8)
    grey[:, 1], grey[:, 2], grey[:, 3] = 127, 128, 255
    Image.fromarray(grey).save(path)
    seen = open_dataset("pascal_context", "val", copy / "pascal-context").load(0).labels["sal"]
    assert seen[0, :5].tolist() == [0, 0, 1, 1, 0]


def test_what_an_editor_adds_to_lists_and_tables_changes_nothing(copy):
    for path in [*copy.rglob("*.txt"), *copy.rglob("*.json")]:
        plain = path.read_text()
        path.write_bytes(b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    assert layouts.main(copy) == 0


def test_boundaries_may_be_stored_with_one_bit_or_a_palette(copy):
    path = copy / "nyud" / "edge" / "0001.png"
    whole = Image.open(path).copy()
    data = open_dataset("nyud", "val", copy / "nyud")
    expected = data.load(0).labels["edge"]
    two = Image.fromarray(expected)
    two.putpalette([0, 0, 0, 255, 255, 255])
    for other in (whole.point(lambda v: v, "1"), two):
        other.save(path)
        assert expected.any() and (data.load(0).labels["edge"] == expected).all()


@pytest.mark.parametrize("turn", [3, 6])
def test_a_turn_in_the_images_exif_leaves_it_upon_its_labels(copy, turn):
    data = open_dataset("pascal_context", "val", copy / "pascal-context")
    path = data.files(0)["image"]
    exif = Image.Exif()
    exif[0x112] = turn
    segment, jpeg = exif.tobytes(), path.read_bytes()
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:])
    with Image.open(path) as image:
        assert image.getexif()[0x112] == turn
    assert layouts.main(copy) == 0


def test_wrong_folders_are_named(copy):
    nyud, pascal = copy / "nyud", copy / "pascal-context"
    with pytest.raises(DatasetError, match=r"gt_sets/train\.txt"):
        open_dataset("nyud", "train", pascal)
    (nyud / "gt_sets" / "train.txt").write_text("0003\n\n0003\n")
    with pytest.raises(DatasetError, match="'0003' comes twice"):
        open_dataset("nyud", "train", nyud)
    (nyud / "gt_sets" / "train.txt").write_text("\n")
    with pytest.raises(DatasetError, match="lists no ids"):
        open_dataset("nyud", "train", nyud)
    (pascal / "json" / "nyu_classes.json").write_text("{")
    with pytest.raises(DatasetError, match=r"nyu_classes\.json"):
        open_dataset("pascal_context", "train", pascal)


def test_wrong_files_are_named(copy):
    nyud, pascal = copy / "nyud", copy / "pascal-context"
    data = open_dataset("nyud", "val", nyud)

    def refused(words: str, dataset=data) -> None:
        with pytest.raises(UnreadableSample, match=words):
            dataset.load(0)

    depth = np.load(nyud / "depth" / "0001.npy")
    np.save(nyud / "depth" / "0001.npy", depth[:-1])
    refused(r"depth/0001\.npy.*'depth' has shape \(38, 52\).*39x52")
    np.save(nyud / "depth" / "0001.npy", np.array([{}]), allow_pickle=True)
    refused(r"depth/0001\.npy: is no readable array")
    np.save(nyud / "depth" / "0001.npy", depth[..., None].astype(np.float64))
    assert data.load(0).labels["depth"].dtype == np.float32
    Image.fromarray(np.full((39, 52, 3), [255, 0, 0], np.uint8)).save(nyud / "edge" / "0001.png")
    refused(r"edge/0001\.png: is coloured")
    Image.fromarray(np.eye(39, 52, dtype=np.uint8)).save(nyud / "edge" / "0001.png")
    refused(r"edge/0001\.png: holds at most 1: 0 and 255 are expected")
    (nyud / "segmentation" / "0001.png").unlink()
    refused(r"segmentation/0001\.png: cannot be read: No such file")

    data = open_dataset("pascal_context", "val", pascal)
    name = data.ids[0]
    parts = pascal / "ImageSets" / "Parts" / "val.txt"
    known = json.loads(parts.read_text())
    parts.write_text(json.dumps({k: v for k, v in known.items() if k != name}))
    refused(f"no entry for '{name}'", open_dataset("pascal_context", "val", pascal))
    (pascal / "pascal-context" / "trainval" / f"{name}.mat").write_bytes(b"no matlab")
    refused(rf"{name}\.mat: is no readable MATLAB file", data)


def test_a_samples_fingerprint_covers_its_labels(copy):
    before = open_dataset("nyud", "val", copy / "nyud").fingerprints[0]
    assert before == sum(p.stat().st_size for p in (copy / "nyud").rglob("0001.*"))
    with (copy / "nyud" / "depth" / "0001.npy").open("ab") as stream:
        stream.write(b"x")
    assert open_dataset("nyud", "val", copy / "nyud").fingerprints[0] == before + 1
