"""A signal that asks a process to end does so at any moment."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

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
