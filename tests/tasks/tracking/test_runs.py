"""Metrics of a run that is gone on with: one value a step, none missing."""

import math
from collections.abc import Iterator

import mlflow
import pytest

from flows.trees import tree
from tasks.tracking import outbox, runs, store
from tasks.tracking.record import StageRun


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Record in a store of the tests' own."""
    before = mlflow.get_tracking_uri()
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patched.setattr(outbox, "FOLDER", folder / "outbox")
        patched.chdir(folder)
        yield
    mlflow.set_tracking_uri(before)


def history(run: str, name: str) -> list[tuple[int, float]]:
    found = mlflow.MlflowClient().get_metric_history(run, name)
    return [(entry.step, entry.value) for entry in found]


def logged(run: StageRun, losses: dict[int, float], *, rate: float = 100.0) -> None:
    for step, loss in losses.items():
        run.metrics({"train/loss": loss}, step)
        run.metrics({"tokens_per_second": rate}, step, once=True)


def test_a_run_that_goes_on_has_one_value_a_step() -> None:
    """Steps after the last state are done again; those before it are told anew from the state."""
    first = StageRun("pretrain", description="")
    logged(first, {1: 5.0, 2: 4.0, 3: math.nan})
    first.end("KILLED")

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
    assert list(outbox.FOLDER.glob("*")) == []


def test_a_step_done_again_with_other_data_stands_beside_the_first_once() -> None:
    first = StageRun("pretrain", description="")
    logged(first, {1: 5.0, 2: 4.0})
    logged(first, {2: 4.5, 3: 3.0})  # after a rollback
    first.end("KILLED")
    again = StageRun("pretrain", description="", earlier=first.id)
    logged(again, {1: 5.0, 2: 4.0})
    logged(again, {2: 4.5, 3: 3.0})
    again.end("FINISHED")
    assert sorted(history(first.id, "train/loss")) == [(1, 5.0), (2, 4.0), (2, 4.5), (3, 3.0)]


def _delete_experiment(run: str) -> None:
    mlflow.MlflowClient().delete_experiment(store.connect())


def _delete_run(run: str) -> None:
    mlflow.MlflowClient().delete_run(run)


@pytest.mark.parametrize(
    ("delete", "words"),
    [(_delete_experiment, "experiment gptmill was deleted"), (_delete_run, "the run pretrain was")],
)
def test_what_the_user_deletes_meanwhile_is_restored(
    delete: object, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = StageRun("pretrain", description="")
    logged(run, {1: 5.0})
    run._sender.send(10)
    assert callable(delete)
    delete(run.id)
    logged(run, {2: 4.0})
    run.end("FINISHED")
    assert history(run.id, "train/loss") == [(1, 5.0), (2, 4.0)]
    assert mlflow.get_run(run.id).info.status == "FINISHED"
    assert words in capsys.readouterr().err


def test_without_git_a_run_has_no_commit_and_a_sweep_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert runs.git_tags() == {}
    note = "the run is recorded without a commit, since git gives none: the command git is not on"
    assert note in capsys.readouterr().err
    with pytest.raises(ValueError, match="a sweep needs git, but the command is not on this mach"):
        tree.check_repository("a sweep")
