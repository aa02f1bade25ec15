"""The miniature teachers: what ships is what its card says, the network takes any size, lessons teach."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.miniature.augment import MILD, STRONG, mirror, recolor
from pipeline.miniature.clip import PhraseTower, box_coverage
from pipeline.miniature.dino import patch_histogram
from pipeline.miniature.objectives import LESSONS
from pipeline.miniature.pixels import PixelNet
from pipeline.miniature.sam import neighbours_differ, regions
from pipeline.miniature.scenes import (
    TRAINING_SEED,
    SceneAttribute,
    SceneBatch,
    SceneStore,
    mirrored_places,
    render_scenes,
)
from pipeline.miniature.trainer import MiniatureConfig, MiniatureTraining, learning_rate, train
from pipeline.miniature.vit import STEM, normalized, patches
from pipeline.studies.redundancy import r_squared
from sak_core.errors import TeacherUnavailable
from sak_core.miniature.network import (
    MINIATURES,
    SHIPPED,
    build_miniature,
    file_digest,
    position_grid,
    shipped_weights,
)
from sak_core.miniature.rooms import CLASSES, COLORS, PLACES, render_scene
from sak_core.student.initial_weights import load_vit
from sak_core.student.stem import Stem, normalize
from sak_core.weights.digests import state_digest

NAMES = list(MINIATURES)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneStore:
    return render_scenes(tmp_path_factory.mktemp("scenes"), 32)


@pytest.fixture
def batch(scenes: SceneStore) -> SceneBatch:
    return scenes.batch(np.arange(6))


def shipped_card(name: str) -> dict[str, Any]:
    """How the weights that ship came about, as `sak miniature train` wrote it beside them."""
    return json.loads(shipped_weights(name).with_suffix(".json").read_text())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


# What ships


@pytest.mark.parametrize("name", NAMES)
def test_the_card_belongs_to_the_weights(name: str) -> None:
    card = shipped_card(name)
    assert card["sha256"] == file_digest(shipped_weights(name))
    assert shipped_weights(name).stat().st_size < 3_000_000
    teacher = build_miniature(name, (96, 96))
    assert teacher.spec.weights == card["state"]
    assert sum(p.numel() for p in teacher.parameters()) == card["num_parameters"]
    assert (list(teacher.spec.mean), list(teacher.spec.std)) == (card["mean"], card["std"])


def test_the_three_had_the_same_chances() -> None:
    cards = [shipped_card(name) for name in NAMES]
    seconds = [card["cpu_seconds"] for card in cards]
    assert max(seconds) <= 1.1 * min(seconds)
    for key in ("num_parameters", "training", "scenes"):
        assert cards[0][key] == cards[1][key] == cards[2][key]
    assert [card["num_steps"] for card in cards] == [LESSONS[name].num_steps for name in NAMES]


def test_lessons_and_splits_share_no_scene() -> None:
    from sak_core.miniature.rooms.dataset import SEED

    assert shipped_card("mini-dino")["scenes"]["seed"] == TRAINING_SEED
    assert SEED != TRAINING_SEED


def test_the_stem_that_ships_is_what_its_card_says_and_had_no_longer_than_a_teacher() -> None:
    card, path = shipped_card("mini-vit"), shipped_weights("mini-vit")
    assert card["sha256"] == file_digest(path) and path.stat().st_size < 3_000_000
    assert card["num_steps"] == LESSONS["mini-vit"].num_steps and card["cpu_seconds"] <= 11 * 60
    assert card["scenes"] == shipped_card("mini-dino")["scenes"]
    assert card["training"] == shipped_card("mini-dino")["training"]
    assert (card["mean"], card["std"]) == ([0.5] * 3, [0.5] * 3)
    stem = Stem(STEM)
    load_vit(stem, "mini-vit")
    assert sum(p.numel() for p in stem.parameters()) == card["num_parameters"]
    state = {name: value.half() for name, value in stem.vit.state_dict().items()}
    assert state_digest(state) == card["state"]


def test_the_stem_that_ships_knows_more_of_classes_than_an_untrained_one() -> None:
    """A ridge regression of patches' class shares on its tokens, on scenes that it was not fitted to."""
    seen = [render_scene(5, i) for i in range(60)]
    pixels = normalize(torch.stack([torch.from_numpy(scene.image) for scene in seen]))
    semseg = torch.stack([torch.from_numpy(scene.semseg.astype(np.int64)) for scene in seen])
    target = patch_histogram(semseg, len(CLASSES))
    known = []
    for trained in (True, False):
        torch.manual_seed(0)
        stem = Stem(STEM).eval()
        if trained:
            load_vit(stem, "mini-vit")
        with torch.no_grad():
            tokens = torch.nn.functional.layer_norm(stem(pixels)[-1][:, 1:], (96,))
        known.append(r_squared(tokens.transpose(1, 2).unflatten(2, (12, 12)), target))
    assert 1 - known[0] < 0.9 * (1 - known[1]), known


