"""Training on several nodes: real processes on this machine, started as torchrun, srun and people start them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.training.devices import Execution, is_follower, placed, started_together
from tests.conftest import logged, refusal, sak, wait_until
from tests.fields import cache_fields, make_fields, write_recipe
from tests.nginx import free_port

ROOT = Path(__file__).parents[1]
TINY = [
    "--set", "batch_size=8", "--set", "log_every=1", "--set", "threads=1", "--set", "teachers=['mini-dino']",
    "--set", "student.stem.depth=2", "--set", "student.stem.weights=''", "--set", "student.levels=[0, 1]",
]  # fmt: skip
ELSEWHERE = re.compile("^(TORCHELASTIC|SLURM|MASTER_|NODE_RANK|(LOCAL_|GROUP_)?(RANK|WORLD_SIZE))")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of nodes."""
    for name in filter(ELSEWHERE.match, list(os.environ)):
        monkeypatch.delenv(name)
    return monkeypatch


def torchrun(node: int, port: int, devices: int = 2) -> list[str]:
    """What comes before the command on node `node` of two; without "--" torchrun takes `--run` for its own."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node",
        str(devices), "--master_addr", "127.0.0.1", "--master_port", str(port),
        "-m", "--",
    ]  # fmt: skip


def begin(command: list[str], log: Path, **env: str) -> subprocess.Popen[bytes]:
    """A process whose output, stdout and stderr together, goes to a file."""
    others = {name: value for name, value in os.environ.items() if not ELSEWHERE.match(name)}
    with log.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env={**others, "OMP_NUM_THREADS": "1", **env}
        )


def assert_same_steps(one: Path, other: Path) -> None:
    """The losses of all steps agree within 1e-5 relative."""
    alone, together = ([line["loss"] for line in logged(run)] for run in (one, other))
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_of_two_follow_one_process_and_end_together(small: Path, tmp_path: Path) -> None:
    """One process goes on where four stopped, in the exact order."""
    words = ["distill", "demo", *TINY, "--set", "steps=60", "--out", str(small)]
    sak(*words, "--run", tmp_path / "one")
    step = ended_on_the_second_node(words, tmp_path)
    done = sak(*words, "--run", tmp_path / "four")
    assert f"going on at step {step}" in done.stderr and "processes" not in done.stderr
    assert_same_steps(tmp_path / "one", tmp_path / "four")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fine_tuning_on_nodes_follows_one_process_and_ends_together(module_folder: Path, tmp_path: Path) -> None:
    """Routers and heads, task losses and distillation; one node of two goes on where two nodes of two stopped."""
    cache_fields(make_fields(module_folder / "data", crops=True), module_folder / "features", "--teacher", "mini-dino")
    recipe = write_recipe(tmp_path, "log_every = 1", "stage1 = 'off'")
    own = {"arm": "sak", "teachers": "['mini-dino']", "batch_size": "4", "steps": "60", "optimizer.lr": "1e-4"}
    words = ["finetune", str(recipe), *(word for key in own for word in ("--set", f"{key}={own[key]}"))]
    words += ["--out", str(module_folder / "features")]
    sak(*words, "--run", tmp_path / "one")
    step = ended_on_the_second_node(words, tmp_path)
    done = sak(*words, "--run", tmp_path / "four", "--devices", "2")
    assert f"going on at step {step}" in done.stderr and ", 2 processes" in done.stderr
    assert "distillation" in logged(tmp_path / "four")[0]
    assert_same_steps(tmp_path / "one", tmp_path / "four")


def ended_on_the_second_node(words: list[str], folder: Path) -> int:
    """Train in the folder's `four` on two nodes of two, until SIGTERM reaches the second node alone; the step of the
    checkpoint that all of them left together."""
    run, port = folder / "four", free_port()
    command = ["pipeline", *words, "--run", str(run), "--json"]
    nodes = [begin([*torchrun(node, port), *command], folder / f"node{node}") for node in (0, 1)]
    try:
        wait_until(lambda: (run / "metrics.jsonl").exists() and len(logged(run)) >= 2, *nodes)
        nodes[1].terminate()
        codes = [node.wait(240) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    leading, following = (re.sub("\033.*?m", "", (folder / f"node{node}").read_text()) for node in (0, 1))
    assert all(codes), "no node may say that the run is finished"
    assert leading.count(", 4 processes") == 1 and leading.count("saved") == 1
    assert "four: " not in following, "one process alone speaks"
    step = json.loads((run / "last" / "state.json").read_text())["step"]
    assert isinstance(step, int) and 2 <= step == len(logged(run)) < 60
    return step


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["nodes", "srun"])
def test_nodes_started_by_hand_and_by_srun_follow_one_process(small: Path, tmp_path: Path, way: str) -> None:
    steps = [*TINY, "--set", "steps=3", "--out", str(small)]
    sak("distill", "demo", "--run", tmp_path / "one", *steps)
    run, port = tmp_path / "two", str(free_port())
    words = [sys.executable, "-m", "pipeline", "distill", "demo", "--run", str(run), "--json", *steps]
    nodes = []
    for node in (0, 1):
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if way == "nodes":
            env["NODE_RANK"] = str(node)
        else:
            env |= slurm(node, port)
        nodes.append(begin([*words, *(["--nodes", "2"] if way == "nodes" else [])], tmp_path / f"node{node}", **env))
    try:
        codes = [node.wait(300) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    logs = [(tmp_path / f"node{node}").read_text() for node in (0, 1)]
    assert codes == [0, 0], logs
    assert "2 processes" in logs[0] and '"stage": "distill"' in logs[0] and "two: " not in logs[1]
    assert_same_steps(tmp_path / "one", run)


def slurm(task: int, port: str = "12345") -> dict[str, str]:
    """What srun says to a task of a step of two nodes with a task each."""
    return {
        "SLURM_JOB_ID": port, "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_PROCID": str(task),
        "SLURM_NODEID": str(task), "SLURM_LOCALID": "0", "SLURM_NODELIST": "localhost",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_that_see_other_folders_are_refused(small: Path, tmp_path: Path) -> None:
    """Node 1 goes on from a checkpoint that node 0 has not: their weights would differ without a word."""
    steps = [*TINY, "--set", "steps=3", "--out", str(small)]
    sak("distill", "demo", "--run", tmp_path / "run1", *steps)
    (tmp_path / "run1" / "results.json").unlink()
    port = str(free_port())
    nodes = []
    for node in (0, 1):
        words = [sys.executable, "-m", "pipeline", "distill", "demo", "--run", str(tmp_path / f"run{node}"), *steps]
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(node)}
        nodes.append(begin([*words, "--nodes", "2"], tmp_path / f"node{node}", **env))
    try:
        assert [node.wait(300) for node in nodes] == [2, 2]
    finally:
        for node in nodes:
            node.kill()
    assert "process 1 has another checkpoint than process 0" in (tmp_path / "node0").read_text()


def test_what_started_the_processes_says_how_many(clean: pytest.MonkeyPatch) -> None:
    assert placed(Execution(4)) == Execution(4) and not is_follower()
    for name, value in slurm(1).items():
        clean.setenv(name, value)
    assert placed(Execution()) == Execution(1, 2) and is_follower()
    with pytest.raises(UserError, match="srun has started 1 devices, not 4: leave --devices out"):
        placed(Execution(4))
    clean.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match="--ntasks-per-node"):
        started_together()
    torch = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in torch.items():
        clean.setenv(name, value)
    assert placed(Execution()) == Execution(2, 3) and not is_follower(), "torchrun within srun counts"


def test_a_script_of_sbatch_starts_its_own_processes(clean: pytest.MonkeyPatch) -> None:
    for name, value in {**slurm(0), "SLURM_STEP_NUM_TASKS": "1"}.items():
        clean.setenv(name, value)
    assert placed(Execution(4)) == Execution(4) and started_together() is None


def test_nodes_by_hand_must_find_each_other(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("MASTER_ADDR", "10.0.0.1")
    with pytest.raises(UserError, match="here MASTER_PORT, NODE_RANK is not"):
        placed(Execution(2, 2))
    clean.setenv("MASTER_PORT", "29500")
    clean.setenv("NODE_RANK", "2")
    with pytest.raises(UserError, match="NODE_RANK=2 is none of 2 nodes"):
        placed(Execution(2, 2))
    with pytest.raises(UserError, match="NODE_RANK=2 is none of 1 nodes"):
        placed(Execution())
    clean.setenv("NODE_RANK", "1")
    assert placed(Execution(2, 2)) == Execution(2, 2) and is_follower()


def test_a_study_is_not_started_many_times(small: Path) -> None:
    together = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "RANK": "0"}
    assert "torchrun starts many processes" in refusal("ablate", "--out", small, env=together)
