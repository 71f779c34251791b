"""`make sweep`: run the search of a file in configs/sweeps/.

Each trial runs in a git worktree of its own. After a stop of any kind, the same command
continues the sweep: finished trials are kept, the interrupted trial runs again from the point
at which its stage can resume, and the result equals the result of a sweep without a stop.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from flows.sweeps.file import FILE, Sweep, read, refusal, require_metric
from flows.sweeps.params import Changes, as_yaml, edited, shown
from flows.sweeps.record import Record, print_table
from flows.sweeps.search import best, open_study, params_of, record, suggest
from flows.trees import tree
from flows.trees.call import Caller
from gptmill.figures import read_figures
from gptmill.files import read_json, write_json
from tasks.processes import locks
from tasks.processes.progress import duration
from tasks.project.environment import ROOT
from tasks.project.graph import read_text, stages
from tasks.tracking import runs

SWEEPS = ROOT / ".state" / "sweeps"
HOPELESS = 3  # failed trials, without a successful trial, after which a sweep stops


@dataclass(frozen=True)
class TrialOutcome:
    """Outcome of a trial: metrics, or an error message."""

    metrics: dict[str, Any]
    states: dict[str, str]
    message: str = ""


@dataclass(frozen=True)
class Work:
    """A running sweep: search, finished trials, MLflow runs."""

    sweep: Sweep
    study: Study
    runs: Record

    def to_the_end(self) -> None:
        """Run the missing trials, then close the sweep's own run.

        The status of the closed run is true after an error or a kill, too.
        """
        try:
            while not self._is_done():
                self._trial(len(self.study.trials))
            self.runs.compare(self.study.trials)
        except Exception as error:
            self.runs.fail(self.runs.run, str(error))
            raise
        except BaseException:
            self.runs.close("KILLED")
            raise
        self.runs.close("FINISHED" if self.best() else "FAILED")

    def best(self) -> FrozenTrial | None:
        """Return the best trial so far."""
        return best(self.sweep.search, self.study.trials)

    def _is_done(self) -> bool:
        n_trials = len(self.study.trials)
        hopeless = n_trials >= HOPELESS and self.best() is None
        return hopeless or n_trials >= self.sweep.search.n_trials

    def _trial(self, number: int) -> None:
        """Run a trial and record its outcome.

        The study is updated last: every trial in the study is finished in every respect.
        """
        search, started = self.sweep.search, time.monotonic()
        params = suggest(search, number, self.study.trials)
        print(f"trial {number}, {number + 1} of {search.n_trials}: {shown(params)}", flush=True)
        run = self.runs.trial(number, params)
        try:
            outcome = self._outcome(number, params, run)
            value = None if outcome.message else require_metric(search, outcome.metrics)
        except BaseException as stop:
            self.runs.close("FAILED" if isinstance(stop, Exception) else "KILLED", run=run)
            raise
        if outcome.message:
            self.runs.fail(run, outcome.message)
        else:
            self.runs.finish(run, outcome.metrics, outcome.states)
        facts = {"seconds": round(time.monotonic() - started, 1), "message": outcome.message}
        record(self.study, search, params, value=value, facts={**facts, "mlflow.run": run})
        tree.remove(self._folder(number))
        self.runs.compare(self.study.trials)
        self._print_outcome(number)

    def _folder(self, number: int) -> Path:
        return self.sweep.folder / "trials" / str(number)

    def _outcome(self, number: int, params: Changes, run: str) -> TrialOutcome:
        """Run a trial in its worktree and return the outcome.

        Raises ValueError where the failure is not the trial's fault.
        """
        search, folder = self.sweep.search, self._folder(number)
        changes = {**search.fixed, **params}
        mistake = refusal(changes)
        if mistake:
            return TrialOutcome({}, {}, mistake)
        text = edited(read_text(ROOT / "params.yaml"), changes)
        title = f"{self.sweep.name}: trial {number}, {shown(params)}"
        ref = f"{tree.SWEEPS}/{self.sweep.name}/{number}"
        commit = tree.commit({"params.yaml": text}, title, ref=ref)
        self.runs.note(run, commit)
        tree.prepare(folder, commit)
        result = run_in(folder, search.stage, under=(self.runs.run, run))
        if result["failed"] is None:
            figures = read_figures(folder / "artifacts" / search.stage)
            return TrialOutcome(figures, result["states"])
        if not self._depends_on_search(result["failed"]):
            raise ValueError(f"{result['failed']}: {result['message']}")
        return TrialOutcome({}, result["states"], result["message"])

    def _depends_on_search(self, stage: str) -> bool:
        """Return whether searched params can cause a stage's failure."""
        if stage == self.sweep.search.stage:
            return True
        sections = {key.split(".")[0] for key in self.sweep.search.space}
        return stage in stages() and bool(sections.intersection(stages()[stage]["params"]))

    def _print_outcome(self, number: int) -> None:
        trial, top = self.study.trials[number], self.best()
        search = self.sweep.search
        outcome = (
            f"{search.metric} {trial.value:.5g}"
            if trial.value is not None
            else "failed: " + str(trial.user_attrs["message"])
        )
        comparison = f" (best so far: {top.value:.5g}, trial {top.number})" if top else ""
        print(f"trial {number}: {outcome}{comparison}", flush=True)


