"""Runs in MLflow for stages whose outputs came from DVC's run cache or a remote."""

from gptmill.device import RuntimeConfig
from gptmill.figures import read_figures
from tasks.frame.recorded import MODELS
from tasks.frame.resume import Training, key
from tasks.frame.run import Run, numbers
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.project.params import checked
from tasks.tracking.outbox import finish_runs
from tasks.tracking.record import END_S, SIGNAL_S, StageRun
from tasks.tracking.runs import lacks_maker

TAG = "restored"


def record_restored(stage: str, *, parent: str | None = None) -> bool:
    """Record outputs that no run in MLflow made; return whether there was such an output.

    The record lies in dvc.lock and in the outputs: params, hashes, figures, curves, the model. No
    run is recorded while MLflow is away.
    """
    outputs = graph.locked_outputs(stage)
    if not outputs or not lacks_maker(outputs):
        return False
    finish_runs(END_S)  # the run may wait in the outbox of an earlier process
    if not lacks_maker(outputs):
        return False
    description = (
        f"{graph.stages()[stage]['desc']}\n\nRestored from DVC's cache or a remote, not executed: "
        "params, hashes and figures are those of dvc.lock and the outputs."
    )
    tracking = StageRun(stage, description=description, parent=parent, watched=False)
    try:
        _record(stage, tracking)
        tracking.outputs(outputs)
    except BaseException:
        tracking.end("KILLED", patience=SIGNAL_S)
        raise
    tracking.end("FINISHED")
    return True


def _record(stage: str, tracking: StageRun) -> None:
    entry, out = graph.lock()[stage], ROOT / "artifacts" / stage
    hashes = {dep["path"]: dep["md5"] for dep in entry.get("deps", ())}
    params = entry.get("params", {}).get("params.yaml", {})
    tracking.tags({TAG: "true", "dvc.stage_key": key(entry)})
    tracking.params({**params.get(stage, {}), "seed": params.get("seed")})
    tracking.inputs({path: hashes[path] for path in graph.inputs(stage) if path in hashes})
    run = Run(tracking, Training(stage, entry), runtime=checked(RuntimeConfig, "runtime"))
    run.out = out
    run.replay_curves()
    run.record(numbers(read_figures(out)))
    if stage in MODELS:
        kind, place = MODELS[stage]
        run.log_model(kind, out / place)
    run.finish(out)
