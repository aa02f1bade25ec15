"""The student: its stem against timm, its parts against each other, and what training relies on."""

import json
from fractions import Fraction
from typing import Any

import pytest
import timm
import torch
from lightning_fabric import Fabric
from timm.models.vision_transformer import VisionTransformer

from sak_core.losses.step import distillation_loss, task_losses
from sak_core.noise import RowNoise
from sak_core.student.config import StudentConfig, even_depths, match_levels, tapped_levels
from sak_core.student.decoder import to_map
from sak_core.student.network import Experts, StemTokens, StudentNetwork
from sak_core.student.parts import count_parameters, freeze
from sak_core.student.stem import Stem, StemConfig, normalize
from tests import students


def total_loss(student, out, targets=None, labels=None):
    targets = students.features() if targets is None else targets
    labels = students.labels() if labels is None else labels
    loss = task_losses(students.TASKS, out.outputs, labels)[0]
    return loss + distillation_loss(out.aligned, targets)[0] if out.aligned else loss


@pytest.mark.parametrize("name", ["vit_tiny_patch16_384", "vit_small_patch16_224.dino"])
def test_stem_equals_timms_own_intermediates(name):
    stem = Stem(StemConfig(name, (64, 96))).eval()
    vit = timm.create_model(name, img_size=(64, 96), num_classes=0).eval()
    # the stem has no final norm; all else is timm's
    assert vit.load_state_dict(stem.vit.state_dict(), strict=False).missing_keys == ["norm.weight", "norm.bias"]
    x = students.images(2, (64, 96))
    with torch.no_grad():
        tokens = stem(x)
        maps = vit.forward_intermediates(x, indices=[2, 5, 8, 11], norm=False, intermediates_only=True)
    for block, expected in zip((2, 5, 8, 11), maps, strict=True):
        assert torch.equal(to_map(tokens[block + 1][:, stem.num_prefix :], (4, 6)), expected)


def test_stem_takes_registers_and_embeddings_without_prefix():
    stem = Stem(StemConfig("custom", (32, 32), 8, 16, 2, 2)).eval()
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0, final_norm=False,
        reg_tokens=3, no_embed_class=True, pre_norm=True,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(vit.reg_token)
    stem.vit, stem.num_prefix = vit, 4
    x = students.images(2, (32, 32))
    with torch.no_grad():
        expected = vit.forward_intermediates(x, indices=[1], norm=False, intermediates_only=True)[0]
        assert torch.equal(to_map(stem(x)[2][:, 4:], (4, 4)), expected)


def test_stem_of_another_size_resamples_bicubically_without_antialias():
    stem = Stem(StemConfig("custom", (64, 64), 8, 16, 2, 2)).eval()
    small = Stem(StemConfig("custom", (32, 48), 8, 16, 2, 2)).eval()
    state = stem.vit.state_dict()
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(
        state["pos_embed"], [4, 6], [8, 8], num_prefix_tokens=1, antialias=False
    )
    small.vit.load_state_dict(state)
    x = students.images()
    with torch.no_grad():
        torch.testing.assert_close(stem(x)[-1], small(x)[-1], rtol=0, atol=1e-6)


def test_stem_refuses_sizes_and_names():
    stem = Stem(StemConfig("custom", (32, 32), 8, 16, 1, 2))
    with pytest.raises(ValueError, match="30x32 px is no multiple"):
        stem(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match="vit_base_patch16_384"):
        Stem(StemConfig("vit_base_patch16_385"))
    for other in ("vit_tiny_r_s16_p8_224", "vit_small_patch16_rope_224"):
        with pytest.raises(ValueError, match="plain VisionTransformer"):
            Stem(StemConfig(other, (224, 224)))
    with pytest.raises(ValueError, match="needs patch_size"):
        StemConfig("custom", (32, 32), 8, 16)
    with pytest.raises(ValueError, match="belong to name='custom'"):
        StemConfig("vit_base_patch16_384", depth=3)


