"""The tables of a training: an evaluation before step 1 is a row of step 0."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from gptmill.training.plan import Step
from tasks.shared.training import Report
from tests.support.courses import STOPPING, run
from tests.support.fakes import FakeRun
from tests.support.tiny import tiny_gpt


def tables(steps: list[Step], folder: Path) -> tuple[pd.DataFrame, dict[int, float], list[float]]:
    fake = FakeRun(folder, folder / "out")
    report = Report(fake, len(steps), {}, 0.0)  # type: ignore[arg-type]
    for step in steps:
        report.add(step)
    rows, evaluations, _ = report.tables()
    losses = dict(zip(evaluations["step"], evaluations["val_loss"], strict=True))
    return rows, losses, [row["val/loss"] for row in fake.steps if "val/loss" in row]


def test_an_evaluation_before_the_first_step_is_recorded(tmp_path: Path) -> None:
    stopping = replace(STOPPING, evaluate_first=True)
    numbers = iter(range(100))
    plans = {
        "steps": 4,
        "evaluate_every": 2,
        "evaluate": lambda: {"val/loss": float(next(numbers))},
    }
    plain, losses, shown = tables(run(tiny_gpt(), **plans), tmp_path / "plain")
    assert (losses, shown) == ({2: 0.0, 4: 1.0}, [0.0, 1.0])
    steps = run(tiny_gpt(), stopping=stopping, **plans)
    first, losses, shown = tables(steps, tmp_path / "first")
    assert (losses, shown) == ({0: 2.0, 2: 3.0, 4: 4.0}, [2.0, 3.0, 4.0])
    pd.testing.assert_frame_equal(first, plain)
    undone = [*steps, *steps[2:]]  # a rollback before step 3
    assert tables(undone, tmp_path / "undone")[1] == losses
