"""`make adopt`: write the best trial's params into params.yaml, and take its results.

The trial's outputs are in DVC's cache, under a key that the same params lead to: the stage
is brought back from there, not trained again. What the sweep file `set`s for its trials
only (fewer steps, say) is not adopted; then the stage is still to be run.
"""

from flows.commands.run.sweep import alone, named
from flows.dvc.repro import FAILED, repro
from flows.sweeps.params import edited, shown
from flows.sweeps.search import best, open_study, params_of
from gptmill.files import write_text
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.tracking.models import log_adopted


def main(arguments: list[str]) -> int:
    """Adopt the best trial of a sweep."""
    sweep = named(arguments)
    words = f" FILE={arguments[0]}" if arguments else ""
    if not (sweep.folder / "study.db").exists():
        raise ValueError(
            f"{sweep.stem} has no trials with the present code, data and params: "
            f"`make sweep{words}` runs them"
        )
    with alone():
        trials = open_study(sweep).trials
    top = best(sweep.search, trials)
    if top is None:
        raise ValueError(f"no trial of {sweep.name} has a value: `make sweep{words}` goes on")
    params = params_of(sweep.search, top)
    path = ROOT / "params.yaml"
    write_text(path, edited(path.read_text(encoding="utf-8"), params))
    print(
        f"params.yaml: {shown(params)} (trial {top.number}, {sweep.search.metric} {top.value:.5g})"
    )
    if len(trials) < sweep.search.n_trials:
        print(
            f"of {sweep.search.n_trials} trials {len(trials)} are done: `make sweep{words}` goes on"
        )
    if sweep.search.fixed:
        print(
            f"the trials ran with {shown(sweep.search.fixed)}: `make pipeline` trains as you set it"
        )
        return 0
    graph.params.cache_clear()
    graph.stages.cache_clear()
    for stage in sweep.search.stages:
        outcome = repro(stage, on_line=lambda line: print(f"  {line}", flush=True))
        print(f"{stage}: {outcome.state}{f', {outcome.message}' if outcome.message else ''}")
        if outcome.state == FAILED:
            return 1
        log_adopted(stage)
    return 0
