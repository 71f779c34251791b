"""Results of a sweep: MLflow runs, table and plot.

The table and the plot compare the trials.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mlflow import MlflowClient
from mlflow.entities import Metric
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from flows.servers import mlflow_address
from flows.sweeps.file import Range, Search, Sweep
from flows.sweeps.params import Changes, encoded, short_names
from flows.sweeps.search import best, params_of
from tasks.tracking import runs
from tasks.tracking.store import connect

SWEEP_TAG = "sweep"
TRIAL_TAG = "sweep.trial"


@dataclass(frozen=True)
class Record:
    """The MLflow runs of a sweep, in three levels.

    The sweep's run is the parent of a run per trial. A trial's run is the parent of the runs of
    its stages.
    """

    sweep: Sweep
    experiment: str
    run: str

    @classmethod
    def open(cls, sweep: Sweep) -> "Record":
        """Open the run of a sweep.

        A sweep that was stopped continues its earlier run; a new sweep gets a new run.
        """
        experiment = connect()
        runs.close_dead_runs(experiment)
        query = f"tags.`{SWEEP_TAG}` = '{sweep.name}' and tags.`stage` = 'sweep'"
        run = _reopen_or_create(experiment, query, {"mlflow.runName": sweep.name, "stage": "sweep"})
        MlflowClient().set_tag(run, SWEEP_TAG, sweep.name)
        return cls(sweep, experiment, run)

    def trial(self, number: int, params: Changes) -> str:
        """Open the run of a trial.

        The run logs the searched params only, for comparison between trials.
        """
        query = f"tags.`mlflow.parentRunId` = '{self.run}' and tags.`{TRIAL_TAG}` = '{number}'"
        tags = {
            "mlflow.runName": f"trial-{number}",
            "mlflow.parentRunId": self.run,
            "stage": "trial",
            TRIAL_TAG: str(number),
        }
        run = _reopen_or_create(self.experiment, query, tags)
        for key, value in params.items():
            MlflowClient().log_param(run, key, value if isinstance(value, str) else encoded(value))
        return run

    def note(self, run: str, commit: str) -> None:
        """Record the commit that reproduces a trial's bytes.

        The commit contains the trial's params.
        """
        MlflowClient().set_tag(run, "mlflow.source.git.commit", commit)
        MlflowClient().set_tag(run, "git.dirty", "false")

    def finish(self, run: str, metrics: dict[str, Any], states: dict[str, str]) -> None:
        """Close a trial's run with its metrics and stage states."""
        client, stamp = MlflowClient(), int(time.time() * 1000)
        figures = {key: value for key, value in metrics.items() if not isinstance(value, str)}
        client.log_batch(run, metrics=[Metric(*item, stamp, 0) for item in figures.items()])
        for stage, state in states.items():
            client.set_tag(run, f"stage.{stage}", state)
        client.set_terminated(run, "FINISHED")

    def fail(self, run: str, message: str) -> None:
        """Close a run as failed, with the error message."""
        MlflowClient().set_tag(run, "error", message[:5000])
        MlflowClient().set_terminated(run, "FAILED")

    def compare(self, trials: Sequence[FrozenTrial]) -> None:
        """Save table and plot of the trials recorded until now.

        Both go to the sweep's run in MLflow, and the plot to the sweep's folder, too.
        """
        client, search = MlflowClient(), self.sweep.search
        table = frame(search, trials)
        client.log_text(self.run, table.to_csv(index=False), "trials.csv")
        picture = plot(search, trials)
        client.log_figure(self.run, picture, "plots/trials.png")
        picture.savefig(self.sweep.folder / "trials.png", dpi=120)
        top = best(search, trials)
        if top is not None:
            client.set_tag(self.run, "best.trial", top.number)
            client.set_tag(self.run, f"best.{search.metric}", top.value)
            for key, value in params_of(search, top).items():
                client.set_tag(self.run, f"best.{key}", value)

    def close(self, status: str, *, run: str | None = None) -> None:
        """Close the sweep's run, or the run of a trial."""
        MlflowClient().set_terminated(run or self.run, status)

    @property
    def address(self) -> str:
        """Return the address of the sweep's run in MLflow."""
        return f"{mlflow_address()}/#/experiments/{self.experiment}/runs/{self.run}"


