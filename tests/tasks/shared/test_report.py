"""The table of steps: an evaluation before step 1 adds a column, and nothing by default."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from gptmill.training.plan import Step
from tasks.shared.training import Report
from tests.support.courses import STOPPING, run
from tests.support.fakes import FakeRun
from tests.support.tiny import tiny_gpt


def table(steps: list[Step], folder: Path) -> tuple[pd.DataFrame, list[float]]:
    fake = FakeRun(folder, folder / "out")
    report = Report(fake, len(steps), {}, 0.0)  # type: ignore[arg-type]
    for step in steps:
        report.add(step)
    return pd.DataFrame(report.rows), [row["val/loss"] for row in fake.steps if "val/loss" in row]


def test_an_evaluation_before_the_first_step_is_recorded(tmp_path: Path) -> None:
    stopping = replace(STOPPING, evaluate_first=True)
    losses = iter(range(100))
    plans = {"steps": 4, "evaluate_every": 2, "evaluate": lambda: {"val/loss": float(next(losses))}}
    plain, shown = table(run(tiny_gpt(), **plans), tmp_path / "plain")
    first, shown_first = table(run(tiny_gpt(), stopping=stopping, **plans), tmp_path / "first")
    assert (shown, shown_first) == ([0.0, 1.0], [2.0, 3.0, 4.0])
    assert set(first) - set(plain) == {"before_val_loss"}
    assert first["before_val_loss"].dropna().to_dict() == {0: 2.0}
    pd.testing.assert_frame_equal(
        first.drop(columns=["before_val_loss", "val_loss"]), plain.drop(columns="val_loss")
    )
