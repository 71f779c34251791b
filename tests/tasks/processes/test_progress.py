"""The progress lines of a stage without a terminal."""

import pytest

from tasks.processes import progress
from tasks.processes.progress import Meter


def lines(monkeypatch: pytest.MonkeyPatch, times: dict[float, int], steps: int) -> list[str]:
    """Return the lines of a meter that sees the steps at these times."""
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: False)
    meter, printed = Meter("x"), []
    for seconds, step in times.items():
        monkeypatch.setattr(progress.time, "monotonic", lambda now=1000 + seconds: now)
        printed.append(meter.update(step, steps, "loss 1"))
    return [line for line in printed if line is not None]


def test_no_time_left_is_shown_before_it_is_believable(monkeypatch: pytest.MonkeyPatch) -> None:
    # the first step takes 20 seconds, each further step one
    times = {20.0 + step: step for step in range(1, 41)}
    first, second, *_, last = lines(monkeypatch, times, 40)
    assert first == "step 1/40  loss 1"
    assert second == "step 6/40  loss 1  34s left"
    assert last == "step 40/40  loss 1  0s left"


def test_a_resumed_training_counts_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {float(step - 500): step for step in range(501, 520)}
    assert lines(monkeypatch, times, 1000)[1] == "step 506/1000  loss 1  8m14s left"


def test_the_last_steps_count(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {10.0 * step: step for step in range(1, 11)}
    fast = {100.0 + step: 10 + step for step in range(1, 61)}
    assert lines(monkeypatch, slow | fast, 100)[-1] == "step 70/100  loss 1  30s left"


def test_undone_steps_begin_a_new_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {float(step): step for step in range(1, 12)} | {20.0: 3, 25.0: 4}
    assert lines(monkeypatch, times, 10)[-2:] == [
        "step 3/10  loss 1",
        "step 4/10  loss 1  30s left",
    ]
