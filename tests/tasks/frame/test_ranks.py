"""Two gloo processes against one, and what becomes of the stage when one of them dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from gptmill.training.distributed import SINGLE_PROCESS, World
from tasks.frame import ranks
from tasks.project.environment import ROOT
from tests.support.project import Project, tiny_project

CLOSE = 1e-5
NAMES = ("plain", "uneven", "best", "untied")

# rows


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_shares_are_even_and_together_the_batch(size: int) -> None:
    batch = (torch.arange(7), torch.arange(7) * 2)
    shares = [World(rank, size).share(batch) for rank in range(size)]
    for place in (0, 1):
        assert torch.cat([share[place] for share in shares]).equal(batch[place])
    rows = [len(share[0]) for share in shares]
    assert max(rows) - min(rows) <= 1
    assert max(rows) == World(0, size).largest_share(7)


def test_one_process_alone_talks_to_nobody() -> None:
    value = torch.ones(2)
    assert (
        SINGLE_PROCESS.sum(value)
        is SINGLE_PROCESS.broadcast(value)
        is SINGLE_PROCESS.to_device_like(value, value)
        is value
    )
    assert SINGLE_PROCESS.broadcast_object("x") == "x"
    assert SINGLE_PROCESS.any_rank_if_sharded(True, False) == (True, False)


# trainings


def start(folder: Path, *names: str, size: int = 2) -> list[subprocess.Popen[str]]:
    """Start the scenarios in so many processes, as torchrun would."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folder.mkdir(exist_ok=True)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    path = os.pathsep.join(str(ROOT / part) for part in ("src", ""))
    base = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path}
    inductors = "ignore:`torch.jit.script_method` is deprecated"
    dynamos = "ignore:The .grad attribute of a Tensor"  # of sharded weights, which it looks at
    warnings = ["-W", "error", "-W", inductors, "-W", dynamos]
    command = [sys.executable, *warnings, "-m", "tests.support.ranks", str(folder), *names]
    ranks = [
        {"RANK": str(r), "LOCAL_RANK": str(r), **place} if size > 1 else {} for r in range(size)
    ]
    pipe = subprocess.PIPE
    return [
        subprocess.Popen(command, env=base | rank, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        for rank in ranks
    ]


def train(folder: Path, *names: str, size: int = 2) -> dict[str, Any]:
    """Run the scenarios and return what the first rank found."""
    for process in start(folder, *names, size=size):
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train(tmp_path_factory.mktemp("one"), *NAMES, "hungry", size=1)


def assert_same_training(found: dict[str, Any], reference: dict[str, Any]) -> None:
    for name, course in found.items():
        for figure in ("losses", "norms", "evaluations"):
            assert course[figure] == pytest.approx(reference[name][figure], abs=CLOSE), name
        assert course["final"] == pytest.approx(reference[name]["final"], abs=CLOSE)
        for exact in ("batches", "samples", "kind", "trains"):
            assert course[exact] == reference[name][exact], name


@pytest.mark.parametrize("how", ["replicated", "shard"])
def test_two_processes_train_as_one_and_go_on_from_one_another(
    one: dict[str, Any], tmp_path: Path, how: str
) -> None:
    words = [how] if how == "shard" else []
    assert_same_training(train(tmp_path / "whole", *words, *NAMES), one)
    # one process, then two, then one again: a state does not know how many made it
    folder = tmp_path / "resumed"
    train(folder, "uneven@7", "best@7", size=1)
    met = train(folder, *words, "uneven@15", "best@15")
    assert met["uneven"]["resumed_at"] == 7
    found = train(folder, "uneven", "best", size=1)
    assert found["best"]["resumed_at"] > 7  # a sharded one leaves no state of its last step
    assert_same_training(found, one)


@pytest.mark.slow
def test_a_sharded_state_is_a_file_a_rank_and_a_damaged_share_costs_one_state(
    tmp_path: Path,
) -> None:
    whole = train(tmp_path / "whole", "shard", "uneven")["uneven"]
    folder = tmp_path / "resumed"
    train(folder, "shard", "uneven@16")
    states = sorted((folder / "uneven").glob("step-*.safetensors"))
    shares = sorted((folder / "uneven").glob("*.shards"))
    assert len(states) == len(shares) == 2
    sizes = [path.stat().st_size for path in sorted(shares[-1].iterdir())]
    assert len(sizes) == 2
    assert max(sizes) < 1.2 * min(sizes)
    assert states[-1].stat().st_size < max(sizes) / 2

    file = sorted(shares[-1].iterdir())[1]  # the second rank's
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    step = int(states[0].stem.removeprefix("step-"))
    again = train(folder, "shard", "uneven")["uneven"]
    assert again["resumed_at"] == step
    assert len(again["notes"]) == 1
    assert f"{file}: the SHA-256 differs from the recorded value" in again["notes"][0]
    assert again["weights"] == whole["weights"]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "how"), [(1, "replicated"), (2, "replicated"), (3, "shard")])