def test_normalize_maps_bytes_to_plus_minus_one():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    torch.testing.assert_close(normalize(pixels).flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_shapes_and_router_weights():
    out = students.student().eval()(students.images())
    assert [tuple(m.shape) for m in out.aligned["dino"]] == [(2, w, 4, 6) for w in (20, 20, 24, 24)]
    assert [tuple(m.shape) for m in out.aligned["clip"]] == [(2, 12, 4, 6)] * 4
    assert {t.name: tuple(out.outputs[t.name].shape) for t in students.TASKS} == {
        t.name: (2, t.channels, *students.SIZE) for t in students.TASKS
    }
    for weights in out.router_weights.values():
        assert [tuple(w.shape) for w in weights] == [(2, 3)] * 4
        for w in weights:
            torch.testing.assert_close(w.sum(1), torch.ones(2))


def test_permuting_teachers_permutes_the_result():
    student = students.student().eval()
    swapped = students.student(teachers={"clip": 12, "dino": (20, 20, 24, 24)})
    state = student.state_dict()
    order = [0, 2, 1]
    for name, value in state.items():
        if ".gates." in name:
            # logits and noise of the experts: stem, dino, clip to stem, clip, dino
            state[name] = value.unflatten(0, (2, 3))[:, order].flatten(0, 1)
    swapped.load_state_dict(state)
    with torch.no_grad():
        a, b = student(students.images()), swapped.eval()(students.images())
    for name in ("dino", "clip"):
        assert all(torch.equal(x, y) for x, y in zip(a.aligned[name], b.aligned[name], strict=True))
    for task in a.outputs:
        torch.testing.assert_close(a.outputs[task], b.outputs[task], rtol=1e-5, atol=1e-5)
        for x, y in zip(a.router_weights[task], b.router_weights[task], strict=True):
            torch.testing.assert_close(x[:, order], y)


def test_router_none_decodes_the_plain_sum():
    student = students.student(router="none").eval()
    with torch.no_grad():
        tokens = student.stem(students.images())
        paths = student.path_features(tokens)
        out = student(students.images())
        stem = [tokens[i + 1][:, 1:] for i in student.levels]
        summed = [to_map(stem[i] + paths["dino"][i] + paths["clip"][i], (4, 6)) for i in range(4)]
        assert torch.equal(student.heads["depth"](summed, students.SIZE), out.outputs["depth"])
    assert out.router_weights == {}


def test_many_to_one_has_no_path_and_no_router():
    student = students.student(paths=False)
    assert not len(student.paths) and not len(student.routers)
    out = student.eval()(students.images())
    assert [m.shape[1] for m in out.aligned["dino"]] == [20, 20, 24, 24]
    stem_only = students.student(teachers={})
    stem_only.load_state_dict({k: v for k, v in student.state_dict().items() if k in stem_only.state_dict()})
    with torch.no_grad():
        assert torch.equal(out.outputs["semseg"], stem_only.eval()(students.images()).outputs["semseg"])


@pytest.mark.parametrize("paths", [True, False])
@pytest.mark.parametrize(
    ("widths", "given", "matched"),
    [
        ((20,), {}, (3,)),
        ((20, 24), {}, (1, 3)),
        ((20, 20, 24), {}, (0, 2, 3)),
        ((8, 8, 12, 12, 16), {}, (0, 1, 1, 2, 3)),
        ((20, 20), {"dino": (0, 1)}, (0, 1)),
        ((20, 20, 24, 24), {"dino": (3, 2, 1, 0)}, (3, 2, 1, 0)),
    ],
)
def test_teachers_of_any_number_of_levels_are_matched(paths, widths, given, matched):
    """Each of a teacher's levels has a linear layer of its own on the student's level that it is matched to."""
    student = students.student(teachers={"dino": widths}, paths=paths, matches=given, class_tokens=("dino",)).eval()
    assert student.matches == {"dino": matched}
    with torch.no_grad():
        tokens = student.stem(students.images())
        out = student(students.images())
        own = student.path_features(tokens)["dino"] if paths else [tokens[block + 1][:, 1:] for block in student.levels]
        classes = student.path_features(tokens, class_tokens=True)["dino"][4:] if paths else None
        for level, (width, ours) in enumerate(zip(widths, matched, strict=True)):
            norm = torch.nn.Identity() if paths else student.projector_norms["dino"][level]
            expected = student.aligners["dino"][level](norm(own[ours]))
            assert torch.equal(out.aligned["dino"][level], to_map(expected, (4, 6)))
            assert out.aligned["dino"][level].shape == (2, width, 4, 6)
            token = classes[ours] if paths else norm(tokens[student.levels[ours] + 1][:, :1])
            assert torch.equal(out.class_tokens["dino"][level], student.class_aligners["dino"][level](token[:, 0]))
    assert len(out.aligned["dino"]) == len(out.class_tokens["dino"]) == len(widths)
    assert out.outputs["depth"].shape == (2, 1, *students.SIZE)


def test_levels_are_matched_by_where_they_lie():
    quarters = even_depths(4)
    assert match_levels([Fraction(9, 12), Fraction(1)], quarters) == (2, 3)
    assert match_levels([Fraction(1, 12)], quarters) == (0,)
    assert match_levels([Fraction(3, 8)], quarters) == (1,), "the deeper of two as near"
    assert match_levels([Fraction(1, 12)] * 4, quarters) == (0, 1, 2, 3), "as many: each with its own"


def test_config_round_trips_and_refuses():
    made = students.config()
    assert StudentConfig.from_dict(made.to_dict()) == made
    with pytest.raises(ValueError, match="unknown router 'moar'; did you mean mor"):
        StudentNetwork(students.config(router="moar"))
    with pytest.raises(ValueError, match="unknown head 'sack'; did you mean sak"):
        StudentNetwork(students.config(head="sack"))
    with pytest.raises(ValueError, match="set aligner=True"):
        StudentNetwork(students.config(aligner=False))
    with pytest.raises(ValueError, match="dino has no levels"):
        StudentNetwork(students.config(teachers={"dino": ()}))
    with pytest.raises(ValueError, match=r"matches of clip, \[0, 4, 1, 2\]: one of the student's levels 0..3"):
        StudentNetwork(students.config(matches={"clip": (0, 4, 1, 2)}))
    with pytest.raises(ValueError, match=r"matches of clip, \[3\]: .* for each of the teacher's 4"):
        StudentNetwork(students.config(matches={"clip": (3,)}))
    with pytest.raises(ValueError, match="unknown teacher 'clap'; did you mean clip"):
        StudentNetwork(students.config(matches={"clap": (3,)}))
    matched = students.config(teachers={"dino": (20, 20)}, matches={"dino": (0, 3)})
    assert StudentConfig.from_dict(json.loads(json.dumps(matched.to_dict()))) == matched
    assert "matches" not in made.to_dict(), "a student of before is described as before"
    with pytest.raises(ValueError, match="not ascending"):
        tapped_levels(4, (1, 4))
    assert tapped_levels(12, None) == (2, 5, 8, 11) and tapped_levels(24, None) == (5, 11, 17, 23)


def test_noise_is_drawn_in_training_only_and_per_position():
    student = students.student()
    quiet = student.eval()(students.images())
    assert torch.equal(quiet.outputs["depth"], student(students.images()).outputs["depth"])
    student.train()
    with torch.no_grad():
        noise = RowNoise(0, 7, torch.tensor([4, 9]))
        a, b = (student(students.images(), generator=noise) for _ in range(2))
        c = student(students.images(), generator=RowNoise(0, 8, torch.tensor([4, 9])))
    assert all(torch.equal(a.outputs[t], b.outputs[t]) for t in a.outputs)
    assert not torch.equal(a.outputs["depth"], c.outputs["depth"])


def test_row_noise_follows_rows_not_batches():
    like = torch.empty(3, 5, 7)
    whole = RowNoise(3, 11, torch.tensor([5, 2, 8])).normal("depth/0", (5, 7), like)
    part = RowNoise(3, 11, torch.tensor([8, 5])).normal("depth/0", (5, 7), like[:2])
    assert torch.equal(whole[[2, 0]], part)
    other = RowNoise(3, 11, torch.tensor([5, 2, 8])).normal("depth/1", (5, 7), like)
    assert (whole != other).all()


def test_row_noise_is_standard_normal_and_uncorrelated():
    noise = RowNoise(0, 0, torch.arange(64)).normal("x", (4000,), torch.empty(64, 1))
    assert abs(noise.mean().item()) < 0.01 and abs(noise.std().item() - 1) < 0.01
    assert abs(noise.square().square().mean().item() - 3) < 0.1
    correlation = torch.corrcoef(noise) - torch.eye(64)
    assert correlation.abs().max() < 0.1
    assert (noise[:, 1:] * noise[:, :-1]).mean().abs() < 0.01


def test_a_generator_makes_training_reproducible():
    student = students.student().train()
    with torch.no_grad():
        a, b = (student(students.images(), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a.outputs["semseg"], b.outputs["semseg"])


@pytest.mark.parametrize("paths", [True, False])
def test_checkpointing_changes_no_bit(paths):
    gradients = []
    for checkpointing in (False, True):
        stem = StemConfig("custom", students.SIZE, 8, 16, 4, 2, checkpointing=checkpointing)
        student = students.student(stem=stem, paths=paths)
        out = student(students.images(), generator=RowNoise(0, 1, torch.arange(2)))
        total_loss(student, out).backward()
        gradients.append({name: p.grad for name, p in student.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize(
    "changes", [{}, {"paths": False}, {"router": "none"}, {"teachers": {}}], ids=["sak", "many", "none", "bare"]
)
def test_gradients_equal_finite_differences(changes):
    student = students.student(**changes).double()
    x, y, t = students.images().double(), students.labels(), students.features()
    t = {name: [m.double() for m in maps] for name, maps in t.items()}

    def loss():
        return total_loss(student, student(x, generator=RowNoise(0, 1, torch.arange(2))), t, y)

    loss().backward()
    g = torch.Generator().manual_seed(0)
    for part in ("stem", "paths", "aligners", "projector_norms", "routers", "heads"):
        parameters = list(getattr(student, part).parameters())
        if not parameters:
            continue
        directions = [torch.randn(p.shape, generator=g, dtype=torch.float64) for p in parameters]
        along = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True)).item()
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(d, alpha=sign * 1e-7)
                values.append(loss().item())
        assert along == pytest.approx((values[0] - values[1]) / 2e-7, rel=2e-4, abs=1e-6), part


def test_every_parameter_of_the_published_student_gets_a_gradient():
    student = students.student()
    total_loss(student, student(students.images())).backward()
    without = [n for n, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_every_loss_falls_on_an_overfit_batch():
    student = students.student()
    x, y, t = students.images(), students.labels(), students.features()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    history = []
    for step in range(60):
        out = student(x, generator=RowNoise(0, step, torch.arange(2)))
        task_total, task_terms = task_losses(students.TASKS, out.outputs, y)
        total, terms = distillation_loss(out.aligned, t)
        optimizer.zero_grad()
        (total + task_total).backward()
        optimizer.step()
        history.append({k: v.item() for k, v in {**terms, **task_terms}.items()})
    assert [name for name in history[0] if not history[-1][name] < 0.95 * history[0][name]] == []


def test_stage_one_leaves_routers_and_heads_out():
    student = students.student()
    out = student(students.images(), tasks=False)
    assert out.outputs == {} and out.router_weights == {} and set(out.aligned) == {"dino", "clip"}


@pytest.mark.slow
def test_compiled_student_agrees():
    student = students.student().eval()
    compiled = torch.compile(student)
    with torch.no_grad():
        a, b = student(students.images()), compiled(students.images())
    for task in a.outputs:
        torch.testing.assert_close(a.outputs[task], b.outputs[task], rtol=1e-5, atol=1e-5)


def test_parameters_are_counted_by_part():
    student = students.student()
    counts = count_parameters(student)
    assert counts["total"] == sum(p.numel() for p in student.parameters())
    # a path is five adapters (16·4 + 4 + 4·16 + 16 + 1 each) and four norms
    assert counts["paths"] == 2 * (5 * 149 + 4 * 32)
    assert set(count_parameters(students.student(teachers={}))) == {"stem", "heads", "total"}
    with pytest.raises(ValueError, match="weight belongs to no part"):
        count_parameters(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "trains,still", [("all", set()), ("adapters", {"stem"}), ("routers", {"stem", "paths", "aligners"})]
)
def test_frozen_parts_stay(trains, still):
    student = students.student()
    freeze(student, trains)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1.0)
    total_loss(student, student(students.images())).backward()
    optimizer.step()
    same = {n.partition(".")[0] for n, p in student.named_parameters() if torch.equal(p, before[n])}
    assert same == still
    with pytest.raises(ValueError, match="unknown trained part 'adapter'; did you mean adapters"):
        freeze(student, "adapter")


def test_frozen_parts_from_stored_tokens_give_the_same_numbers():
    """What a cache of the stem's tokens, or of all experts, trains from."""
    student = students.student().eval()
    live = student(students.images())
    with torch.no_grad():
        tokens = student.stem(students.images())
        from_tokens = student.from_tokens(tokens, students.SIZE)
        stem = [tokens[i + 1][:, 1:] for i in student.levels]
        decoded, weights = student.decode([stem, *student.path_features(tokens).values()], students.SIZE)
    for task in live.outputs:
        assert torch.equal(live.outputs[task], from_tokens.outputs[task])
        torch.testing.assert_close(live.outputs[task], decoded.outputs[task])
        assert len(weights[task]) == 4
    assert all(torch.equal(a, b) for a, b in zip(live.aligned["dino"], from_tokens.aligned["dino"], strict=True))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("given", ["images", "tokens", "experts"])
def test_fabric_passes_on_what_a_step_gives_the_student(precision, given):
    """In mixed precision it takes arguments apart, and refuses frozen dataclasses."""
    student = students.student()
    batch: Any = students.images()
    with torch.no_grad():
        tokens = student.stem(batch)
        stem = [tokens[i + 1][:, 1:] for i in student.levels]
        experts = [stem, *student.path_features(tokens).values()]
    batch = {"images": batch, "tokens": StemTokens(tokens, students.SIZE), "experts": Experts(experts, students.SIZE)}
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    wrapped = fabric.setup(student)
    output = wrapped(batch[given], generator=RowNoise(0, 1, torch.arange(2)))
    fabric.backward(sum(out.square().mean() for out in output.outputs.values()))
    assert {out.dtype for out in output.outputs.values()} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in student.heads.parameters())
