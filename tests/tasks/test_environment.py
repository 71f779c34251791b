"""The variables that every command sets for its tools, and the library that it imports."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.project.environment import OF_A_HOOK, ROOT, set_environment
from tasks.project.graph import read_yaml


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


ENTER = """
import importlib, runpy, sys
sys.modules["prefect"] = None  # its import takes seconds, and comes after the choice of a library
module, function, *words = sys.argv[1:]
sys.argv = [module, *words]
try:
    if function == "__main__":
        runpy.run_module(module, run_name=function, alter_sys=True)
    else:
        getattr(importlib.import_module(module), function)()
except BaseException as error:
    print(repr(error))
print("imported" if "gptmill" in sys.modules else "not imported")
import gptmill
print(gptmill.__file__)
"""
WORDS = {"flows": "params"}
WITHOUT = {"flows.commands.inspect.doctor", "tasks.processes.leash"}
"""Entry points that import no library."""


def entries() -> Iterator[tuple[str, str]]:
    """Yield the module and the function of each process that runs code of flows/ and tasks/."""
    for path in [*ROOT.glob("flows/**/*.py"), *ROOT.glob("tasks/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text:
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__main__"), "__main__"
        yield from re.findall(r'"((?:flows|tasks)[\w.]*):(\w+)"', text)  # for uvicorn
    steps = [name for step in read_yaml(ROOT / "prefect.yaml")["pull"] for name in step]
    (own,) = [name for name in steps if not name.startswith("prefect.")]
    module, _, function = own.rpartition(".")
    yield module, function  # in a worker, before the flow


@pytest.mark.parametrize(("module", "function"), sorted(entries()))
def test_every_entry_point_imports_the_library_of_its_own_tree(
    module: str, function: str, tmp_path: Path
) -> None:
    (tmp_path / "gptmill").mkdir()
    (tmp_path / "gptmill" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", ENTER, module, function, *WORDS.get(module, "").split()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    state, path = done.stdout.splitlines()[-2:]
    if module in WITHOUT:
        assert state == "not imported", done.stdout
    else:
        assert path == str(ROOT / "src" / "gptmill" / "__init__.py"), done.stdout