def _reopen_or_create(experiment: str, query: str, tags: dict[str, str]) -> str:
    """Return the run matching a query, or a new run.

    A matching run is set to running again. The tags name this process as the owner of the run.
    """
    client = MlflowClient()
    matches = client.search_runs([experiment], query, max_results=1)
    tags = {
        **tags,
        runs.PROCESS_TAG: runs.this_process(),
        **runs.git_tags(),
    }
    if not matches:
        return str(client.create_run(experiment, tags=tags).info.run_id)
    run = str(matches[0].info.run_id)
    for name, value in tags.items():
        client.set_tag(run, name, value)
    client.update_run(run, status="RUNNING")
    return run


def frame(search: Search, trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """Return a table of the trials, best first, failed last."""
    rows = [
        {
            "trial": trial.number,
            **params_of(search, trial),
            search.metric: trial.value,
            "state": "failed" if trial.state == TrialState.FAIL else "finished",
            "seconds": trial.user_attrs.get("seconds"),
            "message": trial.user_attrs.get("message", ""),
        }
        for trial in trials
    ]
    columns = ["trial", *search.space, search.metric, "state", "seconds", "message"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(
        [search.metric, "trial"], ascending=[search.direction == "minimize", True]
    )


def print_table(search: Search, trials: Sequence[FrozenTrial], title: str) -> None:
    """Print a table of the trials, best first, failed last."""
    names = short_names(list(search.space))
    failed = any(trial.value is None for trial in trials)
    table = Table(title=title, title_justify="left")
    for column in ("trial", *names.values(), search.metric, "seconds"):
        table.add_column(column, justify="right")
    if failed:
        table.add_column("message", overflow="fold")
    top = best(search, trials)
    for row in frame(search, trials).to_dict("records"):
        value = row[search.metric]
        cells = [str(row["trial"]), *(_cell(row[key]) for key in search.space)]
        cells += ["failed" if pd.isna(value) else f"{value:.5g}", f"{row['seconds']:.1f}"]
        cells += [str(row["message"])] if failed else []
        style = "red" if pd.isna(value) else "green" if top and row["trial"] == top.number else None
        table.add_row(*cells, style=style)
    Console().print(table)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else encoded(value)


def plot(search: Search, trials: Sequence[FrozenTrial]) -> Figure:
    """Plot trial values in trial order and against each param."""
    keys = list(search.space)
    columns = min(len(keys) + 1, 4)
    rows = -(-(len(keys) + 1) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    _plot_order(panels[0], search, trials)
    names = short_names(keys)
    finished = [trial for trial in trials if trial.value is not None]
    for axes, key in zip(panels[1:], keys, strict=False):
        _plot_param(axes, search, key, finished)
        axes.set_xlabel(names[key])
    for axes in panels[len(keys) + 1 :]:
        axes.set_axis_off()
    panels[0].set_ylabel(search.metric)
    return figure


def _plot_order(axes: Axes, search: Search, trials: Sequence[FrozenTrial]) -> None:
    numbers = [trial.number for trial in trials]
    values = np.array([np.nan if t.value is None else t.value for t in trials], dtype=float)
    if np.isfinite(values).any():
        better = np.fmin if search.direction == "minimize" else np.fmax
        axes.plot(numbers, values, "o", label="trial")
        axes.step(numbers, better.accumulate(values), where="post", label="best so far")
    top = best(search, trials)
    if top is not None:
        axes.plot(top.number, top.values[0], "o", color="tab:green", label="best")
    for trial in trials:
        if trial.value is None:
            axes.axvline(trial.number, color="tab:red", linestyle=":", label="failed")
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys())


def _plot_param(axes: Axes, search: Search, key: str, finished: Sequence[FrozenTrial]) -> None:
    """Plot trial values against a param.

    Numeric params have a numeric scale; non-numeric params have a tick per choice.
    """
    domain = search.domain(key)
    tried = [params_of(search, trial)[key] for trial in finished]
    choices = [domain.low, domain.high] if isinstance(domain, Range) else domain
    top = best(search, finished)
    colours = ["tab:green" if top and t.number == top.number else "tab:blue" for t in finished]
    values = [float(trial.values[0]) for trial in finished]
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices):
        axes.scatter(tried, values, c=colours)
        if min(choices) > 0 and max(choices) >= 10 * min(choices):
            axes.set_xscale("log")
        if not isinstance(domain, Range):
            axes.set_xticks(choices, [_cell(choice) for choice in choices])
            axes.minorticks_off()
        return
    ticks = [encoded(choice) for choice in choices]
    axes.scatter([ticks.index(encoded(value)) for value in tried], values, c=colours)
    axes.set_xticks(range(len(ticks)), [_cell(choice) for choice in choices])
