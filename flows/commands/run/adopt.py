"""`make adopt`: adopt the best trial's params and outputs.

The params are written into params.yaml. The trial's outputs are in DVC's cache, under a key
derived from the same params: the stage is restored from the cache, not trained again. Values
that the sweep file `set`s for its trials only (fewer steps, for example) are not adopted; the
stage must then still be run.
"""

from flows.commands.run.sweep import named
from flows.dvc.repro import FAILED, repro
from flows.sweeps.params import edited, shown
from flows.sweeps.search import best, open_study, params_of
from gptmill.files import write_text
from tasks.processes import locks
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.tracking.models import log_adopted


def main(arguments: list[str]) -> int:
    """Adopt the best trial of a sweep."""
    with locks.project("make adopt"):
        return adopt(arguments)


def adopt(arguments: list[str]) -> int:
    """Write the best params and restore the outputs; return the exit status."""
    sweep = named(arguments)
    words = f" FILE={arguments[0]}" if arguments else ""
    if not (sweep.folder / "study.db").exists():
        raise ValueError(
            f"{sweep.stem} has no trials with the present code, data and params: "
            f"run `make sweep{words}` first"
        )
    trials = open_study(sweep).trials
    top = best(sweep.search, trials)
    if top is None:
        raise ValueError(
            f"no trial of {sweep.name} has a value: `make sweep{words}` continues the sweep"
        )
    params = params_of(sweep.search, top)
    path = ROOT / "params.yaml"
    write_text(path, edited(graph.read_text(path), params))
    print(
        f"params.yaml: {shown(params)} (trial {top.number}, {sweep.search.metric} {top.value:.5g})"
    )
    if len(trials) < sweep.search.n_trials:
        print(
            f"{len(trials)} of {sweep.search.n_trials} trials are done: "
            f"`make sweep{words}` continues the sweep"
        )
    if sweep.search.fixed:
        print(
            f"the trials ran with {shown(sweep.search.fixed)}: "
            "`make pipeline` trains with your own values of params.yaml"
        )
        return 0
    graph.forget()
    for stage in sweep.search.stages:
        outcome = repro(stage, on_line=lambda line: print(f"  {line}", flush=True))
        print(f"{stage}: {outcome.state}{f', {outcome.message}' if outcome.message else ''}")
        if outcome.state == FAILED:
            return 1
        log_adopted(stage)
    return 0
