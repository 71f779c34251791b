"""A stage that was stopped goes on as the same training, or says in a sentence why it does not."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.frame import resume, states
from tasks.processes.receipt import VARIABLE, ReceiptReader
from tasks.project import graph
from tests.support.killing import forget, lock_entry
from tests.support.project import Project, commit, tiny_project

STEPS = 60
REPRO = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-s", "pretrain"]
STAGE = [sys.executable, "-m", "tasks", "pretrain"]

PARAMS: dict[str, Any] = {
    "resume": {"every_seconds": 3600},
    "pretrain": {
        "shape": {"emb_dim": 64, "n_layers": 2, "n_heads": 2},
        "steps": STEPS,
        "evaluate_every": 20,
        "sample_every": 0,
    },
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Make a project whose next stage is pretrain."""
    made = tiny_project(tmp_path_factory.mktemp("resume"))
    made.params(PARAMS)
    commit(made, "a training that can be stopped")
    done = made.run("dvc", "repro", "sample")
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.fixture
def anew(project: Project) -> Iterator[Project]:
    """Return the project as before any training, and leave its files as they were."""
    forget(project, "pretrain")
    kept = {name: (project.root / name).read_bytes() for name in ("params.yaml", TRAINING)}
    yield project
    for name, content in kept.items():
        (project.root / name).write_bytes(content)


TRAINING = "src/gptmill/training/trainer.py"


class Started:
    """A command that was started in a session of its own, and what it tells."""

    def __init__(self, project: Project, command: list[str], receipt: Path) -> None:
        self.project = project
        self.output = receipt.with_suffix(".txt")
        self.reader = ReceiptReader(receipt)
        self.events: list[dict[str, Any]] = []
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                command,
                cwd=project.root,
                env={**project.environment(), VARIABLE: str(receipt), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def steps(self) -> list[int]:
        self.events += self.reader.new()
        return [event["step"] for event in self.events if event["event"] == "step"]

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not true():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.002)

    def until_step(self, step: int) -> None:
        self.until(lambda: bool(self.steps()) and self.steps()[-1] >= step)

    def send(self, number: int, *, group: bool, words: str = "tasks pretrain") -> None:
        """Send a signal to the whole group, or to the one process with these words."""
        if group:
            os.killpg(self.process.pid, number)
        else:
            os.kill(pid_of(self.project, words), number)

    def end(self) -> int:
        """Wait until the command and all that it started are gone; return its status."""
        status = self.process.wait(timeout=120)
        deadline = time.monotonic() + 60
        while self.project.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.project.processes() == []
        self.steps()
        return status

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")


