"""DVC's commands as children of a command that may be killed."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from tasks.processes import locks
from tasks.project.environment import ROOT

ADD = """
import sys
from pathlib import Path
from flows.dvc.command import dvc

dvc(Path(sys.argv[1]), "add", "data")
"""


def test_dvc_ends_with_a_killed_command(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one").touch()
    lock = locks.take(tmp_path / ".dvc" / "tmp" / "lock", patience=0)  # keeps `dvc add` at work
    assert lock is not None
    with lock, subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path)], cwd=ROOT) as command:
        while not (children := psutil.Process(command.pid).children()):
            time.sleep(0.05)
        time.sleep(0.5)  # past the leash's request for the signal
        command.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
    assert not (tmp_path / "data.dvc").exists()