def test_shares_of_two_are_read_by_any_number(
    one: dict[str, Any], tmp_path: Path, size: int, how: str
) -> None:
    train(tmp_path, "shard", "uneven@16")
    found = train(tmp_path, how, "uneven", size=size)
    assert found["uneven"]["resumed_at"] > 7
    assert_same_training(found, one)


def test_where_one_rank_has_no_room_all_take_half_the_rows(
    one: dict[str, Any], tmp_path: Path
) -> None:
    found = train(tmp_path, "hungry")
    assert found["hungry"]["micro_batches"] == [1]
    assert one["hungry"]["micro_batches"] == [8]
    assert_same_training(found, one)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["replicated", "shard"])
def test_three_processes_that_go_on_end_in_the_same_bytes(tmp_path: Path, how: str) -> None:
    words = [how] if how == "shard" else []
    whole = train(tmp_path / "whole", *words, "plain", "uneven", size=3)
    train(tmp_path / "resumed", *words, "plain@9", "uneven@9", size=3)
    again = train(tmp_path / "resumed", *words, "plain", "uneven", size=3)
    for name in ("plain", "uneven"):
        assert again[name]["resumed_at"] > 0
        assert again[name]["weights"] == whole[name]["weights"]


@pytest.mark.slow
def test_blocks_that_are_computed_again_train_the_same_in_shares(tmp_path: Path) -> None:
    found = train(tmp_path / "again", "shard", "again", "dropped")
    assert found["again"]["weights"] == found["dropped"]["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["replicated", "shard"])
def test_muon_and_compiled_steps_are_those_of_one_process(tmp_path: Path, how: str) -> None:
    words = [how] if how == "shard" else []
    alone = train(tmp_path / "one", "muon", "compiled", size=1)
    both = train(tmp_path / "two", *words, "muon", "compiled")
    assert both["compiled"]["losses"] == pytest.approx(alone["compiled"]["losses"], abs=CLOSE)
    # Muon rounds to bf16 inside, which makes more of a difference in the last bit
    assert both["muon"]["losses"] == pytest.approx(alone["muon"]["losses"], abs=2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs two GPUs")
@pytest.mark.parametrize("how", ["replicated", "shard"])
def test_two_gpus_train_as_one_process(tmp_path: Path, how: str) -> None:
    words = [how] if how == "shard" else []
    alone = train(tmp_path / "one", "cuda", "uneven", size=1)["uneven"]
    both = train(tmp_path / "two", *words, "cuda", "uneven")["uneven"]
    assert both["losses"] == pytest.approx(alone["losses"], abs=CLOSE)


# the stage


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = tiny_project(tmp_path_factory.mktemp("project"))
    project.params({"pretrain": {"devices": 2}})
    done = project.run("dvc", "repro", "sample")
    assert done.returncode == 0, done.stderr
    return project


def rank(project: Project, number: int) -> psutil.Process:
    """Return the process that is a rank of the stage."""
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] == str(project.root):
            try:
                if process.environ().get("RANK") == str(number):
                    return process
            except psutil.Error:
                continue
    raise AssertionError(f"there is no rank {number}")


def begin(project: Project, *command: str, until: str = "step 1/") -> subprocess.Popen[str]:
    """Start a command and wait until the training is at its first steps, and has left a state."""
    process = project.start(*command)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if until in line:
            break
    else:
        raise AssertionError("".join(lines))
    while not list((project.root / ".state/pretrain").glob("*/step-*[1-9]*.sha256")):
        assert process.poll() is None
        time.sleep(0.01)
    return process


def finish(process: subprocess.Popen[str], *, within: float) -> str:
    """Return what is printed until the command ends, which must be soon."""
    started = time.monotonic()
    output, _ = process.communicate(timeout=within + 60)
    assert time.monotonic() - started < within
    return output


def nobody_is_left(project: Project) -> None:
    limit = time.monotonic() + 5
    while project.processes() and time.monotonic() < limit:
        time.sleep(0.05)
    assert project.processes() == []


def test_a_batch_with_fewer_windows_than_processes_is_refused(project: Project) -> None:
    project.params({"pretrain": {"steps": 12, "batch_tokens": 256}})
    done = project.run("dvc", "repro", "pretrain")
    project.params({"pretrain": {"batch_tokens": 1024}})
    assert done.returncode != 0
    assert (
        "params.yaml: pretrain.batch_tokens is 256, 1 windows of 256 for 2 processes: "
        "raise the value to at least 512, or lower pretrain.devices"
    ) in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_a_killed_rank_ends_all_names_itself_and_the_run_goes_on(
    project: Project, shard: bool
) -> None:
    steps = 200 if shard else 600
    project.params({"pretrain": {"steps": steps, "evaluate_every": 100, "shard": shard}})
    process = begin(project, "python", "-m", "flows", "stage", "pretrain")
    rank(project, 1).kill()
    output = finish(process, within=20)
    assert "rank 1 of 2 was killed by SIGKILL" in output
    nobody_is_left(project)
    assert project.runs()[-1]["status"] in ("FAILED", "KILLED")
    process = begin(project, "python", "-m", "flows", "stage", "pretrain", until="resumes from")
    rank(project, 0).kill()
    output = finish(process, within=20)
    assert "rank 0 of 2 was killed by SIGKILL" in output
    nobody_is_left(project)
    done = project.python("-m", "flows", "stage", "pretrain")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumes from step" in done.stdout
    trained = [run for run in project.runs() if run["name"] == "pretrain"]
    assert trained[-1]["status"] == "FINISHED"
    table = (project.root / "artifacts/pretrain/training.csv").read_text(encoding="utf-8")
    assert len(table.splitlines()) == steps + 1


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_flow_ends_the_ranks_with_their_state_saved(
    project: Project, shard: bool, number: signal.Signals
) -> None:
    steps = 2000 + number  # a training of its own
    project.params({"pretrain": {"steps": steps, "evaluate_every": 1000, "shard": shard}})
    process = begin(project, "python", "-m", "flows", "stage", "pretrain")
    if number == signal.SIGINT:  # a terminal sends it to all; DVC leaves it to the stage
        for child in psutil.Process(process.pid).children():
            child.send_signal(number)
    process.send_signal(number)
    finish(process, within=20)
    nobody_is_left(project)
    assert project.runs()[-1]["status"] == "KILLED"
    process = begin(project, "python", "-m", "flows", "stage", "pretrain", until="resumes from")
    process.send_signal(signal.SIGTERM)
    finish(process, within=20)


@pytest.mark.slow
def test_two_nodes_train_as_one_machine(project: Project) -> None:
    project.params({"pretrain": {"steps": 12, "devices": 2, "shard": False, "evaluate_every": 6}})
    weights = project.root / "artifacts/pretrain/model.safetensors"
    assert project.run("dvc", "repro", "-f", "-s", "pretrain").returncode == 0
    together = weights.read_bytes()
    project.params({"pretrain": {"devices": 1}})
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{found.getsockname()[1]}"
    place = {"GPTMILL_NODES": "2", "GPTMILL_RENDEZVOUS": meeting, "GLOO_SOCKET_IFNAME": "lo"}
    environment = project.environment() | place | {"GPTMILL_NODE": "1"}
    command = [sys.executable, "-m", "tasks", "pretrain"]
    other = subprocess.Popen(command, cwd=project.root, env=environment)
    done = project.run("dvc", "repro", "-s", "pretrain", extra=place | {"GPTMILL_NODE": "0"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert other.wait(timeout=30) == 0
    assert "processes 2" in done.stdout
    assert weights.read_bytes() == together


# the launcher


class Failure:
    """What torch's launcher tells of a process."""

    def __init__(self, exitcode: int, file: Path | None = None) -> None:
        self.exitcode = exitcode
        self.error_file = str(file)
        self.message = "its own words"


def test_the_rank_that_failed_is_told_from_those_that_fell_with_it(tmp_path: Path) -> None:
    said = tmp_path / "error.json"
    said.touch()
    fell = {0: Failure(ranks.LOST, said), 1: Failure(-9), 2: Failure(143, said), 3: Failure(-15)}
    assert str(ranks._first(fell, 4)).startswith("rank 1 of 4 was killed by SIGKILL")
    fell[1] = Failure(1, said)
    assert str(ranks._first(fell, 4)) == "rank 1 of 4: its own words"
    fell[1] = Failure(2, said)
    assert str(ranks._first(fell, 4)) == "its own words"
    fell[1] = Failure(1)
    assert str(ranks._first(fell, 4)) == "rank 1 of 4: exited with 1"
    del fell[1]
    assert "a rank on another node is gone" in str(ranks._first(fell, 4))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name in (*names, *(name for name in os.environ if name.startswith(("SLURM", "GPTMILL")))):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    return monkeypatch


def test_what_srun_starts_joins_its_group(environment: pytest.MonkeyPatch) -> None:
    for name, value in {"PROCID": "3", "NTASKS": "4", "LOCALID": "1"}.items():
        environment.setenv(f"SLURM_{name}", value)
    assert not ranks.joined()  # a batch script alone
    assert ranks.launches(2)
    environment.setenv("SLURM_STEP_ID", "0")
    with pytest.raises(ValueError, match="MASTER_ADDR is not set"):
        ranks.joined()
    environment.setenv("MASTER_ADDR", "node0")
    assert ranks.joined()
    assert ranks.follows()
    assert not ranks.launches(2)
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "4", "1"]


def test_nodes_are_counted_from_0(environment: pytest.MonkeyPatch) -> None:
    assert not ranks.launches(1)
    environment.setenv("GPTMILL_NODES", "2")
    with pytest.raises(ValueError, match="GPTMILL_NODE and GPTMILL_RENDEZVOUS is not set"):
        ranks.launches(1)
    environment.setenv("GPTMILL_NODE", "2")
    environment.setenv("GPTMILL_RENDEZVOUS", "node0:29500")
    with pytest.raises(ValueError, match="GPTMILL_NODE is 2; with GPTMILL_NODES 2 it is 0 to 1"):
        ranks.launches(1)
    environment.setenv("GPTMILL_NODE", "1")
    assert ranks.launches(1)