def pid_of(project: Project, words: str) -> int:
    for process in psutil.process_iter(["cwd", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.info["cwd"] == str(project.root) and words in line:
            return int(process.pid)
    raise AssertionError(f"no process {words}")


@pytest.fixture
def start(project: Project, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Return what starts a command; nothing of it outlives the test."""
    made: list[Started] = []

    def begin(command: list[str] = REPRO, within: Project = project) -> Started:
        made.append(Started(within, command, tmp_path / f"receipt-{len(made)}.jsonl"))
        return made[-1]

    yield begin
    for started in made:
        if started.process.poll() is None:
            os.killpg(started.process.pid, signal.SIGKILL)
            started.process.wait()


def held(project: Project) -> int:
    """Return the step of the newest state; 0 without one."""
    found = (project.root / ".state" / "pretrain").glob("*/step-*.sha256")
    return max((int(path.stem.removeprefix("step-")) for path in found), default=0)


def stopped_at(started: Started, step: int) -> int:
    """Have a training stop after a step, as a supervisor would; return the step it holds."""
    started.until_step(step)
    started.send(signal.SIGTERM, group=False)
    assert started.end() != 0
    return held(started.project)


def outputs(project: Project) -> Any:
    return lock_entry(project, "pretrain")["outs"]


def history(project: Project, run: str, name: str) -> list[tuple[int, float]]:
    """Return a metric's values by step, each row of the store one."""
    with sqlite3.connect(project.root / "mlflow" / "mlflow.db") as store:
        asked = "select step, value from metrics where run_uuid = ? and key = ? order by step"
        return list(store.execute(asked, (run, name)))


def models(project: Project, run: str) -> list[str]:
    """Return the logged models of a run that are not deleted."""
    with sqlite3.connect(project.root / "mlflow" / "mlflow.db") as store:
        asked = "select model_id from logged_models where source_run_id = ? and lifecycle_stage = ?"
        return [row[0] for row in store.execute(asked, (run, "active"))]


@pytest.fixture(scope="module")
def whole(project: Project) -> Any:
    """Return what an uninterrupted training writes, and its metrics by name."""
    forget(project, "pretrain")
    done = project.run(*REPRO)
    assert done.returncode == 0, done.stdout
    run = project.runs()[-1]["id"]
    return {
        "outs": outputs(project),
        **{name: history(project, run, name) for name in ("train/loss", "val/loss")},
    }


# signals


def test_signals_end_a_training_that_goes_on_as_the_same_run(
    anew: Project, whole: Any, start: Callable[..., Started]
) -> None:
    # a program that supervises ends the stage
    first = start()
    first.until_step(8)
    first.send(signal.SIGTERM, group=False)
    assert first.end() != 0
    assert held(anew) >= first.steps()[-1]
    run = anew.runs()[-1]
    assert (run["name"], run["status"]) == ("pretrain", "KILLED")
    assert "SIGTERM" in anew.tags(run["id"])["error"]
    state = next((anew.root / ".state" / "pretrain").iterdir())

    # Ctrl-C in a terminal reaches all of its group
    second, before = start(), held(anew)
    second.until_step(20)
    second.send(signal.SIGINT, group=True)
    assert second.end() != 0
    assert second.steps()[0] == before + 1
    assert held(anew) >= second.steps()[-1]
    assert "Traceback" not in first.text() + second.text()
    assert anew.runs()[-1] == {**run, "status": "KILLED"}

    # SIGKILL leaves the state as it was last saved
    anew.params({"resume": {"every_seconds": 0}})
    third, before = start(), held(anew)
    third.until_step(35)
    third.send(signal.SIGKILL, group=True)
    third.end()
    assert third.steps()[0] == before + 1
    assert anew.runs()[-1] == {**run, "status": "RUNNING"}

    last, before = start(), held(anew)
    assert last.end() == 0, last.text()
    assert f"resumes from step {before} of {STEPS}" in last.text()
    assert outputs(anew) == whole["outs"]
    assert anew.runs()[-1] == {**run, "status": "FINISHED"}
    assert "error" not in anew.tags(run["id"])
    for name in ("train/loss", "learning_rate", "grad_norm", "tokens_per_second"):
        steps = [step for step, _ in history(anew, run["id"], name)]
        assert steps == list(range(1, STEPS + 1)), name
    assert history(anew, run["id"], "train/loss") == whole["train/loss"]
    assert history(anew, run["id"], "val/loss") == whole["val/loss"]
    assert len(models(anew, run["id"])) == 1

    # the state is known by DVC's own name for this run of the stage
    entry = lock_entry(anew, "pretrain")
    key = resume.key(entry)
    assert state.name == key == anew.tags(run["id"])["dvc.stage_key"]
    assert [path.name for path in (anew.root / ".dvc/cache/runs" / key[:2]).iterdir()] == [key]

    # the next stage that runs finds it in DVC's hands
    assert state.exists()
    done = anew.run("dvc", "repro", "-s", "load_gpt2")
    assert done.returncode == 0, done.stdout
    assert list((anew.root / ".state" / "pretrain").iterdir()) == []


@pytest.mark.slow
def test_force_trains_anew(anew: Project, whole: Any, start: Callable[..., Started]) -> None:
    assert start().end() == 0
    again = start([*REPRO, "--force"])
    assert again.end() == 0
    assert again.steps() == list(range(1, STEPS + 1))
    assert outputs(anew) == whole["outs"]


def test_a_flipped_state_is_noticed_and_the_one_before_is_used(
    anew: Project, whole: Any, start: Callable[..., Started]
) -> None:
    anew.params({"resume": {"every_seconds": 0}})
    step = stopped_at(start(), 12)
    newest, before = sorted((anew.root / ".state/pretrain").glob("*/*.safetensors"), reverse=True)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))
    again = start()
    assert again.end() == 0
    older = int(before.stem.removeprefix("step-"))
    assert f"the state of step {step} is damaged" in again.text()
    assert f"resumes from step {older} of {STEPS}" in again.text()
    assert again.steps()[0] == older + 1
    assert outputs(anew) == whole["outs"]


# changes under a training


def test_a_change_that_would_lose_work_is_refused_and_named(
    anew: Project, whole: Any, start: Callable[..., Started]
) -> None:
    anew.params({"resume": {"protect_minutes": 0}})
    step = stopped_at(start(), 12)
    runs = anew.runs()

    anew.params({"pretrain": {"learning_rate": 0.002, "optimizer": {"beta_2": 0.99}}})
    done = anew.run(*STAGE)
    assert done.returncode == 2
    assert f"of training ({step} steps) would be lost" in done.stderr
    assert "pretrain.learning_rate was 0.003, is 0.002" in done.stderr
    assert "pretrain.optimizer.beta_2 was 0.95, is 0.99" in done.stderr
    assert "`make fresh STAGE=pretrain`" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    anew.params({"pretrain": {"learning_rate": 0.003, "optimizer": {"beta_2": 0.95}}})

    code = anew.root / TRAINING
    code.write_text(code.read_text(encoding="utf-8") + "\n# a comment\n", encoding="utf-8")
    done = anew.run(*STAGE)
    assert done.returncode == 2
    assert f"because of changes: {TRAINING}. " in done.stderr
    assert held(anew) == step
    assert anew.runs() == runs

    done = anew.python("-m", "flows", "accept", "pretrain")
    assert done.returncode == 0, done.stderr
    assert f"resumes from step {step}, trained before the change" in done.stdout
    again = start()
    assert again.end() == 0
    assert again.steps()[0] == step + 1
    assert outputs(anew) == whole["outs"]
    assert anew.runs() == [*runs[:-1], {**runs[-1], "status": "FINISHED"}]

    # what is in the outputs is no training to go on with: now accept is about the outputs
    code.write_text(code.read_text(encoding="utf-8") + "# and one more\n", encoding="utf-8")
    done = anew.python("-m", "flows", "accept", "pretrain")
    assert done.returncode == 0, done.stderr
    assert "outputs unchanged" in done.stdout
    assert json.loads(anew.run("dvc", "status", "--json", "pretrain").stdout) == {}


@pytest.mark.slow
def test_fresh_begins_anew_and_so_does_a_small_loss(
    anew: Project, start: Callable[..., Started]
) -> None:
    anew.params({"resume": {"protect_minutes": 0}})
    step = stopped_at(start(), 5)
    anew.params({"pretrain": {"learning_rate": 0.002}})
    assert anew.run(*STAGE).returncode == 2
    done = anew.python("-m", "flows", "fresh", "pretrain")
    assert done.returncode == 0, done.stderr
    assert f"pretrain: dropped {step} steps" in done.stdout
    again = start()
    step = stopped_at(again, 5)
    assert again.steps()[0] == 1

    anew.params({"pretrain": {"learning_rate": 0.003}, "resume": {"protect_minutes": 5}})
    again = start()
    again.until_step(1)
    again.send(signal.SIGKILL, group=True)
    again.end()
    assert again.steps()[0] == 1
    assert f"of training ({step} steps), because of changes: pretrain" in again.text()
    assert anew.python("-m", "flows", "fresh", "nothing").returncode == 2


# two at once, and no room


@pytest.mark.slow
def test_two_processes_at_one_training_are_one_sentence(
    anew: Project, whole: Any, start: Callable[..., Started]
) -> None:
    first = start(STAGE)
    first.until_step(5)
    os.kill(first.process.pid, signal.SIGSTOP)
    worker = f"process {first.process.pid} (`python -m tasks pretrain`)"
    second = anew.run(*STAGE)
    assert second.returncode == 2
    busy = f"pretrain: {worker} works in this project: repeat the command after its end\n"
    assert second.stderr == busy
    fresh = anew.start(sys.executable, "-m", "flows", "fresh", "pretrain")
    assert fresh.stdout is not None
    assert worker in fresh.stdout.readline()
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.end() == 0, first.text()
    assert "pretrain: dropped" in fresh.communicate(timeout=60)[0]
    assert _resume_hash(anew) == whole["outs"][0]["md5"]


def _resume_hash(project: Project) -> str:
    from gptmill.records import content_hash

    return content_hash(project.root / "artifacts" / "pretrain")


FULL = """
import os, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.executable, [sys.executable, "-m", "tasks", "pretrain"])
"""


def test_a_full_disk_is_one_sentence_and_the_training_goes_on_when_there_is_room(
    anew: Project, whole: Any, start: Callable[..., Started]
) -> None:
    """The limit on a file's size stands in for the disk's end: the write itself fails."""
    store = anew.root / "mlflow" / "mlflow.db"
    store.unlink()  # the limit must fall on the state alone, and this has grown with the tests
    step = stopped_at(start(), 12)
    state = next((anew.root / ".state" / "pretrain").glob("*/*.safetensors"))
    room = state.stat().st_size - 1000
    assert store.stat().st_size < room
    anew.params({"resume": {"every_seconds": 0}})
    full = anew.python("-c", FULL, str(room))
    assert full.returncode == 2, full.stderr
    assert "the training's state could not be saved as" in full.stderr
    assert "earlier states are kept: make room and run the same command again" in full.stderr
    assert len(full.stderr.splitlines()) == 1, full.stderr
    assert anew.runs()[-1]["status"] == "FAILED"
    assert held(anew) == step
    again = start()
    assert again.end() == 0
    assert again.steps()[0] == step + 1
    assert outputs(anew) == whole["outs"]
    assert anew.runs()[-1]["status"] == "FINISHED"


# the pipeline

PIPELINE = [sys.executable, "-m", "flows", "pipeline"]


@pytest.mark.timeout(600)
def test_a_pipeline_that_was_ended_goes_on_in_the_next(
    anew: Project, whole: Any, start: Callable[..., Started]
) -> None:
    anew.params({"resume": {"every_seconds": 0}})
    seen = len(anew.runs())
    for turn, (number, step) in enumerate(((signal.SIGTERM, 8), (signal.SIGINT, 20))):
        flow = start(PIPELINE)
        flow.until(lambda step=step: held(anew) >= step)
        flow.send(number, group=number == signal.SIGINT, words="flows pipeline")
        assert flow.end() != 0
        runs = anew.runs()[seen:]  # earlier stages have outputs, and get runs tagged restored
        runs = [run for run in runs if "restored" not in anew.tags(run["id"])]
        assert {run["status"] for run in runs} == {"KILLED"}
        assert [run["name"] for run in runs].count("pretrain") == 1
        assert len(runs) == turn + 2
    done = start()
    assert done.end() == 0
    assert "resumes from step" in done.text()
    assert outputs(anew) == whole["outs"]


# DVC's own records


def test_a_state_stays_until_dvc_holds_the_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC killed in its commit leaves a torn note, or a note of outputs that it has not got."""
    key, value = "ab" * 32, "cd" * 16 + ".dir"
    for module in (resume, graph):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(states, "STATES", tmp_path / ".state")
    monkeypatch.setattr(graph, "stages", lambda: {"pretrain": {}})
    state = tmp_path / ".state" / "pretrain" / key
    state.mkdir(parents=True)
    note = tmp_path / ".dvc/cache/runs" / key[:2] / key / ("ef" * 32)
    listing = tmp_path / ".dvc/cache/files/md5" / value[:2] / value[2:]
    file = tmp_path / ".dvc/cache/files/md5" / "12" / ("34" * 15)
    contents = (
        (note.with_name(".torn.tmp"), "outs:"),
        (note, f"cmd: c\nouts:\n- path: artifacts/pretrain\n  md5: {value}\n"),
        (listing, json.dumps([{"md5": "12" + "34" * 15, "relpath": "model.safetensors"}])),
        (file, "weights"),
    )
    for path, content in contents:
        resume.clean()
        assert state.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    resume.clean()
    assert not state.exists()
