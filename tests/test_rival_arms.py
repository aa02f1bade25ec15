"""The arms invpt and mlore, and their decoders on other arms, through the whole line on small caches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.recipes.config import Recipe, load_recipe
from pipeline.runs import Places
from pipeline.training.devices import ALONE, Execution
from pipeline.training.finetune import finetune
from sak_core.losses.step import task_losses
from sak_core.student.config import StudentConfig
from sak_core.student.decoders import DecoderConfig, InvPTConfig, MLoREConfig
from sak_core.student.network import StudentNetwork
from sak_core.student.pretrained import Student
from sak_core.student.reference import export_rival
from sak_core.student.reference_config import reference_task
from sak_core.student.stem import StemConfig
from tests import students
from tests.conftest import logged, refusal, sak
from tests.fields import toml
from tests.test_shared_reads import assert_equal_runs, failing_after

SIZES = {
    "student.invpt": {"embed": 20, "pred": 4},
    "student.mlore": {"width": 12, "ranks": [1, 2, 3], "task_rank": 2, "top_k": 2},
    "student.stem.depth": 4,
    "student.stem.weights": "",
}
SHORT = {"steps": 4, "batch_size": 8, "checkpoint_every": 2, "tasks": ["semseg", "depth"], "log_every": 1, **SIZES}


def options(**changes: object) -> list[str]:
    every = {**SHORT, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [word for key, value in every.items() for word in ("--set", f"{key}={toml(value)}")]


def recipe(**changes: object) -> Recipe:
    return load_recipe("demo", "finetune", {**SHORT, "validation": None, **changes})


@pytest.fixture(scope="module")
def study(features: Path, no_teachers: dict[str, str], module_folder: Path) -> tuple[Path, dict]:
    """The folder and the table of a finished study, run without the teachers' libraries, two runs from one read."""
    path = module_folder / "rivals.toml"
    rows = [
        {"name": "sak + invpt", "set": {"student.decoder": "invpt", "stage1": "off"}},
        {"name": "sak + mlore", "set": {"student.decoder": "mlore", "trains": "routers"}},
    ]
    path.write_text(
        f'recipe = "demo"\narms = ["multi-task", "invpt", "mlore"]\nset = {toml({**SHORT, "steps": 2})}\n'
        'test = { dataset = "rooms", split = "test", size = "96x96" }\n'
        + "".join(f'[[variations]]\nname = "{row["name"]}"\nset = {toml(row["set"])}\n' for row in rows)
    )
    where = ["--out", features, "--runs", module_folder]
    done = sak("ablate", path, "--json", "--share-reads", "2", *where, env=no_teachers)
    return module_folder / "rivals", json.loads(done.stdout)


def test_every_arm_trains_and_is_scored(study: tuple[Path, dict]) -> None:
    folder, table = study
    assert [row["arm"] for row in table["rows"]] == [
        "constant", "multi-task", "invpt", "mlore", "sak + invpt", "sak + mlore",
    ]  # fmt: skip
    assert all(score["mean"] is not None for row in table["rows"] for score in row["scores"].values())
    first = {name: logged(folder / f"{name}-seed0-finetune")[0] for name in ("multi-task", "invpt", "mlore")}
    invpt, mlore = first["invpt"], first["mlore"]
    assert {name for name in invpt if name.startswith("initial/")} == {"initial/semseg", "initial/depth"}
    assert invpt["loss"] == pytest.approx(
        sum(invpt[key] for key in ("semseg", "depth", "initial/semseg", "initial/depth")), rel=1e-6
    )
    assert mlore["loss"] == pytest.approx(mlore["semseg"] + mlore["depth"] + mlore["experts/balance"], rel=1e-6)
    assert 0 < mlore["experts/balance"] < 0.1
    assert not [name for name in first["multi-task"] if name.startswith(("initial/", "experts/"))]


