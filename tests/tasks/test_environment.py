"""The variables that every command of the project sets for its tools."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.project.environment import OF_A_HOOK, ROOT, set_environment


def test_git_works_in_its_own_repository_below_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = ["git", "rev-parse", "--local-env-vars"]
    local = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    assert set(OF_A_HOOK) <= {*local, "GIT_NAMESPACE"}
    for name in OF_A_HOOK:
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "someone")
    set_environment()
    assert not set(OF_A_HOOK) & os.environ.keys()
    assert os.environ["GIT_AUTHOR_NAME"] == "someone"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "127.0.0.1,localhost,::1"),
        ("corp.example, localhost", "corp.example,localhost,127.0.0.1,::1"),
        ("*", "*"),
    ],
)
def test_no_proxy_stands_before_this_machine(
    monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, before)
    set_environment()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == after


# each begins as its command does, then loads torch's OpenMP, which prints what it was told
TELL = "; assert 'torch' not in sys.modules; import ctypes; ctypes.CDLL(sys.argv[1])"
MAKES = {
    "stage": "import sys; from tasks.__main__ import main; main(['no stage'])",
    "command line": "import sys; from gptmill.__main__ import main; main(['no verb'])",
}


def openmp() -> Path | None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return next((Path(spec.origin).parent / "lib").glob("libgomp*"), None)


@pytest.mark.skipif(openmp() is None, reason="torch has another OpenMP")
@pytest.mark.parametrize("program", list(MAKES))
@pytest.mark.parametrize(
    ("own", "spins"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, "0"),
    ],
)
def test_waiting_threads_leave_the_cores_to_others(
    program: str, own: dict[str, str], spins: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    done = subprocess.run(
        [sys.executable, "-c", MAKES[program] + TELL, str(openmp())],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": "src:.", "OMP_DISPLAY_ENV": "verbose", **own},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
