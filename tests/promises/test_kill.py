"""Trainings that are killed anywhere end in the bytes of one that was never killed."""

import random
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.support.killing import (
    TRAINED,
    Tally,
    drawn,
    follow_all,
    planned,
    reference,
)

Tallies = dict[str, Future[Tally]]


@pytest.fixture(scope="module")
def tallies(tmp_path_factory: pytest.TempPathFactory) -> Tallies:
    root = tmp_path_factory.mktemp("kill")
    first = reference(root / "reference")
    return follow_all(first, root, [planned(stage) for stage in TRAINED])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", TRAINED)
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
