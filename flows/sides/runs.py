"""A side from MLflow: the outputs that a run of the pipeline or a stage recorded."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.sides.cached import ARTIFACTS, link_outputs, recorded_code
from flows.sides.records import OUTPUTS, Record, plain
from gptmill.comparing.side import Side
from tasks.project.graph import stages
from tasks.tracking import store
from tasks.tracking.delivery import find_run
from tasks.tracking.runs import making_run

OUT, DEP, STAGE = "dvc.out.", "dvc.dep.", "stage."
DEVICE = "device."


def side_of_run(letter: str, name: str, temporary: Path) -> Side | None:
    """Return the side of a run, None if MLflow has no such run.

    A run records its outputs by hash, and DVC's cache has the files. Without the cache, the models
    logged by the run take their place. Raises ValueError where neither has an output.
    """
    run = find_run(name)
    if run is None:
        return None
    runs = [run, *_stage_runs(run)]
    return linked_side(
        letter,
        name,
        temporary / letter,
        recorded=_recorded(runs),
        runs=runs,
        origin=f"MLflow run {run.info.run_name}",
    )


def linked_side(
    letter: str,
    name: str,
    folder: Path,
    *,
    recorded: Mapping[str, str],
    runs: list[Any],
    origin: str,
    absent: Mapping[str, str] | None = None,
) -> Side:
    """Return the side of recorded outputs, hashes by path, and of the runs behind the outputs.

    Raises ValueError where neither DVC's cache nor a logged model has an output.
    """
    missing = link_outputs(recorded, folder)
    lacking = [path for path in missing if not _from_models(runs, path, folder)]
    if len(lacking) == len(recorded):
        raise ValueError(
            f"{letter}={name}: neither DVC's cache nor the models of {origin} have an output of "
            "a stage"
        )
    why = "neither DVC's cache nor a model of the run has the file"
    reasons = {path.removeprefix(ARTIFACTS): why for path in lacking} | dict(absent or {})
    record = {**record_of(runs), OUTPUTS: dict(recorded)}
    return Side(letter, name, folder, origin=origin, absent=reasons, record=record)


def _stage_runs(run: Any) -> list[Any]:
    """Return the runs of a pipeline's stages: the tag `stage.NAME` holds `STATE:ID`."""
    tags = run.data.tags.items()
    names = [value.partition(":")[2] for tag, value in tags if tag.startswith(STAGE)]
    found = [find_run(name) for name in names if name]
    return [stage for stage in found if stage is not None]


def _recorded(runs: list[Any]) -> dict[str, str]:
    """Return the hashes of outputs, and of the outputs that the stages read."""
    hashes: dict[str, str] = {}
    for prefix in (OUT, DEP):
        for run in runs:
            for tag, digest in run.data.tags.items():
                if tag.startswith(f"{prefix}{ARTIFACTS}"):
                    hashes.setdefault(tag.removeprefix(prefix), digest)
    return hashes


def _from_models(runs: list[Any], path: str, folder: Path) -> bool:
    """Fetch a missing output from the model that the run of its stage logged."""
    from mlflow.artifacts import download_artifacts

    for run in runs:
        if f"{OUT}{path}" not in run.data.tags or run.outputs is None:
            continue
        for model in run.outputs.model_outputs:
            place = folder.with_name(f"{folder.name}.{model.model_id}")
            place.mkdir()
            uri = f"models:/{model.model_id}"
            files = Path(download_artifacts(artifact_uri=uri, dst_path=str(place)))
            for config in sorted((files / "artifacts").glob("*/config.json")):
                target = folder / path.removeprefix(ARTIFACTS)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(config.parent)
                return True
    return False


def makers(hashes: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield each stage with the run that made the stage's outputs, hashes by path."""
    if store.is_own(store.tracking_uri()) and not store.STORE.exists():
        return
    for stage, entry in stages().items():
        outputs = {out: hashes[out] for out in entry["outs"] if out in hashes}
        run = making_run(outputs) if outputs else None
        if run is not None:
            yield stage, run


def commit_of(tags: Mapping[str, str]) -> str:
    """Return the commit in a run's tags, empty without one."""
    commit = tags.get("mlflow.source.git.commit", "")[:7]
    return f"{commit} with changes" if commit and tags.get("git.dirty") == "true" else commit


def record_of(runs: list[Any]) -> Record:
    """Return commits, params, data, code and environment of runs.

    DVC's run cache has the hashes of the code.
    """
    record: Record = {"params": {}, "data": {}, "environment": {}}
    commits = dict.fromkeys(filter(None, (commit_of(one.data.tags) for one in runs)))
    code: dict[str, str] = {}
    if commits:
        record["commit"] = {"commit": ", ".join(commits)}
    for one in runs:
        stage = one.data.tags.get("stage", "")
        code |= recorded_code(one.data.tags.get("dvc.stage_key", ""))
        for name, value in one.data.params.items():
            kind = "environment" if name.startswith(DEVICE) else "params"
            full = name if name == "seed" else f"{stage}.{name}"
            record[kind][full] = plain(value)
        for tag, digest in one.data.tags.items():
            if tag.startswith(DEP) and not tag.startswith(f"{DEP}{ARTIFACTS}"):
                record["data"][tag.removeprefix(DEP)] = digest
    return {**record, "code": code} if code else record
