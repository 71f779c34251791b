"""Metrics of a run that is gone on with: one value a step, none missing."""

import math
from collections.abc import Iterator

import mlflow
import pytest

from tasks.tracking.runs import StageRun, connect


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Record in a store of the tests' own."""
    before = mlflow.get_tracking_uri()
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        connect.cache_clear()
        yield
    connect.cache_clear()
    mlflow.set_tracking_uri(before)


def history(run: str, name: str) -> list[tuple[int, float]]:
    found = mlflow.MlflowClient().get_metric_history(run, name)
    return [(entry.step, entry.value) for entry in found]


def logged(run: StageRun, losses: dict[int, float], *, rate: float = 100.0) -> None:
    for step, loss in losses.items():
        run.metrics({"train/loss": loss}, step)
        run.metrics({"tokens_per_second": rate}, step, once=True)


def test_a_run_that_goes_on_has_one_value_a_step(store: None) -> None:
    """Steps after the last state are done again; those before it are told anew from the state."""
    first = StageRun("pretrain", description="")
    logged(first, {1: 5.0, 2: 4.0, 3: math.nan})
    first.flush()
    logged(first, {4: 3.0})  # is lost: the process is killed before it sends this
    mlflow.end_run("KILLED")

    again = StageRun("pretrain", description="", earlier=first.id)
    assert again.id == first.id
    # 2 is the same but for rounding
    logged(again, {1: 5.0, 2: 4.000001, 3: math.nan, 4: 3.0, 5: 2.0}, rate=90.0)
    again.end("FINISHED")
    losses = history(first.id, "train/loss")
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5]
    assert dict(losses) | {3: 0.0} == {1: 5.0, 2: 4.0, 3: 0.0, 4: 3.0, 5: 2.0}
    rates = history(first.id, "tokens_per_second")
    assert rates == [(1, 100.0), (2, 100.0), (3, 100.0), (4, 90.0), (5, 90.0)]


def test_a_step_done_again_with_other_data_stands_beside_the_first_once(store: None) -> None:
    first = StageRun("pretrain", description="")
    logged(first, {1: 5.0, 2: 4.0})
    logged(first, {2: 4.5, 3: 3.0})  # after a rollback
    first.flush()
    mlflow.end_run("KILLED")
    again = StageRun("pretrain", description="", earlier=first.id)
    logged(again, {1: 5.0, 2: 4.0})
    logged(again, {2: 4.5, 3: 3.0})
    again.end("FINISHED")
    assert sorted(history(first.id, "train/loss")) == [(1, 5.0), (2, 4.0), (2, 4.5), (3, 3.0)]
