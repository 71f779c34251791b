"""A download's client ends with `make data`, and its children with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

FETCH = """
import sys
from pathlib import Path
from gptmill.sources.fetch import fetch
from gptmill.sources.table import Place

at = {"kind": "npm", "package": "x", "version": "1.0", "sha256": "ab" * 32}
place = Place("npm", at, None, (), "copy", {})
fetch(place, Path(sys.argv[1]), root=Path(sys.argv[1]))
"""
# a client whose child does the work, as npm's and apt's do
CLIENT = """#!/bin/sh
/bin/sleep 1000 &
echo $$ $! > PIDS.new
/bin/mv PIDS.new PIDS
wait
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_client_and_its_children_end_with_the_fetch(tmp_path: Path, number: int) -> None:
    tool, pids = tmp_path / "npm", tmp_path / "pids"
    tool.write_text(CLIENT.replace("PIDS", str(pids)), encoding="utf-8")
    tool.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, str(tmp_path)],
        env={**os.environ, "PATH": path},
        stderr=subprocess.DEVNULL,
    )
    while not pids.exists():
        assert process.poll() is None
        time.sleep(0.02)
    working = [psutil.Process(int(pid)) for pid in pids.read_text(encoding="ascii").split()]
    assert len(working) == 2
    process.send_signal(number)
    process.wait()
    _, alive = psutil.wait_procs(working, timeout=20)
    assert not alive
