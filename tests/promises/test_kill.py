"""Trainings that are killed anywhere end in the bytes of one that was never killed."""

import os
import random
import shutil
import signal
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from gptmill.records import content_hash
from tests.support.killing import (
    TRAINED,
    Tally,
    drawn,
    follow_all,
    planned,
    reference,
)
from tests.support.project import Project, tiny_project, write_tiny_manifest

Tallies = dict[str, Future[Tally]]


STAGES = [TRAINED[0], *(pytest.param(stage, marks=pytest.mark.slow) for stage in TRAINED[1:])]


@pytest.fixture(scope="module")
def tallies(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Tallies:
    """Follow the stages of the selected tests, side by side."""
    root = tmp_path_factory.mktemp("kill")
    first = reference(root / "reference")
    name = test_killed_at_every_moment_it_ends_in_the_same_bytes.__name__
    names = {item.name for item in request.session.items}
    return follow_all(first, root, [planned(s) for s in TRAINED if f"{name}[{s}]" in names])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_every_moment_it_ends_in_the_same_bytes(stage: str, tallies: Tallies) -> None:
    tally = tallies[stage].result()
    print(f"\n{stage}: {tally}")  # `pytest -s` shows it
    assert tally.kills.total() == len(planned(stage))
    assert tally.torn >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_moments(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"again: PYTHONPATH=src:. python -m tests.support.killing 60 {seed}")
    plans = [drawn(stage, 15, seed) for stage in TRAINED]
    made = follow_all(reference(tmp_path / "reference"), tmp_path, plans)
    print(sum((found.result() for found in made.values()), Tally()))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    first = reference(tmp_path / "reference", changes={"runtime": {"compile": True}})
    made = follow_all(first, tmp_path, [planned(stage) for stage in TRAINED])
    print(sum((found.result() for found in made.values()), Tally()))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_tokenize_killed_at_20_points_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """Each kill comes when the half-written output has a further twentieth of its bytes."""
    project = tiny_project(tmp_path / "project")
    text, rng = project.root / "data" / "text", random.Random(3)
    words = (text / "00.txt").read_text(encoding="utf-8").split()
    for number in range(12, 60):
        more = " ".join(rng.choices(words, k=15_000))
        (text / f"{number}.txt").write_text(more, encoding="utf-8")
    write_tiny_manifest(project.root / "data")
    out = project.root / "artifacts" / "tokenize"
    _tokenized(project)
    expected, whole = content_hash(out), _bytes_below(out)
    reached = []
    for point in range(20):
        shutil.rmtree(out)
        reached.append(_killed_at(project, whole * (point + 0.5) / 20))
        assert not out.exists()
        _tokenized(project)
        assert content_hash(out) == expected
    print(f"\nkilled at bytes {reached} of {whole}")
    assert len(set(reached)) > 6, "kills at different places"
    assert max(reached) > whole / 2 > min(reached)


def _tokenized(project: Project) -> None:
    done = project.python("-m", "tasks", "tokenize")
    assert done.returncode == 0, done.stderr


def _killed_at(project: Project, target: float) -> int:
    """Kill the stage once its partial output has `target` bytes; return the bytes then."""
    partial = project.root / "artifacts" / ".tokenize.partial"
    process = project.start("python", "-m", "tasks", "tokenize")
    while (size := _bytes_below(partial)) < target and process.poll() is None:
        time.sleep(0.001)
    assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return size


def _bytes_below(folder: Path) -> int:
    found = []
    for name in ("train", "validation"):
        for file in (folder / f"{name}.bin", *folder.glob(f".{name}.bin*")):
            try:
                found.append(file.stat().st_size)
            except FileNotFoundError:  # renamed or not begun
                found.append(0)
    return sum(found)
