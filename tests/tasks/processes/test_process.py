"""Signals end a process at any moment, and a group ends with the block that reads its lines."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tasks.processes.process import running_group
from tasks.project.environment import ROOT

PROGRAM = """
import os, signal, sys, time, weakref
from tasks.processes.process import Terminated, raise_on_sigterm

class Thing:
    def __del__(self):
        if how != "weak reference":
            hit()

def hit(*_):
    os.kill(os.getpid(), number)
    sum(range(100))  # the handler runs here, where nothing can be raised

how, number = sys.argv[1], int(sys.argv[2])
raise_on_sigterm()
if how == "prefect":  # its engine replaces the handler while a flow runs
    from prefect.utilities.engine import capture_sigterm
else:
    from contextlib import nullcontext as capture_sigterm
try:
    with capture_sigterm():
        thing = Thing()
        reference = weakref.ref(thing, hit) if how == "weak reference" else None
        del thing
        print("went on", flush=True)
        time.sleep(60)
except (Terminated, KeyboardInterrupt) as stop:
    print("ended by", type(stop).__name__)
"""


@pytest.mark.parametrize(
    ("how", "number", "name"),
    [
        ("del", 15, "Terminated"),
        ("del", 2, "KeyboardInterrupt"),
        ("weak reference", 15, "Terminated"),
        ("weak reference", 2, "KeyboardInterrupt"),
        ("prefect", 15, "Terminated"),
    ],
)
def test_a_signal_that_meets_a_moment_when_nothing_can_be_raised_is_not_lost(
    how: str, number: int, name: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, str(number)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.split("\n") == ["went on", f"ended by {name}", ""]
    assert done.stderr == ""


CHILD = """
import time
from tasks.processes.process import Terminated, die_with_parent, raise_on_sigterm
raise_on_sigterm()
die_with_parent()
try:
    print("ready", flush=True)
    time.sleep(60)
except Terminated as stop:
    print(stop, flush=True)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.mark.parametrize("dies", ["parent", "child"])
def test_an_end_by_the_death_of_the_parent_is_told_apart(dies: str, tmp_path: Path) -> None:
    script = tmp_path / "dvc"
    script.write_text(PARENT, encoding="utf-8")
    words = [sys.executable, str(script), CHILD]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        if dies == "parent":
            parent.kill()
        else:
            (child,) = psutil.Process(parent.pid).children()
            child.send_signal(signal.SIGTERM)
        rest = parent.stdout.read().strip()
    cause = ", since its parent process, dvc, died" if dies == "parent" else ""
    assert rest == f"ended by SIGTERM{cause}"


GROUP = """
import pathlib, subprocess, sys, time
print("first")
while not pathlib.Path("read").exists():  # the reader has the first line by now
    time.sleep(0.01)
if sys.argv[1] == "waits":
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid)
    child.wait()
print("last")
sys.exit(3)
"""


@pytest.mark.parametrize("how", ["ends", "waits"])
def test_a_group_s_lines_come_at_once_and_an_exception_ends_all_its_processes(
    how: str, tmp_path: Path
) -> None:
    (tmp_path / "group.py").write_text(GROUP, encoding="utf-8")
    group = running_group(["group.py", how], folder=tmp_path, variables={"PYTHONPATH": str(ROOT)})
    with suppress(KeyboardInterrupt), group as (process, lines):
        assert next(lines) == "first\n"
        (tmp_path / "read").touch()
        rest = next(lines)
        if how == "waits":
            assert psutil.pid_exists(int(rest))
            raise KeyboardInterrupt
        assert next(lines, None) is None
    assert lines.closed
    if how == "ends":
        assert (rest, process.returncode) == ("last\n", 3)
    else:
        assert process.returncode == -signal.SIGTERM
        assert not psutil.pid_exists(int(rest))