def run_in(folder: Path, stage: str, *, under: tuple[str, str]) -> dict[str, Any]:
    """Update a stage in a worktree, with the worktree's own code, and return the outcome.

    The trial's records go into this tree's store, below the runs of the sweep.
    """
    sweep, trial = under
    variables = {
        runs.SWEEP_VARIABLE: sweep,
        runs.PARENT_VARIABLE: trial,
        runs.FLOW_VARIABLE: runs.this_process(),
    }
    say = partial(print, " ", flush=True)
    return dict(Caller(folder, variables).call("trial", {"stage": stage}, on_line=say))


def named(arguments: list[str]) -> Sweep:
    """Load the sweep file of a command."""
    if len(arguments) > 1:
        raise ValueError(f"name a single sweep file, FILE={FILE}; given: {' '.join(arguments)}")
    return read(arguments[0] if arguments else FILE)


def announce(sweep: Sweep) -> None:
    """Announce a sweep, and the reason for a new sweep.

    The reason is printed where an earlier sweep of the same file exists.
    """
    print(f"{sweep.name}: {sweep.search.sampler} over {', '.join(sweep.search.space)}")
    last = max(
        SWEEPS.glob(f"sweep-{sweep.stem}-*/sweep.json"),
        key=lambda path: path.stat().st_mtime,
        default=None,
    )
    if last is None or (sweep.folder / "sweep.json").exists():
        return
    before = read_json(last)
    changed = sorted(
        name for name in {*before, *sweep.facts} if before.get(name) != sweep.facts.get(name)
    )
    if changed:
        print(f"a new sweep, separate from {last.parent.name}: {', '.join(changed)} changed since")


def main(arguments: list[str]) -> int:
    """Run the missing trials, then print all trials."""
    started = time.monotonic()
    sweep = named(arguments)
    tree.check_repository("a sweep")
    with locks.project("make sweep"):
        announce(sweep)
        sweep.folder.mkdir(parents=True, exist_ok=True)
        write_json(sweep.folder / "sweep.json", sweep.facts)
        work = Work(sweep, open_study(sweep), Record.open(sweep))
        n_finished = len(work.study.trials)
        if n_finished:
            print(f"{n_finished} of {sweep.search.n_trials} trials are done and kept")
        for number in range(n_finished):  # a kill may have left a finished trial's worktree
            tree.remove(sweep.folder / "trials" / str(number))
        work.to_the_end()
    title = (
        f"{sweep.name}: {len(work.study.trials)} trials ({duration(time.monotonic() - started)})"
    )
    print_table(sweep.search, work.study.trials, title)
    return conclude(work, arguments)


def conclude(work: Work, arguments: list[str]) -> int:
    """Print comparison path, best params and next command."""
    folder, top = work.sweep.folder.relative_to(ROOT), work.best()
    print(f"compared  {folder}/trials.png, {work.runs.address} (`make ui`)")
    if top is None:
        print(f"no trial has a value; fix the cause, run `rm -r {folder}`, then sweep again")
        return 1
    print(f"best      trial {top.number}, {work.sweep.search.metric} {top.value:.5g}:\n")
    print(as_yaml(params_of(work.sweep.search, top)))
    words = f" FILE={arguments[0]}" if arguments else ""
    print(f"next      make adopt{words}   writes the best params into params.yaml")
    return 0
