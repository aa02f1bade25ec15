"""Rooms: scenes are a pure function of their number, their labels are exact, their splits apart."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sak_core.datasets import open_dataset
from sak_core.interfaces.dataset import Dataset, check_labels
from sak_core.miniature.rooms import (
    BACKGROUND,
    CLASSES,
    COLORS,
    PART_CLASS,
    PARTS,
    PLACES,
    RENDERER_VERSION,
    Rooms,
    Scene,
    render_scene,
)
from sak_core.miniature.rooms import scene as renderer
from sak_core.miniature.rooms.dataset import SPLITS
from sak_core.miniature.rooms.draws import Draws
from sak_core.miniature.rooms.geometry import Camera, cast, tabulate
from sak_core.miniature.rooms.labels import boundary
from sak_core.miniature.rooms.layout import draw_room
from sak_core.miniature.rooms.materials import Material
from sak_core.miniature.rooms.salience import LEAST_RATIO, scores
from sak_core.miniature.rooms.solids import BOX, ELLIPSOID, FACES, FRUSTUM, Solid, Thing

ROOT = Path(__file__).parents[1]
FIXTURE = Path(__file__).parent / "fixtures" / "rooms_scenes.npz"
MAPS = ("image", "semseg", "parts", "saliency", "depth", "normals", "boundary", "instances", "facets")
NUMBERS = tuple(range(12))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(3, number) for number in NUMBERS]


def digest(scene: Scene) -> str:
    """Of every byte and every word of a scene."""
    parts = [getattr(scene, name).tobytes() for name in MAPS]
    return hashlib.sha256(b"".join(parts) + repr((scene.objects, scene.attributes)).encode()).hexdigest()


def test_bytes_do_not_depend_on_order_process_or_global_state(scenes: list[Scene]) -> None:
    program = (
        "import numpy as np; np.random.seed(5)\n"
        "from tests.test_rooms import NUMBERS, digest, render_scene\n"
        "print(*[digest(render_scene(3, n)) for n in reversed(NUMBERS)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [digest(scene) for scene in reversed(scenes)]


def test_other_numbers_and_seeds_are_other_scenes(scenes: list[Scene]) -> None:
    digests = {digest(scene) for scene in [*scenes, render_scene(4, 0)]}
    assert len(digests) == len(scenes) + 1


def test_pixels_change_only_with_the_version() -> None:
    """A change of the picture makes caches and teachers stale: it needs a new version (and fixture)."""
    kept = np.load(FIXTURE)
    for position, number in enumerate((0, 100_007)):
        scene = render_scene(0, number)
        off = np.abs(scene.image.astype(int) - kept["image"][position])
        assert off.mean() < 0.2, f"the picture changed: raise RENDERER_VERSION (now {RENDERER_VERSION})"
        assert (scene.parts != kept["parts"][position]).mean() < 0.002
        assert (scene.saliency != kept["saliency"][position]).mean() < 0.002
        assert np.median(np.abs(scene.depth - kept["depth"][position])) < 0.005


def test_shipped_teachers_were_trained_on_this_renderer() -> None:
    cards = sorted((ROOT / "sak_core" / "miniature" / "weights").glob("mini-*.json"))
    assert cards
    for card in cards:
        version = json.loads(card.read_text())["scenes"]["renderer_version"]
        assert version == RENDERER_VERSION, f"{card.name} was trained on renderer {version}"


def test_labels_have_their_dtypes_shapes_and_ranges(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
        assert scene.normals.shape == (96, 96, 3)
        for name in MAPS[1:]:
            array = getattr(scene, name)
            assert array.shape[:2] == (96, 96) and array.flags["C_CONTIGUOUS"]
        assert scene.semseg.max() < len(CLASSES) and scene.parts.max() < len(PARTS)
        assert scene.facets.dtype == np.uint16 and scene.instances.dtype == np.uint8
        assert set(np.unique(scene.saliency)) == {0, 1} and set(np.unique(scene.boundary)) == {0, 1}
        assert scene.depth.dtype == np.float32 and scene.depth.min() > 0.5 and scene.depth.max() < 12
        assert scene.normals.dtype == np.float32
        assert np.allclose(np.linalg.norm(scene.normals, axis=2), 1, atol=1e-5)


def test_each_part_belongs_to_one_class(scenes: list[Scene]) -> None:
    assert len(PART_CLASS) == len(PARTS) and set(PART_CLASS) == set(range(len(CLASSES)))
    assert all(part.split()[0] == CLASSES[owner] for part, owner in zip(PARTS, PART_CLASS, strict=True))
    for scene in scenes:
        assert (np.array(PART_CLASS)[scene.parts] == scene.semseg).all()


def test_facets_lie_in_one_part_and_instances_in_one_class(scenes: list[Scene]) -> None:
    for scene in scenes:
        for facet in np.unique(scene.facets):
            where = scene.facets == facet
            assert len(np.unique(scene.parts[where])) == 1 and len(np.unique(scene.instances[where])) == 1
        for instance in np.unique(scene.instances):
            names = {CLASSES[label] for label in np.unique(scene.semseg[scene.instances == instance])}
            assert names <= {"wall", "floor", "ceiling"} if instance == 0 else len(names) == 1


def test_objects_describe_what_is_seen(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert [o.instance for o in scene.objects] == sorted(set(np.unique(scene.instances)) - {0})
        for item in scene.objects:
            mask = scene.instances == item.instance
            y, x = np.nonzero(mask)
            assert item.box == (y.min(), x.min(), y.max() + 1, x.max() + 1)
            assert (scene.semseg[mask] == CLASSES.index(item.name)).all()
            assert item.color in COLORS and item.place in PLACES
            assert item.salience == 0 or item.name not in BACKGROUND
            third = ("left", "middle", "right")[int((item.box[1] + item.box[3]) / 2 * 3 / 96)]
            assert item.place.endswith(third)


def test_one_thing_is_clearly_the_most_salient(scenes: list[Scene]) -> None:
    for scene in scenes:
        best, second = sorted((o.salience for o in scene.objects), reverse=True)[:2]
        assert best >= LEAST_RATIO * second
        assert (scene.saliency == (scene.instances == scene.salient.instance)).all()
        assert scene.salient.name not in BACKGROUND


def test_salience_is_contrast_times_area_times_centrality() -> None:
    """Grey on black, so that contrast is the difference in lightness alone."""
    picture = np.zeros((3, 40, 40), np.float32)
    instances = np.zeros((40, 40), np.int64)
    picture[:, 16:24, 16:24], instances[16:24, 16:24] = 0.5, 1
    picture[:, 0:4, 0:4], instances[0:4, 0:4] = 0.5, 2
    found = scores(picture, instances, [1, 2, 3])
    assert found[1] == pytest.approx(0.5 * (64 / 1600) ** 0.3, rel=1e-5)
    assert found[2] == pytest.approx(0.5 * (16 / 1600) ** 0.3 * np.exp(-0.6 * 2 * 0.9**2), rel=1e-5)
    assert found[3] == 0


def test_boundary_marks_changes_of_class_or_instance(scenes: list[Scene]) -> None:
    for scene in scenes[:3]:
        for y in range(96):
            for x in range(96):
                here = (scene.semseg[y, x], scene.instances[y, x])
                right = x < 95 and here != (scene.semseg[y, x + 1], scene.instances[y, x + 1])
                below = y < 95 and here != (scene.semseg[y + 1, x], scene.instances[y + 1, x])
                assert scene.boundary[y, x] == (right or below)


def test_boundary_between_equal_classes_of_two_instances() -> None:
    semseg = np.full((2, 4), 6, np.uint8)
    instances = np.array([[1, 1, 2, 2]] * 2, np.uint8)
    assert boundary(semseg, instances).tolist() == [[0, 1, 0, 0]] * 2
    assert not boundary(semseg, np.ones((2, 4), np.uint8)).any()


@pytest.mark.parametrize("number", NUMBERS[:6])
def test_normals_are_those_of_the_depth_map(number: int) -> None:
    """Cross products of neighbouring points in one facet: exact on flat ones, close on curved ones."""
    size = (192, 192)
    scene = render_scene(3, number, size)
    camera = renderer._settle(3, number).room.camera
    u, w = camera.rays(size)
    depth = scene.depth.astype(np.float64)
    points = np.stack([depth * u[None, :], depth * w[:, None], -depth], axis=2)
    across, upwards = points[1:-1, 2:] - points[1:-1, :-2], points[:-2, 1:-1] - points[2:, 1:-1]
    measured = np.cross(across, upwards)
    measured /= np.linalg.norm(measured, axis=2, keepdims=True)
    middle = scene.facets[1:-1, 1:-1]
    same = np.ones(middle.shape, bool)
    for other in (
        scene.facets[1:-1, 2:],
        scene.facets[1:-1, :-2],
        scene.facets[2:, 1:-1],
        scene.facets[:-2, 1:-1],
    ):
        same &= middle == other
    cosine = (measured * scene.normals[1:-1, 1:-1]).sum(axis=2)[same]
    assert same.mean() > 0.5
    assert np.mean(cosine > 0.9999) > 0.9
    assert cosine.min() > 0.5
    facing = -(points * scene.normals).sum(axis=2)
    assert facing.min() > -1e-4, "a visible surface faces away from the camera"


@pytest.mark.parametrize("number", NUMBERS[:6])
def test_inverse_depth_is_affine_on_planes(number: int) -> None:
    """On the floor and on each wall 1 / depth is a plane in pixel coordinates, whatever stands in front."""
    scene = render_scene(3, number)
    y, x = np.mgrid[:96, :96]
    for face in range(FACES):
        where = scene.facets == face
        if where.sum() < 50:
            continue
        design = np.stack([x[where], y[where], np.ones(where.sum())], axis=1)
        inverse = 1 / scene.depth[where].astype(np.float64)
        solution = np.linalg.lstsq(design, inverse, rcond=None)[0]
        assert np.abs(design @ solution - inverse).max() < 1e-6


def test_other_sizes_show_the_same_scene(scenes: list[Scene]) -> None:
    """The middle pixel of each 3x3 block of a picture three times as large looks along the same ray."""
    for number in NUMBERS[:3]:
        large, small = render_scene(3, number, (288, 288)), scenes[number]
        for name in ("semseg", "parts", "instances", "facets", "saliency"):
            assert (getattr(large, name)[1::3, 1::3] != getattr(small, name)).mean() < 0.001
        assert np.median(np.abs(large.depth[1::3, 1::3] - small.depth)) < 1e-6
        # blur and noise are counted in pixels, so pictures agree only roughly
        rough = np.abs(large.image[1::3, 1::3].astype(int) - small.image)
        assert rough.mean() < 12
        shared = {o.instance: o for o in large.objects}
        for item in small.objects:
            other = shared[item.instance]
            assert (other.name, other.color, other.place) == (item.name, item.color, item.place)
            assert other.salience == item.salience


@pytest.mark.parametrize("size", [(96, 160), (160, 96)])
def test_longer_sides_show_more_of_the_same_scene(size: tuple[int, int], scenes: list[Scene]) -> None:
    long = render_scene(3, 0, size)
    assert long.image.shape == (*size, 3)
    middle = long.semseg[:, 32:128] if size[1] == 160 else long.semseg[32:128]
    assert (middle != scenes[0].semseg).mean() < 0.001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1, 0), "seed -1"), ((0, -2), "index -2"), ((0, 0, (4, 96)), "4x96")],
)
def test_impossible_scenes_are_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_scene(*arguments)  # type: ignore[arg-type]


def test_redrawing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = renderer._settle(3, 0)
    calls: list[int] = []

    def never_clear(seed: int, index: int, number: int) -> renderer._Attempt:
        calls.append(number)
        ratio = 1.1 if number == 5 else 1.0
        return renderer._Attempt(**{**whole.__dict__, "number": number, "ratio": ratio})

    monkeypatch.setattr(renderer, "_attempt", never_clear)
    assert renderer._settle(3, 0).number == 5
    assert calls == list(range(renderer.MOST_ATTEMPTS))
    monkeypatch.setattr(renderer, "_attempt", lambda *_: None)
    with pytest.raises(RuntimeError, match="seed 3, index 0"):
        renderer._settle(3, 0)


def test_colours_say_nothing_of_classes() -> None:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(2500):
        for thing in draw_room(Draws(9, number)).things:
            seen[thing.name][thing.color] += 1
    assert set(seen) | {"wall", "floor", "ceiling"} == set(CLASSES)
    for name in set(seen) - {"window"}:
        total = seen[name].total()
        assert total > 200, name
        for color in COLORS:
            expected = total / len(COLORS)
            assert abs(seen[name][color] - expected) < 5 * np.sqrt(expected), (name, color)


def _oracle(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Whether world points (n, 3) are inside a solid, straight from its description."""
    local = points - np.array(solid.centre)
    cos, sin = np.cos(-solid.turn), np.sin(-solid.turn)
    local = local @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]).T
    cos, sin = np.cos(-solid.tilt), np.sin(-solid.tilt)
    local = local @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]).T
    x, y, z = (local / np.array(solid.half)).T
    if solid.kind == BOX:
        return (np.abs(x) <= 1) & (np.abs(y) <= 1) & (np.abs(z) <= 1)
    if solid.kind == ELLIPSOID:
        return x * x + y * y + z * z <= 1
    share = (1 + z) / 2 if solid.taper > 0 else (1 - z) / 2
    width = 1 + (abs(solid.taper) - 1) * share
    return (np.abs(z) <= 1) & (x * x + y * y <= width * width)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([BOX, FRUSTUM, ELLIPSOID]),
    half=st.tuples(*[st.floats(0.1, 0.8)] * 3),
    taper=st.sampled_from([1.0, 0.3, -0.3, 0.75, -0.75]),
    tilt=st.floats(-1.5, 1.5),
    turn=st.floats(-3.1, 3.1),
    x=st.floats(-0.5, 0.5),
    z=st.floats(0.2, 2.2),
    pitch=st.floats(-0.3, 0.5),
)
def test_rays_meet_solids_where_marching_meets_them(
    kind: int,
    half: tuple[float, float, float],
    taper: float,
    tilt: float,
    turn: float,
    x: float,
    z: float,
    pitch: float,
) -> None:
    """Nothing of the solid lies before the hit, and something just behind it."""
    grey = Material((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    solid = Solid(kind, "ball", grey, (x, 3.0, z), half, taper, tilt, turn)
    thing = Thing("ball", "grey", [solid], 1, 1, 1)
    table = tabulate(np.array([0.0, 3.0, 1.0]), np.array([6.0, 6.0, 6.0]), [thing])
    camera = Camera.looking((0.0, 0.0, 1.3), 0.1, pitch, 0.8)
    depth, facet = cast(table, camera, (12, 12))
    u, w = camera.rays((12, 12))
    hit = facet >= FACES
    steps = np.linspace(0.05, 6.0, 1500)
    for row in range(12):
        for column in range(12):
            direction = u[column] * camera.axes[0] + w[row] * camera.axes[1] + camera.axes[2]
            inside = _oracle(solid, camera.eye + steps[:, None] * direction)
            end = depth[row, column]
            assert not inside[steps < end - 1e-6].any() if hit[row, column] else not inside.any()
            if hit[row, column]:
                grown = solid._replace(half=tuple(1.001 * side for side in half))
                assert _oracle(grown, (camera.eye + end * direction)[None])[0], "a hit off the solid"
            if hit[row, column] and inside.any():
                assert abs(steps[inside][0] - end) < 0.004 + 1e-6


def test_splits_do_not_overlap() -> None:
    numbers = [number for split in SPLITS.values() for number in split]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("split", list(SPLITS))
def test_dataset_gives_labels_but_in_the_unlabelled_split(split: str) -> None:
    data = open_dataset("rooms", split, size=(64, 48), limit=3)
    assert isinstance(data, Dataset) and len(data.ids) == 3 == len(set(data.ids))
    sample = check_labels(data.load(1), data.tasks, "here")
    assert sample.image.shape == (64, 48, 3)
    names = ["semseg", "parts", "saliency", "depth", "normals", "boundary"]
    assert list(sample.labels) == ([] if split == "unlabelled" else names)
    assert (sample.image == render_scene(0, SPLITS[split][1], (64, 48)).image).all()


def test_another_renderer_is_another_store(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Rooms("val").fingerprints
    monkeypatch.setattr("sak_core.miniature.rooms.dataset.RENDERER_VERSION", RENDERER_VERSION + 1)
    assert Rooms("val").fingerprints[0] != before[0]
