"""One command at a time works in a project: real processes, kills and notes of any content."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tasks.processes import locks
from tasks.project.environment import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from tasks.processes import locks

with locks.project(sys.argv[1], root=Path(sys.argv[2])):
    print("works", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def start(command: str, root: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, command, str(root), str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_second_command_waits_names_the_first_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    with start("make pipeline", tmp_path, 60) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "works\n"
        with start("make sample", tmp_path, 0) as second:
            assert second.stderr is not None
            said = f"waiting for process {first.pid} (`make pipeline`), which works in this project"
            assert second.stderr.readline() == said + "\n"
            first.send_signal(signal.SIGKILL)
            assert second.communicate(timeout=20) == ("works\n", "")


def note(pid: int, created: float) -> str:
    return json.dumps({"pid": pid, "created": created, "command": "dvc repro"})


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "null", '{"pid": "x", "created": 1, "command": 3}', note(1, 5.0)],
)
def test_a_note_that_names_no_living_process_counts_as_none(tmp_path: Path, content: str) -> None:
    for name in ("project.lock", "sample.lock"):
        (tmp_path / ".state").mkdir(exist_ok=True)
        (tmp_path / ".state" / name).write_text(content, encoding="utf-8")
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text(content, encoding="utf-8")
    lines: list[str] = []
    with locks.project("make data", root=tmp_path, say=lines.append):
        assert lines == []


@pytest.mark.parametrize("place", ["dvc", "between two stages of dvc", "stage"])
def test_processes_without_the_lock_are_waited_for(tmp_path: Path, place: str) -> None:
    with subprocess.Popen(["sleep", "60"]) as worker:
        state = tmp_path / ".state"
        state.mkdir()
        (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
        held = None
        if place == "dvc":
            lock = {"out": {"write": {"pid": worker.pid, "cmd": "dvc repro"}}}
            (tmp_path / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(lock), encoding="utf-8")
        elif place == "stage":
            held = locks.take(state / "sample.lock", patience=0)
            (state / "sample.lock").write_text(str(worker.pid), encoding="utf-8")
        else:
            created = psutil.Process(worker.pid).create_time()
            (state / "project.lock").write_text(note(worker.pid, created), encoding="utf-8")

        lines: list[str] = []

        def end(line: str) -> None:
            lines.append(line)
            worker.kill()
            worker.wait()
            if held is not None:
                held.close()

        with locks.project("make data", root=tmp_path, say=end):
            name = "sample" if place == "stage" else "dvc repro"
            assert lines == [
                f"waiting for process {worker.pid} (`{name}`), which works in this project"
            ]


def test_a_stage_of_the_holder_works_and_another_one_names_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "ROOT", tmp_path)
    monkeypatch.setattr(locks, "PATIENCE_S", 0.0)
    with start("make pipeline", tmp_path, 60) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "works\n"
        monkeypatch.setenv(locks.HELD, str(tmp_path))
        locks.keep_project("sample")
        monkeypatch.setenv(locks.HELD, os.devnull)
        with pytest.raises(ValueError, match=rf"process {holder.pid} \(`make pipeline`\) works"):
            locks.keep_project("sample")
        holder.kill()


@pytest.mark.parametrize(
    ("command", "is_dvc"),
    [
        ("python -m dvc --wait-for-lock repro", True),
        ("/env/bin/python /env/bin/dvc repro", True),
        ("python /env/lib/dvc/__main__.py exp exec-run", True),
        ("python /env/bin/pytest -q tests/flows/dvc", False),
    ],
)
def test_dvc_is_known_by_its_program(command: str, *, is_dvc: bool) -> None:
    assert locks._is_dvc(command.split()) == is_dvc