def test_a_frozen_student_keeps_all_but_routers_and_decoder(study: tuple[Path, dict]) -> None:
    folder, _ = study
    run = folder / "sak-mlore-seed0-finetune"
    after = load_file(run / "last" / "model.safetensors")
    stage1 = next(folder.glob("*sak-mlore*distill*"), None) or next(folder.glob("*distill*"))
    before = load_file(stage1 / "last" / "model.safetensors")
    shared = [name for name in before if name in after]
    assert shared and all(torch.equal(before[name], after[name]) for name in shared)
    assert {name.partition(".")[0] for name in after if name not in before} == {"routers", "decoder", "final_norm"}


@pytest.mark.parametrize("arm", ["invpt", "mlore"])
def test_a_stopped_run_goes_on_bit_for_bit(arm: str, features: Path, tmp_path: Path) -> None:
    places, chosen = Places(features, tmp_path), recipe(arm=arm, **{"student.stem.drop_path": 0.2})
    finetune(chosen, tmp_path / "whole", None, places, ALONE)
    with pytest.raises(KeyError):
        finetune(chosen, tmp_path / "cut", None, places, failing_after(3))
    assert (tmp_path / "cut" / "last" / "state.json").exists() and not (tmp_path / "cut" / "results.json").exists()
    torch.manual_seed(9)
    finetune(chosen, tmp_path / "cut", None, places, Execution())
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["invpt", "mlore"])
def test_two_processes_train_as_one(arm: str, features: Path, tmp_path: Path) -> None:
    """Balance and its gradient are over all processes' images, and so are batch norms and pixels."""
    # at a larger rate, rounding decides which experts an image keeps
    chosen = options(arm=arm, steps=6, optimizer__lr=2e-5, threads=1, loss__expert_balance=0.1)
    for devices in ("1", "2"):
        sak("finetune", "demo", "--run", tmp_path / devices, "--devices", devices, "--out", features, *chosen)
    for one, two in zip(logged(tmp_path / "1"), logged(tmp_path / "2"), strict=True):
        assert one.keys() == two.keys()
        assert all(two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["invpt", "mlore"])