def test_the_documented_table_is_of_the_shipped_weights() -> None:
    text = (Path(__file__).parent.parent / "docs" / "miniatures.md").read_text()
    for name in NAMES:
        card = shipped_card(name)
        assert card["state"].removeprefix("sha256:")[:12] in text
        assert f"| {card['num_steps']} | {card['cpu_seconds']} |" in text


# The network and the teacher


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "input_size"), [((96, 96), (96, 96)), ((64, 128), (64, 128)), ((99, 77), (96, 80))])
def test_features_cover_the_view(name: str, size: tuple[int, int], input_size: tuple[int, int]) -> None:
    teacher = build_miniature(name, size)
    pixels = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, generator=generator())
    features = teacher(pixels)
    assert teacher.spec.input_size == input_size
    assert teacher.spec.grid == tuple(s // 8 for s in teacher.spec.input_size)
    assert [tuple(f.shape) for f in features] == [(2, 128, *teacher.spec.grid)] * 4
    assert teacher.spec.widths == (128,) * 4 and teacher.spec.levels == (0, 1, 2, 3)
    assert all(f.dtype == torch.float32 and bool(f.isfinite().all()) for f in features)
    assert not any(f.requires_grad for f in features)


def test_a_row_does_not_depend_on_its_batch() -> None:
    teacher = build_miniature("mini-sam", (96, 96))
    pixels = torch.from_numpy(np.stack([render_scene(5, i).image for i in range(3)]))
    together, alone = teacher(pixels), teacher(pixels[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-4)


def test_levels_are_a_choice() -> None:
    pixels = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    every, some = (
        build_miniature("mini-clip", (96, 96)),
        build_miniature("mini-clip", (96, 96), levels=(1, 3)),
    )
    assert some.spec.levels == (1, 3) and some.spec.widths == (128, 128)
    torch.testing.assert_close(some(pixels), [every(pixels)[i] for i in (1, 3)])


def test_random_weights_are_said_to_be_so() -> None:
    pixels = torch.full((1, 96, 96, 3), 90, dtype=torch.uint8)
    one, two = (build_miniature("mini-dino", (96, 96), random_weights=True, seed=s) for s in (1, 2))
    assert one.spec.weights == "random:1"
    assert not torch.equal(one(pixels)[0], two(pixels)[0])
    again = build_miniature("mini-dino", (96, 96), random_weights=True, seed=1)
    assert torch.equal(one(pixels)[3], again(pixels)[3])


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(TeacherUnavailable, match="no weights at"):
        build_miniature("mini-dino", (96, 96), weights=tmp_path / "none.safetensors")
    state = load_file(shipped_weights("mini-dino"))
    state["mask_token"] = torch.zeros(3)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(TeacherUnavailable, match="mask_token"):
        build_miniature("mini-dino", (96, 96), weights=tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="did you mean mini-dino"):
        build_miniature("mini-dyno", (96, 96))


def test_positions_have_one_scale() -> None:
    """The middle of a grid has the same position whatever the grid's size."""
    small, large = position_grid(3, 3, 128)[0, 4], position_grid(9, 5, 128)[0, 4 * 5 + 2]
    torch.testing.assert_close(small, large)


# The lessons' parts


def test_patch_histograms_count() -> None:
    labels = torch.full((1, 16, 8), 2)
    labels[0, :4, :] = 1
    labels[0, 8:, :] = 255
    shares = patch_histogram(labels, 3)
    assert shares[0, :, 0, 0].tolist() == [0, 0.5, 0.5]
    assert shares[0, :, 1, 0].tolist() == [0, 0, 0]


def test_box_coverage_is_a_share_of_cells() -> None:
    coverage = box_coverage(torch.tensor([0.25, 0.0, 1.0, 0.75]), (2, 2))
    torch.testing.assert_close(coverage, torch.tensor([[0.5, 0.25], [1.0, 0.5]]))


def test_patches_lie_in_the_order_of_tokens_and_are_normalized_alone() -> None:
    pixels = torch.zeros(1, 3, 16, 24)
    pixels[0, 1, 8:, 16:] = torch.arange(64.0).view(8, 8)
    cut = patches(pixels, 8)
    assert cut.shape == (1, 6, 192) and torch.equal(cut[0, 5, 64:128], torch.arange(64.0))
    assert not cut[0, :5].any()
    last = normalized(cut)[0, 5]
    assert last.mean().abs() < 1e-5 and last.std() == pytest.approx(1, abs=1e-3)


def test_phrases_are_found_again() -> None:
    tower = PhraseTower()
    assert len(tower.phrases) == len(CLASSES) * len(COLORS) * len(PLACES)
    assert torch.equal(tower.index(tower.phrases), torch.arange(len(tower.phrases)))


def test_regions_nest_and_neighbours_differ(batch: SceneBatch) -> None:
    labels = regions(batch)
    for coarse, fine in ((0, 1), (0, 2)):
        pairs = torch.stack([labels[:, fine].flatten(), labels[:, coarse].flatten()], 1).unique(dim=0)
        assert len(pairs) == len(pairs[:, 0].unique())
    differ = neighbours_differ(labels)
    # The object level, right or below, is the boundary label itself.
    scene = render_scene(TRAINING_SEED, 0)
    assert torch.equal(torch.maximum(differ[0, 0], differ[0, 3]), torch.from_numpy(scene.boundary).float())


def test_scenes_are_kept_as_rendered(scenes: SceneStore, batch: SceneBatch) -> None:
    scene = render_scene(TRAINING_SEED, 3)
    assert np.array_equal(batch.image[3], scene.image)
    assert np.array_equal(batch.facets[3], scene.facets)
    name, color, place = batch.objects[3, 0].tolist()
    assert (CLASSES[name], COLORS[color], PLACES[place]) == (
        scene.salient.name,
        scene.salient.color,
        scene.salient.place,
    )
    torch.testing.assert_close(batch.boxes[3, 0] * 96, torch.tensor(scene.salient.box, dtype=torch.float32))
    for attribute, value in zip(scenes.attributes, batch.attributes[3].tolist(), strict=True):
        assert attribute.values[value] == scene.attributes[attribute.key]


def test_other_scenes_are_refused(scenes: SceneStore, tmp_path: Path) -> None:
    render_scenes(tmp_path, 2)
    with pytest.raises(ValueError, match="num_scenes 2, wanted 3"):
        render_scenes(tmp_path, 3)


def test_mirroring_takes_everything_along(batch: SceneBatch) -> None:
    mirrored = mirror(batch, generator())
    flipped = [bool((a != b).any()) for a, b in zip(mirrored.image, batch.image, strict=True)]
    assert 0 < sum(flipped) < len(flipped)
    for i, flip in enumerate(flipped):
        for key in ("image", "semseg", "parts", "instances", "facets"):
            before, after = getattr(batch, key)[i], getattr(mirrored, key)[i]
            assert torch.equal(after, before.flip(1) if flip else before)
        present = batch.objects[i, :, 0] >= 0
        places = [mirrored_places()[p] if flip else p for p in batch.objects[i, present, 2].tolist()]
        assert mirrored.objects[i, present, 2].tolist() == places
        assert (mirrored.objects[i, ~present] == -1).all()
        top, left, bottom, right = (mirrored.boxes[i, 0] * 96).round().int().tolist()
        instance = (mirrored.instances[i, top:bottom, left:right]).unique()
        assert len(instance) >= 1 and right > left
    assert {PLACES[mirrored_places()[i]] for i in range(len(PLACES))} == set(PLACES)
    assert PLACES[mirrored_places()[PLACES.index("front left")]] == "front right"


def test_colours_change_and_shapes_stay(batch: SceneBatch) -> None:
    plain = batch.image.permute(0, 3, 1, 2) / 255
    still = recolor(batch.image, replace(MILD, brightness=0, contrast=0, saturation=0), generator())
    torch.testing.assert_close(still, plain, atol=1e-4, rtol=0)
    strong = recolor(batch.image, STRONG, generator())
    assert strong.shape == plain.shape and strong.min() >= 0 and strong.max() <= 1
    assert (strong - plain).abs().mean() > 0.02


# Training


@pytest.mark.parametrize("name", list(LESSONS))
def test_every_lesson_teaches(name: str, scenes: SceneStore) -> None:
    training = MiniatureTraining(name, scenes, 24, MiniatureConfig(batch_size=8))
    losses = [training.train_step()["loss"] for _ in range(24)]
    assert np.mean(losses[-4:]) < 0.85 * losses[0]
    gradients = [p.grad for n, p in training.net.named_parameters() if n != "mask_token" or name == "mini-dino"]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)


def test_an_interrupted_training_ends_the_same(scenes: SceneStore) -> None:
    def fresh() -> MiniatureTraining:
        return MiniatureTraining("mini-dino", scenes, 4, MiniatureConfig(batch_size=4))

    straight, first, second = fresh(), fresh(), fresh()
    for _ in range(4):
        straight.train_step()
    for _ in range(2):
        first.train_step()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.train_step()
    for key, value in straight.modules.state_dict().items():
        assert torch.equal(value, second.modules.state_dict()[key]), key
    other = MiniatureTraining("mini-dino", scenes, 5, MiniatureConfig(batch_size=4))
    with pytest.raises(ValueError, match="num_steps=4, this run 5"):
        other.load_state_dict(first.state_dict())


def test_training_writes_weights_that_load(tmp_path: Path) -> None:
    lines: list[str] = []
    path = train(
        "mini-sam",
        tmp_path,
        num_scenes=8,
        num_steps=2,
        config=MiniatureConfig(batch_size=4),
        report=lines.append,
    )
    teacher = build_miniature("mini-sam", (96, 96), weights=path)
    card = json.loads(path.with_suffix(".json").read_text())
    assert teacher.spec.weights == card["state"] and card["sha256"] == file_digest(path)
    assert card["num_steps"] == 2 and card["cpu_seconds"] > 0 and card["scenes"]["num_scenes"] == 8
    assert lines and not list(tmp_path.glob("*.pt"))
    with pytest.raises(ValueError, match="did you mean mini-sam"):
        train("mini-sum", tmp_path)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(MiniatureConfig(lr=1.0), step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(1.0) and rates[-1] < 0.02
    assert rates.index(max(rates)) in (4, 5)


def test_objectives_draw_from_their_generator_only(batch: SceneBatch) -> None:
    attributes = tuple(SceneAttribute(str(i), ("a",) * 20) for i in range(batch.attributes.shape[1]))
    for name, lesson in LESSONS.items():
        objective = lesson.build(attributes).eval()
        net = PixelNet(lesson.network(), SHIPPED[name]).eval()
        one, two = (sum(objective(net, batch, generator()).values()) for _ in range(2))
        assert isinstance(one, Tensor) and torch.equal(one, two), name


def test_neighbouring_large_seeds_order_scenes_differently(scenes: SceneStore) -> None:
    """A seed's last bits count, up to 64 of them; small seeds order as they always did."""

    def order(seed: int) -> list[int]:
        training = MiniatureTraining("mini-dino", scenes, 1, MiniatureConfig(batch_size=32, seed=seed))
        return training._indices().tolist()

    assert order(2**64 - 1) != order(2**64 - 2)
    assert order(7) == np.random.Generator(np.random.Philox(key=[7, 0])).permutation(32).tolist()
