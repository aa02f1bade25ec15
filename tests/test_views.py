"""Views: pure functions of their key, exact on labels, as published."""

from __future__ import annotations

import colorsys
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from sak_common.names import UnknownName
from sak_core.views.colour import ColourChange, change_colour
from sak_core.views.view import (
    EVALUATION,
    NYUD_SIZE,
    PASCAL_SIZE,
    ROOMS_TRAIN,
    ROOMS_UNLABELLED,
    STAGE1,
    STAGE2,
    View,
    ViewPolicy,
    apply_view,
    draw_view,
    largest_share,
    sources,
    view_scale,
    view_scales,
)

POLICIES = {
    "evaluation": EVALUATION,
    "stage1": STAGE1,
    "stage2": STAGE2,
    "rooms": ROOMS_TRAIN,
    "rooms unlabelled": ROOMS_UNLABELLED,
}
sizes = st.tuples(st.integers(5, 70), st.integers(5, 70))
keys = st.tuples(st.integers(0, 2**63), st.integers(0, 2**40), st.integers(0, 500))
policies = st.sampled_from(list(POLICIES.values()))


def checker(size: tuple[int, int]) -> np.ndarray:
    """An image whose pixels are all different in (red, green): row and column."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 0] = np.arange(size[0])[:, None]
    image[..., 1] = np.arange(size[1])[None]
    return image


def plain(policy: ViewPolicy) -> ViewPolicy:
    """The policy without colour changes."""
    return ViewPolicy.from_dict({**policy.to_dict(), "colour": 0.0})


@given(policy=policies, key=keys, image_size=sizes, size=sizes)
def test_parameters_replay_the_view(policy, key, image_size, size):
    image = np.random.default_rng(0).integers(0, 256, (*image_size, 3), dtype=np.uint8)
    semseg = (image[..., 0] > 100).astype(np.uint8)
    view = draw_view(policy, *key, image_size, size, semseg)
    assert draw_view(policy, *key, image_size, size, semseg) == view
    stored = {name: array.copy() for name, array in view.to_arrays().items()}
    assert {name: (a.dtype, a.shape) for name, a in stored.items()} == {
        "box": (np.float32, (4,)),
        "flip": (np.uint8, ()),
        "colour": (np.float32, (5,)),
    }
    change = ColourChange(*map(float, stored["colour"]))
    again = View(tuple(map(float, stored["box"])), bool(stored["flip"]), change)
    assert again == view
    kinds = {"semseg": "classes"}
    pixels, labels = apply_view(policy, view, image, {"semseg": semseg}, kinds, size)
    replayed = apply_view(policy, again, image, {"semseg": semseg}, kinds, size)
    assert np.array_equal(pixels, replayed[0]) and np.array_equal(labels["semseg"], replayed[1]["semseg"])
    assert pixels.shape == (*size, 3) and pixels.dtype == np.uint8
    assert labels["semseg"].shape == size and labels["semseg"].dtype == np.uint8


@given(key=keys, other=keys)
def test_views_differ_with_their_key(key, other):
    draws = [draw_view(STAGE2, *k, (425, 560), NYUD_SIZE) for k in (key, other)]
    assert (draws[0] == draws[1]) == (key == other)


@given(policy=policies, key=keys, image_size=sizes, size=sizes)
def test_drawn_numbers_keep_to_their_ranges(policy, key, image_size, size):
    view = draw_view(policy, *key, image_size, size)
    change = view.colour
    assert abs(change.brightness) <= policy.brightness and abs(change.hue) <= policy.hue
    assert policy.contrast[0] <= change.contrast <= policy.contrast[1] or change.contrast == 1
    assert policy.saturation[0] <= change.saturation <= policy.saturation[1] or change.saturation == 1
    top, left, height, width = view.box
    if policy.kind == "random-resized-crop":
        assert min(top, left) >= 0 and top + height <= image_size[0] and left + width <= image_size[1]
    rows, columns = sources(view, image_size, size)
    outside = (rows < 0).sum(), (columns < 0).sum()
    if policy.kind == "random-resized-crop":
        assert outside == (0, 0)  # nothing padded
    if policy.kind == "pad":
        # the whole image, centred
        shown = set(rows[rows >= 0]), set(columns[columns >= 0])
        if image_size[0] <= size[0] and image_size[1] <= size[1]:
            assert shown == (set(range(image_size[0])), set(range(image_size[1])))
        before, after = (rows >= 0).argmax(), (rows[::-1] >= 0).argmax()
        assert 0 <= after - before <= 1


def test_rooms_are_trained_at_the_scale_they_are_scored_at():
    views = [draw_view(ROOMS_TRAIN, 0, i, 0, (96, 96), (96, 96)) for i in range(1000)]
    scales = np.array([np.sqrt(np.prod(view_scales(np.array([v.box]), (96, 96)))) for v in views])
    assert abs(np.log(scales).mean()) < 0.02
    assert scales.min() < 0.83 and scales.max() > 1.2


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_ranges_are_used_to_their_ends(policy):
    views = [draw_view(policy, 3, i, 0, (425, 560), NYUD_SIZE) for i in range(400)]
    assert abs(np.mean([v.flip for v in views]) - policy.flip) < 0.08
    changed = np.array([v.colour != v.colour._replace(brightness=0.0) for v in views])
    assert abs(changed.mean() - policy.colour) < 0.08
    if policy.colour:
        assert max(v.colour.brightness for v in views) > 0.95 * policy.brightness
        assert min(v.colour.hue for v in views) < -0.95 * policy.hue
        assert 0.4 < np.mean([v.colour.contrast_first for v in views]) < 0.6
    if policy is STAGE2:
        scales = np.array([view_scale(v, NYUD_SIZE) for v in views])
        assert 0.499 < scales.min() < 0.52 and 1.97 < scales.max() < 2.001
        assert abs(scales.mean() - 1.25) < 0.07  # uniform, not log-uniform
    if policy.kind == "random-resized-crop":
        areas = np.array([v.box[2] * v.box[3] for v in views]) / (425 * 560)
        assert areas.min() < policy.scale[0] + 0.05 and areas.max() > 0.93


# Synthetic geometry: every source pixel says which one it is, so a view's labels must name exactly the pixels
# the geometry names.


@given(policy=policies, key=keys, image_size=sizes, size=sizes)
def test_a_view_of_a_label_is_the_label_of_the_view(policy, key, image_size, size):
    image = checker(image_size)
    view = draw_view(policy, *key, image_size, size)
    y, x = np.mgrid[: image_size[0], : image_size[1]].astype(np.float32)
    regions = ((2 * y + x > image_size[0]) + 2 * (x > image_size[1] / 2)).astype(np.uint8)
    plane = 2 + 0.05 * y + 0.03 * x
    nx = np.sin(x / image_size[1] - 0.5)
    normals = np.stack([nx, 0 * nx, -np.sqrt(1 - nx**2)], axis=-1).astype(np.float32)
    labels = {"r": regions, "d": plane, "n": normals}
    kinds = {"r": "classes", "d": "depth", "n": "normals"}
    _, seen = apply_view(policy, view, image, labels, kinds, size)

    # where the canvas looks, from the box alone
    top, left, height, width = view.box
    ys = top + (np.arange(size[0]) + 0.5) * height / size[0]
    xs = left + (np.arange(size[1]) + 0.5) * width / size[1]
    xs = xs[::-1] if view.flip else xs
    inside = ((ys >= 0) & (ys < image_size[0]))[:, None] & ((xs >= 0) & (xs < image_size[1]))[None]
    # between two source pixels either is right, as rounding falls
    decided = (np.abs(ys - np.rint(ys)) > 1e-5)[:, None] & (np.abs(xs - np.rint(xs)) > 1e-5)[None]
    outside, inside = ~inside & decided, inside & decided
    yi, xi = np.floor(ys)[:, None] + 0 * xs, np.floor(xs)[None] + 0 * ys[:, None]
    expected = ((2 * yi + xi > image_size[0]) + 2 * (xi > image_size[1] / 2)).astype(np.uint8)
    assert np.array_equal(seen["r"][inside], expected[inside])
    scale = np.sqrt(size[0] / height * size[1] / width)
    assert np.allclose(seen["d"][inside], ((2 + 0.05 * yi + 0.03 * xi) / scale)[inside], rtol=1e-5)
    sign = -1 if view.flip else 1
    assert np.allclose(seen["n"][..., 0][inside], (sign * np.sin(xi / image_size[1] - 0.5))[inside], atol=1e-6)
    assert np.allclose(np.linalg.norm(seen["n"][inside], axis=-1), 1, atol=1e-6)
    for name in kinds:
        assert (seen[name][outside] == 255).all()
        assert seen[name].dtype == labels[name].dtype


@given(key=keys, size=sizes)
def test_pixels_show_what_labels_show(key, size):
    """Where pixels are a smooth ramp, the pixel and the label of a canvas cell agree on the source position."""
    image_size = (60, 80)
    ramp = np.zeros((*image_size, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(60)[:, None] * 4, np.arange(80)[None] * 3
    label = ramp.astype(np.float32)
    for policy in (plain(STAGE2), plain(ROOMS_UNLABELLED), EVALUATION):
        view = draw_view(policy, *key, image_size, size)
        pixels, seen = apply_view(policy, view, ramp, {"position": label}, {"position": "ramp"}, size)
        inside = seen["position"][..., 0] != 255
        steps = view.box[2] / size[0], view.box[3] / size[1]
        for channel, slope, step in ((0, 4, steps[0]), (1, 3, steps[1])):
            error = pixels[..., channel][inside] - seen["position"][..., channel][inside]
            # half a source pixel of nearest against linear, half a canvas pixel of averaging at borders
            assert np.abs(error).max(initial=0) <= slope * (0.5 + max(0.5, 0.5 * step)) + 1


def test_ignored_labels_stay_ignored():
    image = checker((20, 20))
    labels = {
        "depth": np.full((20, 20), 255, np.float32),
        "normals": np.full((20, 20, 3), 255, np.float32),
        "semseg": np.full((20, 20), 255, np.uint8),
        "edge": np.full((20, 20), 255, np.uint8),
    }
    kinds = {"depth": "depth", "normals": "normals", "semseg": "classes", "edge": "boundary"}
    view = View((2.0, 3.0, 10.0, 10.0), flip=True)
    _, seen = apply_view(STAGE2, view, image, labels, kinds, (30, 30))
    assert all((label == 255).all() for label in seen.values())


def test_source_labels_are_not_changed():
    normals = np.tile(np.array([0.6, 0.0, -0.8], np.float32), (9, 9, 1))
    kept = normals.copy()
    view = View((0.0, 0.0, 9.0, 9.0), flip=True)
    _, seen = apply_view(EVALUATION, view, checker((9, 9)), {"n": normals}, {"n": "normals"}, (9, 9))
    assert np.array_equal(normals, kept) and np.allclose(seen["n"][..., 0], -0.6)


def test_a_label_of_another_size_is_refused():
    view = draw_view(EVALUATION, 0, 0, 0, (9, 9), (9, 9))
    with pytest.raises(ValueError, match="'n'"):
        apply_view(EVALUATION, view, checker((9, 9)), {"n": np.zeros((9, 8))}, {"n": "classes"}, (9, 9))


def test_evaluation_is_centred_padding_alone():
    image = np.random.default_rng(1).integers(0, 256, (425, 560, 3), dtype=np.uint8)
    view = draw_view(EVALUATION, 0, 5, 0, (425, 560), NYUD_SIZE)
    depth = np.random.default_rng(2).random((425, 560), np.float32)
    pixels, labels = apply_view(EVALUATION, view, image, {"depth": depth}, {"depth": "depth"}, NYUD_SIZE)
    assert np.array_equal(pixels[11 : 11 + 425, 8 : 8 + 560], image)
    assert np.array_equal(labels["depth"][11 : 11 + 425, 8 : 8 + 560], depth)
    assert (pixels[:11] == EVALUATION.fill).all() and (labels["depth"][436:] == 255).all()


def test_an_image_larger_than_the_canvas_is_scaled_to_fit():
    image = np.full((300, 600, 3), 77, np.uint8)
    view = draw_view(EVALUATION, 0, 0, 0, (300, 600), (100, 100))
    pixels, _ = apply_view(EVALUATION, view, image, {}, {}, (100, 100))
    assert (pixels[25:75] == 77).all() and (pixels[:25] == EVALUATION.fill).all()
    assert view_scale(view, (100, 100)) == pytest.approx(1 / 6)


def test_crops_are_redrawn_while_one_class_dominates():
    semseg = np.zeros((425, 560), np.uint8)
    semseg[:, 430:] = 3
    bad, expected = {True: [], False: []}, {True: [], False: []}
    for i in range(400):
        for ruled in bad:
            view = draw_view(STAGE2, 0, i, 0, semseg.shape, (128, 128), semseg if ruled else None)
            bad[ruled].append(largest_share(semseg, view, (128, 128)) > 0.75)
            # good crops put column 430 in their middle half; eleven draws in all
            width = view.box[3]
            good = max(0, min(430 - width / 4, 560 - width) - (430 - 3 * width / 4)) / (560 - width)
            expected[ruled].append((1 - good) ** (11 if ruled else 1))
    for ruled in bad:
        assert np.mean(bad[ruled]) == pytest.approx(np.mean(expected[ruled]), abs=0.06)
    assert np.mean(expected[True]) < np.mean(expected[False]) - 0.3
    whole = np.zeros((425, 560), np.uint8)
    draw_view(STAGE2, 0, 0, 0, whole.shape, (128, 128), whole)  # no good crop exists: it ends all the same
    assert largest_share(np.full((8, 8), 255, np.uint8), View((0.0, 0.0, 8.0, 8.0)), (8, 8)) == 1


@pytest.mark.parametrize("image_size", [(120, 160), (40, 200), (200, 40)])
def test_random_resized_crop_is_torchvisions(image_size):
    """The same boxes in distribution, and the same pixels for a box."""
    image = np.random.default_rng(0).integers(0, 256, (*image_size, 3), dtype=np.uint8)
    ours = np.array([draw_view(STAGE1, 0, i, 0, image_size, (64, 64)).box for i in range(3000)])
    torch.manual_seed(0)
    source = Image.fromarray(image)
    theirs = np.array(
        [RandomResizedCrop.get_params(source, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)], np.float64
    )
    assert np.allclose(ours.mean(0), theirs.mean(0), atol=0.06 * max(image_size))
    assert np.allclose(ours.std(0), theirs.std(0), atol=0.05 * max(image_size))
    for box in ours[:20]:
        view = View(tuple(map(float, box)))
        pixels, _ = apply_view(plain(STAGE1), view, image, {}, {}, (64, 64))
        expected = TF.resized_crop(source, *(int(b) for b in box), [64, 64])
        assert np.array_equal(pixels, np.asarray(expected))


def test_scaling_up_is_bilinear_without_corners_aligned():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    scaled = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), size=(45, 60), mode="bilinear"
    )
    expected = scaled[0].permute(1, 2, 0).numpy()
    for policy in (STAGE2, EVALUATION):
        pixels, _ = apply_view(policy, View((0.0, 0.0, 30.0, 40.0)), image, {}, {}, (45, 60))
        assert np.abs(pixels - expected).max() <= 1.01  # Pillow rounds once an axis
        # a piece of the scaled image is scaled with what lies around it
        piece, _ = apply_view(policy, View((10.0, 20.0, 10.0, 10.0)), image, {}, {}, (15, 15))
        assert np.array_equal(piece, pixels[15:30, 30:45])
    # scaled down, published views skip pixels
    shrunk = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), size=(18, 24), mode="bilinear"
    )
    pixels, _ = apply_view(STAGE2, View((0.0, 0.0, 30.0, 40.0)), image, {}, {}, (18, 24))
    assert np.abs(pixels - shrunk[0].permute(1, 2, 0).numpy()).max() <= 0.51


def test_colours_change_as_hsv_says():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 3), dtype=np.uint8)
    change = ColourChange(saturation=1.4, hue=30.0)
    made = change_colour(pixels, change)
    for before, after in zip(pixels[:, 0], made[:, 0], strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(before / 255))
        expected = np.array(colorsys.hsv_to_rgb((h + 30 / 360) % 1, min(1, 1.4 * s), v)) * 255
        assert np.abs(after - expected).max() <= 0.51
    grey = np.full((2, 2, 3), 90, np.uint8)
    assert np.array_equal(change_colour(grey, change), grey)


def test_brightness_and_contrast_clip_in_order():
    pixels = np.array([[[10, 100, 250]]], np.uint8)
    brighter = change_colour(pixels, ColourChange(brightness=20.0, contrast=1.5))
    assert brighter.tolist() == [[[45, 180, 255]]]
    darker = change_colour(pixels, ColourChange(brightness=-20.0, contrast=0.5))
    assert darker.tolist() == [[[0, 40, 115]]]
    # contrast last acts on what saturation left
    first = change_colour(pixels, ColourChange(contrast=1.5, contrast_first=1.0, saturation=0.5))
    last = change_colour(pixels, ColourChange(contrast=1.5, contrast_first=0.0, saturation=0.5))
    assert first.tolist() == [[[135, 202, 255]]] and last.tolist() == [[[195, 255, 255]]]


def test_colour_leaves_padding_alone():
    view = View((-5.0, -5.0, 20.0, 20.0), colour=ColourChange(brightness=32.0, hue=36.0))
    pixels, _ = apply_view(STAGE2, view, checker((10, 10)), {}, {}, (20, 20))
    assert (pixels[:5] == STAGE2.fill).all()


@given(policy=policies)
def test_policies_survive_json(policy):
    assert ViewPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_wrong_policies_are_refused():
    with pytest.raises(UnknownName, match="scale-crop"):
        ViewPolicy("scale-corp")
    with pytest.raises(UnknownName, match="did you mean flip"):
        ViewPolicy.from_dict({"kind": "pad", "flipp": 0.5})
    for wrong in ({"scale": (2.0, 0.5)}, {"flip": 1.5}, {"fill": (0, 0, 256)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ViewPolicy("pad", **wrong)


def test_published_numbers():
    """Stage 2: scale 0.5-2, 75 %, ten redraws, brightness ±32, factors 0.5-1.5, hue ±18 of 180, each at 0.5."""
    assert (NYUD_SIZE, PASCAL_SIZE) == ((448, 576), (512, 512))
    assert STAGE2.to_dict() == {
        "kind": "scale-crop",
        "scale": [0.5, 2.0],
        "ratio": [0.75, 4 / 3],
        "max_class_share": 0.75,
        "redraws": 10,
        "fit": False,
        "flip": 0.5,
        "colour": 0.5,
        "brightness": 32.0,
        "contrast": [0.5, 1.5],
        "saturation": [0.5, 1.5],
        "hue": 36.0,
        "antialias": False,
        "fill": [124, 116, 104],
    }


@given(policy=policies, key=keys, image_size=sizes, size=sizes)
def test_labels_are_never_interpolated(policy, key, image_size, size):
    """On noise, where any mixing of neighbours would give values that are nowhere in the source."""
    rng = np.random.default_rng(key[1])
    classes = rng.choice(np.array([3, 90, 200, 255], np.uint8), image_size)
    depth = rng.choice(np.array([1.25, 3.5, 9.0, 255.0], np.float32), image_size)
    normals = rng.choice(np.array([-1.0, 1.0], np.float32), (*image_size, 3))
    view = draw_view(policy, *key, image_size, size)
    labels = {"c": classes, "d": depth, "n": normals, "e": (classes == 3).astype(np.uint8)}
    kinds = {"c": "classes", "d": "depth", "n": "normals", "e": "boundary"}
    _, seen = apply_view(policy, view, checker(image_size), labels, kinds, size)
    scale = view_scale(view, size)
    assert set(np.unique(seen["c"])) <= {3, 90, 200, 255} and set(np.unique(seen["e"])) <= {0, 1, 255}
    assert set(np.unique(seen["n"])) <= {-1.0, 1.0, 255.0}
    there = seen["d"][seen["d"] != 255]
    assert np.isclose(there[:, None] * scale, [1.25, 3.5, 9.0], rtol=1e-5).any(axis=1).all()