def test_predictions_and_portable_files(arm: str, study: tuple[Path, dict], tmp_path: Path) -> None:
    run = study[0] / f"{arm}-seed0-finetune"
    g = np.random.default_rng(0)
    Image.fromarray(g.integers(0, 256, (130, 70, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    sak("predict", tmp_path / "photo.png", "--model", run, "--out", tmp_path / "predicted", "--raw")
    assert np.load(tmp_path / "predicted" / "raw" / "photo.npz")["depth"].shape == (130, 70)
    done = sak("export", run, tmp_path / "model", "--onnx", "--torch-export", "--json")
    told = json.loads(done.stdout)
    assert told["onnx"]["largest_difference"] <= 1e-4 and "largest difference to the student" in done.stderr
    assert Student.from_pretrained(tmp_path / "model").network.config.decoder is not None
    if arm == "mlore":
        assert "takes 96x96 px alone" in refusal("export", run, tmp_path / "other", "--onnx", "--size", "64x96")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"arm": "teacher:mini-sam", "student__decoder": "invpt"},
            "arm teacher:mini-sam has no student that predicts all tasks; a decoder of all tasks goes with multi-task",
        ),
        ({"arm": "single-task", "student__decoder": "mlore"}, "arm single-task has no student that predicts all tasks"),
        ({"arm": "invpt", "student__decoder": "mlore"}, "arm invpt has its own; leave the decoder out"),
        ({"arm": "invpt", "student__invpt": {"embed": 20, "pred": 5}}, "student.invpt: embed + pred = 20 + 5 = 25"),
        ({"arm": "mlore", "student__mlore__top_k": 7}, "student.mlore: top_k = 7, but there are 3 experts"),
        ({"arm": "invpt", "student__levels": [1, 3]}, "cannot be built: invpt reads 4 levels of the stem, not 2"),
        ({"arm": "sak", "student__decoder": "invtp"}, "did you mean invpt"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_runs(
    changes: dict, said: str, features: Path, tmp_path: Path
) -> None:
    told = refusal("finetune", "demo", "--out", features, "--run", tmp_path / "run", "--dry-run", *options(**changes))
    assert said in " ".join(told.split()), told
    assert not (tmp_path / "run").exists()


def test_another_grid_than_the_routers_is_refused_in_words(
    features: Path, study: tuple[Path, dict], tmp_path: Path
) -> None:
    small = tmp_path / "features"
    sak(
        "cache", "--dataset", "rooms", "--split", "val", "--size", "64x64", "--limit", "4", "--views", "1",
        "--teacher", "mini-sam", "--out", small, "--threads", "1", "--decoders", "0",
    )  # fmt: skip
    for store in features.iterdir():
        (small / store.name).symlink_to(store)
    other = options(arm="mlore", validation={"dataset": "rooms", "split": "val", "size": "64x64"})
    said = refusal("finetune", "demo", "--out", small, "--run", tmp_path / "run", *other)
    assert "routers for the grid of 96x96 px, on which it trains, and takes no other" in " ".join(said.split())


def test_pixels_of_boundaries_weigh_what_the_recipe_says() -> None:
    task = students.TASKS[-1]
    outputs, labels = {"boundary": torch.zeros(1, 1, 2, 2)}, {"boundary": torch.tensor([[[1, 0], [0, 0]]]).byte()}
    by_weight = {w: float(task_losses([task], outputs, labels, None, w)[0]) for w in (0.95, 0.88)}
    # log 2 a pixel, one boundary of four
    for weight, found in by_weight.items():
        assert found == pytest.approx(50 * np.log(2) * (weight + 3 * (1 - weight)) / 4)
    assert float(task_losses([task], outputs, labels)[0]) == by_weight[0.95]


CHECKPOINTS: dict[str, DecoderConfig] = {
    "invpt": InvPTConfig(embed=12, pred=4),
    "mlore": MLoREConfig(width=8, ranks=(1, 2), task_rank=1, top_k=2, pre_softmax=True),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_the_releases_go_there_and_back(name: str, tmp_path: Path) -> None:
    tasks = [
        reference_task(task, channels, nyud=True) for task, channels in (("semseg", 40), ("depth", 1), ("edge", 1))
    ]
    stem = StemConfig("vit_tiny_patch16_384", (64, 64), class_token=name == "invpt")
    made = StudentNetwork(StudentConfig(stem=stem, router="none", tasks=tuple(tasks), decoder=CHECKPOINTS[name]))
    state = export_rival(made)
    extra = {
        "invpt": ["multi_task_decoder.scale_embed.2.weight", "multi_task_decoder.invpt.norm_mt.bias"],
        "mlore": ["backbone.q_fuse.semseg.weight", "aux_heads.semseg.linear_pred.bias"],
    }[name]
    whole = {f"module.{key}": value for key, value in {**state, **{key: torch.zeros(2) for key in extra}}.items()}
    torch.save({"model": whole, "epoch": 3, "iter_count": 40000}, tmp_path / "best.pth.tar")
    done = sak("import-reference", tmp_path / "best.pth.tar", tmp_path / "run", "--json")
    told = json.loads(done.stdout)
    assert (told["arm"], told["tasks"], sorted(told["unused"])) == (name, ["semseg", "depth", "edge"], sorted(extra))
    assert "2 entries that its release never uses are left out" in done.stderr and extra[0] in done.stderr
    assert name == "invpt" or "taken as published" in done.stderr
    again = Student.from_pretrained(tmp_path / "run").network
    assert again.config == made.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), made.state_dict().values(), strict=True))
    sak("export-reference", tmp_path / "run", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    # the alphabet's order of a safetensors file says nothing of tasks that no data set has
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "sorted.safetensors")
    said = refusal("import-reference", tmp_path / "sorted.safetensors", tmp_path / "no")
    assert "alphabet's order" in " ".join(said.split())
