"""Shards through `make shards`: a killed worker of Ray, and the stage's bytes."""

import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from gptmill.records import file_hashes
from tests.support.project import WORDS, Project, tiny_project, write_tiny_manifest

pytestmark = pytest.mark.slow
SHARDS = 4


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with 12 texts of 1 MB."""
    project = tiny_project(tmp_path_factory.mktemp("sharded"))
    rng = random.Random(3)
    for number in range(12):
        words = (" ".join(rng.choices(WORDS, k=2**16)) for _ in range(4))
        path = project.root / "data" / "text" / f"{number:02d}.txt"
        path.unlink()  # a link to DVC's cache
        path.write_text("\n".join(words), encoding="utf-8")
    write_tiny_manifest(project.root / "data")
    done = project.python("-m", "dvc", "add", "data")
    assert done.returncode == 0, done.stderr
    return project


def tokenized(project: Project) -> tuple[dict[str, str], str]:
    """Run the stage; return the hashes of the outputs, and what the stage printed."""
    shutil.rmtree(project.root / "artifacts" / "tokenize", ignore_errors=True)
    done = project.python("-m", "tasks", "tokenize")
    assert done.returncode == 0, done.stderr
    return file_hashes(project.root / "artifacts" / "tokenize"), done.stdout


def packages() -> dict[str, str]:
    """Return the variable by which a command finds datatrove where this process does."""
    spec = find_spec("datatrove")
    assert spec is not None
    assert spec.origin is not None
    return {"PYTHONPATH": str(Path(spec.origin).parents[1])}


def start(project: Project, executor: str) -> subprocess.Popen[bytes]:
    """Start `make shards` with two workers."""
    options = "OPTIONS=mem_per_cpu_gb=1" if executor == "ray" else "OPTIONS="
    words = [f"EXECUTOR={executor}", f"SHARDS={SHARDS}", "WORKERS=2", options]
    return subprocess.Popen(
        [sys.executable, "-m", "flows", "shards", *words],
        cwd=project.root,
        env={**project.environment(), **packages()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def kill_a_worker(project: Project, command: subprocess.Popen[bytes]) -> None:
    """Kill a worker of Ray while its process writes a shard."""
    while command.poll() is None:
        for process in psutil.Process(command.pid).children(recursive=True):
            if process.name().startswith("ray::RankWorker") and _writes(project, process):
                process.send_signal(signal.SIGKILL)
                return
        time.sleep(0.02)
    raise AssertionError("no worker was met at work")


def _writes(project: Project, worker: psutil.Process) -> bool:
    """Return whether a process of the worker has an unfinished shard open."""
    folder = str(project.root / ".state")
    return any(
        file.path.startswith(folder) and ".partial" in file.path
        for process in worker.children()
        for file in process.open_files()
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_shards_of_several_processes_give_the_stage_s_bytes(
    project: Project, executor: str
) -> None:
    if find_spec("datatrove") is None or (executor == "ray" and find_spec("ray") is None):
        pytest.skip("the extra `shards` is not installed")
    shutil.rmtree(project.root / ".state", ignore_errors=True)
    expected, _ = tokenized(project)
    with start(project, executor) as command:
        if executor == "ray":
            kill_a_worker(project, command)
        output = command.communicate(timeout=900)[0].decode()
    assert command.returncode == 0, output
    assert f"{SHARDS} shards are finished" in output
    hashes, printed = tokenized(project)
    assert f"ids read from {SHARDS} shards" in printed
    assert hashes == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["EXECUTOR=dask", "SHARDS=2"], "usage: make shards EXECUTOR=local|ray|slurm SHARDS=8"),
        (["EXECUTOR=local", "SHARDS=two"], "given: EXECUTOR=local SHARDS=two"),
        (["EXECUTOR=local", "SHARDS=13"], "13 shards of the 12 text file(s)"),
        (["EXECUTOR=slurm", "SHARDS=2"], "EXECUTOR=slurm: missing a required argument: 'time'"),
        (["EXECUTOR=local", "SHARDS=2", "OPTIONS=nodes=2"], "argument 'nodes'; allowed are"),
    ],
)
def test_mistakes_are_one_sentence(project: Project, words: list[str], sentence: str) -> None:
    if find_spec("datatrove") is None:
        pytest.skip("the extra `shards` is not installed")
    shutil.rmtree(project.root / ".state", ignore_errors=True)
    done = project.python("-m", "flows", "shards", *words, extra=packages())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert not list((project.root / ".state").rglob("shards.json"))
