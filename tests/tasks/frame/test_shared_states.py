"""Workers that share the folder of training states: another goes on, and says from where."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptmill.files import write_json
from tasks.frame import resume, states
from tests.support.killing import lock_entry
from tests.support.project import Project, commit, tiny_project
from tests.tasks.frame.test_stopped_stage import PARAMS

REPRO = ("dvc", "repro", "-s", "pretrain")


@pytest.mark.parametrize("named", ["states", "/no/such/folder"])
def test_a_folder_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv(states.VARIABLE, named)
    with pytest.raises(ValueError, match=f"GPTMILL_STATES is {named}, but must be the absolute"):
        states.of_stage("pretrain")


def test_a_worker_drops_its_own_states_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(states.VARIABLE, str(tmp_path))
    of_others = {"host": "elsewhere", "folder": "/mill"}
    for key, worker in (("a", states.worker()), ("b", of_others)):
        (tmp_path / "pretrain" / key).mkdir(parents=True)
        write_json(tmp_path / "pretrain" / key / resume.NOTE, {"worker": worker})
    lines = resume.fresh("pretrain")
    assert lines == [
        "pretrain: dropped nothing of training",
        f"pretrain: left the state of another worker, {tmp_path}/pretrain/b",
    ]
    assert [path.name for path in states.folders("pretrain")] == ["b"]


def test_a_training_under_way_is_refused_a_second_time(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from tasks.frame import states;"
        "states.hold('pretrain', Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert not states.is_free(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(states, "CLAIM_TIMEOUT_S", 0.1)
            with pytest.raises(ValueError, match=f"pretrain: process {holder.pid} on "):
                states.hold("pretrain", lock)
    finally:
        holder.kill()
        holder.communicate()
    assert states.is_free(tmp_path)


def killed_in_training(project: Project, folder: Path) -> None:
    """Train with states in the shared folder, and kill all processes once a state is complete."""
    process = subprocess.Popen(
        [sys.executable, "-m", *REPRO],
        cwd=project.root,
        env={**project.environment(), states.VARIABLE: str(folder)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("pretrain/*/step-0000000[2-9]*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_another_worker_goes_on_and_says_from_where(tmp_path: Path) -> None:
    first = tiny_project(tmp_path / "first")
    first.params({**PARAMS, "resume": {"every_seconds": 0}})
    commit(first, "a training that can be killed")
    assert first.run("dvc", "repro", "sample").returncode == 0
    others = {}
    for name in ("second", "alone"):
        shutil.copytree(first.root, tmp_path / name, symlinks=True)
        others[name] = Project(tmp_path / name)
    shared = tmp_path / "shared"
    shared.mkdir()
    killed_in_training(first, shared)

    outputs = {}
    for name, project in others.items():
        folder = {"second": shared, "alone": tmp_path / "unshared"}[name]
        folder.mkdir(exist_ok=True)
        done = project.run(*REPRO, extra={states.VARIABLE: str(folder)})
        assert done.returncode == 0, done.stdout + done.stderr
        outputs[name] = done.stdout
    assert f"by {platform.node()}, {first.root}\n" in outputs["second"]
    assert "resumes from step " in outputs["second"]
    beginning = f"no state of this training in {tmp_path}/unshared/pretrain: starts from the"
    assert beginning in outputs["alone"]
    assert lock_entry(others["second"], "pretrain") == lock_entry(others["alone"], "pretrain")
