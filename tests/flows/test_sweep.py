"""A sweep: bad files, what each trial tries, and whole sweeps that are killed and go on."""

import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from ruamel.yaml import YAML

from flows.sweeps import file as sweep_file
from flows.sweeps.file import FILE, Search, Sweep, parse, read
from flows.sweeps.params import edited
from flows.sweeps.search import best, open_study, params_of, record, suggest
from tasks.project.environment import ROOT
from tests.support.project import (
    Project,
    commit,
    copy_tree,
    tiny_project,
)

GOOD: dict[str, Any] = {
    "stage": "pretrain",
    "metric": "validation_loss",
    "direction": "minimize",
    "sampler": "grid",
    "seed": 1,
    "trials": "all",
    "set": {"pretrain.steps": 8},
    "space": {"pretrain.learning_rate": [1e-3, 1e-2], "pretrain.optimizer.warmup": [0.1, 0.3]},
}
RATE = "pretrain.learning_rate"


def test_the_files_that_come_with_the_project_are_good() -> None:
    assert read(FILE).search.n_trials == 6
    book = read("configs/sweeps/book.yaml").search
    whole = book.model_copy(update={"sampler": "grid", "trials": "all"})
    assert len(whole.grid) == 6480
    assert all(sweep_file.refusal(point) is None for point in whole.grid[:200])


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"stage": "train"}, "stage is train; the stages are tokenize, sample"),
    ({"sampler": "cma"}, "sampler: input should be 'grid', 'random' or 'tpe' (given: \"cma\")"),
    ({"seed": "one"}, 'seed: input should be a valid integer (given: "one")'),
    ({"pruner": "median"}, "pruner is unknown: remove the key or correct the name"),
    ({"trials": 0}, "trials: must be a whole number above 0, or all (given: 0)"),
    ({"sampler": "tpe"}, "trials is all; with sampler tpe, trials must be a number"),
    ({"space": {}}, "space: dictionary should have at least 1 item"),
    ({"space": {RATE: []}}, "space.pretrain.learning_rate: list should have at least 1 item"),
    ({"space": {RATE: [1, 1]}}, "space.pretrain.learning_rate holds 1 twice"),
    ({"space": {RATE: {"low": 2, "high": 1}}}, "low is 2, high 1; low must be below high"),
    ({"space": {RATE: {"low": 1e-3, "high": 1e-2}}}, "a grid needs a list of choices, or a step"),
    ({"space": {RATE: {"low": 0, "high": 1, "log": True}}}, "with log, low must be above 0"),
    ({"space": {RATE: {"low": 0, "high": 1, "step": 3}}}, "step is 3; step must be above 0"),
    ({"space": {RATE: {"low": 0, "high": 1, "hgh": 1}}}, "learning_rate.hgh is unknown"),
    ({"space": {RATE: {"low": 0, "high": "1"}}}, 'learning_rate.high: must be a number (given: "1'),
    ({"space": {RATE: 3}}, "space.pretrain.learning_rate: "),
    ({"space": {"pretrain.rate": [1]}}, "params.yaml has no pretrain.rate"),
    ({"set": {"pretrain.stepz": 8}}, "params.yaml has no pretrain.stepz"),
    ({"space": {"lora.epochs": [1]}}, "lora.epochs changes nothing: tokenize and sample and"),
    ({"set": {"pretrain.optimizer": {}}}, "pretrain.optimizer.warmup is set by"),
    ({"set": {RATE: 1e-3}}, "pretrain.learning_rate is set by pretrain.learning_rate already"),
    ({"space": {RATE: [1e-3, -1]}}, "learning_rate: input should be greater than 0 (given: -1)"),
    (
        {"space": {"pretrain.optimizer.warmup": [2]}},
        "warmup is 2.0 but must be a fraction from 0 to 1",
    ),
    ({"space": {"runtime.device": ["tpu"]}}, "runtime"),
    ({"set": {"seed": "one"}}, "params.yaml: seed: input should be a valid integer"),
    (
        {"sampler": "tpe", "trials": 5, "space": {RATE: {"low": -1, "high": 1}}},
        "at pretrain.learning_rate -1: params.yaml: pretrain.learning_rate: input should be",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_a_bad_file_is_one_sentence_before_any_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^sweep\.yaml: ") as error:
        parse({**GOOD, **change}, "sweep.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("no.yaml", "no.yaml is missing"),
        ("/etc/passwd", "passwd is outside"),
        ("README.md", "README.md is not YAML"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(file: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(file)
    assert "\n" not in str(error.value)


def test_a_metric_that_the_stage_does_not_write_is_named() -> None:
    search = Search.model_validate({**GOOD, "metric": "loss"})
    with pytest.raises(ValueError, match=r"metric is loss; pretrain writes validation_loss$"):
        sweep_file.require_metric(search, {"validation_loss": 1.5, "name": "a"})


def test_params_yaml_keeps_all_that_is_not_searched() -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert edited(text, {}) == text
    changed = edited(text, {RATE: 0.0012, "pretrain.optimizer.warmup": 1e-05, "seed": 7})
    pairs = list(zip(text.splitlines(), changed.splitlines(), strict=True))
    differ = [new.split("#")[0].strip() for old, new in pairs if old != new]
    own = "{<<: *optimizer, name: muon, final_learning_rate: 0.05, beta_2: 0.95, warmup: 1e-05}"
    assert differ == ["seed: 7", "learning_rate: 0.0012", f"optimizer: {own}"]
    found = YAML(typ="safe").load(changed)["pretrain"]
    assert (found["learning_rate"], found["optimizer"]["warmup"]) == (0.0012, 1e-5)


def drawn(sampler: str, **change: Any) -> Search:
    """Return a search with a choice, a range, a log range and a range of whole numbers."""
    space = {
        RATE: {"low": 1e-4, "high": 1e-2, "log": True},
        "pretrain.optimizer.warmup": {"low": 0.0, "high": 0.35, "step": 0.1},
        "pretrain.batch_tokens": {"low": 1, "high": 16},
        "pretrain.shape": ["laptop", {"emb_dim": 16, "n_layers": 1, "n_heads": 2}],
    }
    return parse({**GOOD, "sampler": sampler, "trials": 20, "space": space, **change}, "x.yaml")


def value(params: dict[str, Any]) -> float | None:
    """Stand in for a training; every batch size that five divides has none."""
    if params["pretrain.batch_tokens"] % 5 == 0:
        return None
    return abs(params[RATE] - 1e-3) * 100 + float(params["pretrain.optimizer.warmup"])


def trials_of(study: optuna.Study, search: Search) -> list[tuple[dict[str, Any], float | None]]:
    return [(params_of(search, trial), trial.value) for trial in study.trials]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_stopped_search_draws_what_one_that_never_stopped_draws(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = drawn(sampler)
    monkeypatch.setattr(sweep_file, "ROOT", tmp_path)
    whole, parts = Sweep(search, "whole", {}), Sweep(search, "parts", {})
    for sweep in (whole, parts):
        sweep.folder.mkdir(parents=True)
    study = open_study(whole)
    for number in range(20):
        params = suggest(search, number, study.trials)
        record(study, search, params, value=value(params), facts={})
    for number in range(20):  # each trial in a process of its own, half of them cut off once
        study = open_study(parts)
        if number % 2:
            suggest(search, number, study.trials)
        params = suggest(search, number, study.trials)
        record(study, search, params, value=value(params), facts={})
    done = trials_of(open_study(whole), search)
    assert done == trials_of(open_study(parts), search)
    assert len({str(params) for params, _ in done}) > 15
    assert {params["pretrain.optimizer.warmup"] for params, _ in done} <= {0.0, 0.1, 0.2, 0.3}
    assert any(isinstance(params["pretrain.shape"], dict) for params, _ in done)
    top = best(search, open_study(whole).trials)
    assert top is not None
    assert top.value == min(value for _, value in done if value is not None)


def test_a_grid_s_order_is_the_seed_s_and_holds_each_combination_once() -> None:
    one, other = parse(GOOD, "x.yaml"), parse({**GOOD, "seed": 2}, "x.yaml")
    assert one.grid != other.grid
    assert sorted(map(str, one.grid)) == sorted(map(str, other.grid))
    assert len({str(point) for point in one.grid}) == one.n_trials == 4


def write_search(project: Project, **change: Any) -> None:
    with (project.root / FILE).open("w", encoding="utf-8") as file:
        YAML().dump({**GOOD, **change}, file)


def study_of(project: Project) -> optuna.Study:
    (path,) = project.root.glob(".state/sweeps/*/study.db")
    return optuna.load_study(study_name=None, storage=f"sqlite:///{path}")


def worktrees(project: Project) -> list[str]:
    done = project.run("git", "worktree", "list", "--porcelain")
    return [line for line in done.stdout.splitlines() if line.startswith("worktree ")][1:]


def test_a_sweep_from_its_first_trial_to_adopted_params(tmp_path: Path) -> None:
    project = tiny_project(tmp_path)
    note = (
        project.root / "tasks" / "processes" / "receipt.py"
    )  # not committed, and it travels all the same
    note.write_text(note.read_text(encoding="utf-8") + "\nprint('as it lies here')\n")
    write_search(project, set={}, space={RATE: [1e-3, 1e-2, 1e38]})
    before = (project.root / "params.yaml").read_text(encoding="utf-8")
    done = project.python("-m", "flows", "sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as it lies here" in done.stdout
    assert "training diverged" in done.stdout.split("3 trials")[-1].replace("\n", " ")
    study = study_of(project)
    states = {params_rate(trial): trial.state.name for trial in study.trials}
    assert states == {1e-3: "COMPLETE", 1e-2: "COMPLETE", 1e38: "FAIL"}
    assert worktrees(project) == []
    assert (project.root / "params.yaml").read_text(encoding="utf-8") == before
    assert project.run("git", "stash", "list").stdout == ""

    runs = {run["name"]: run for run in project.runs()}
    (sweep,) = [run for name, run in runs.items() if name.startswith("sweep-")]
    assert sweep["status"] == "FINISHED"
    for trial in study.trials:
        run = runs[f"trial-{trial.number}"]
        assert run["status"] == ("FAILED" if trial.value is None else "FINISHED")
        assert project.tags(run["id"])["mlflow.parentRunId"] == sweep["id"]
        commit_of = project.tags(run["id"])["mlflow.source.git.commit"]
        text = project.run("git", "show", f"{commit_of}:params.yaml").stdout
        assert YAML(typ="safe").load(text)["pretrain"]["learning_rate"] == params_rate(trial)
    stage_runs = [run for run in project.runs() if run["name"] == "pretrain"]
    parents = {project.tags(run["id"])["mlflow.parentRunId"] for run in stage_runs}
    assert parents == {runs[f"trial-{number}"]["id"] for number in range(3)}
    assert {project.tags(run["id"])["git.dirty"] for run in stage_runs} == {"false"}
    assert [run["name"] for run in project.runs()].count("tokenize") == 1  # then it is restored
    shown = project.root / "mlflow" / "artifacts" / sweep["id"] / "artifacts"
    assert (shown / "plots" / "trials.png").exists()
    assert (shown / "trials.csv").read_text(encoding="utf-8").count("\n") == 4

    assert models(project) == []  # three of a kind would lie there
    done = project.python("-m", "flows", "adopt")
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = [run for run in runs.values() if run["name"] == f"trial-{study.best_trial.number}"]
    (model,) = models(project)
    assert project.tags(model)["mlflow.parentRunId"] == trial["id"]
    assert "pretrain: restored" in done.stdout
    assert [run["name"] for run in project.runs()].count("pretrain") == 3  # none was added
    text = (project.root / "params.yaml").read_text(encoding="utf-8")
    assert YAML(typ="safe").load(text)["pretrain"]["learning_rate"] == params_rate(study.best_trial)
    done = project.python("-m", "flows", "sweep")  # all is done: it only shows
    assert done.returncode == 0
    assert "3 of 3 trials are done and kept" in done.stdout


def models(project: Project) -> list[str]:
    """Return the runs that have logged a model."""
    with sqlite3.connect(project.root / "mlflow" / "mlflow.db") as store:
        asked = "select source_run_id from logged_models where lifecycle_stage = 'active'"
        return [row[0] for row in store.execute(asked)]


def params_rate(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.params[RATE])


WAITS = '''
"""NAME: a stage that waits."""

import time

from tasks.frame.run import Metrics, Run
from tasks.frame.stage import Section, stage


class Waits(Section):
    steps: int


@stage
def NAME(params: Waits, run: Run) -> Metrics:
    for step in range(params.steps):
        run.step(step + 1, params.steps, {"train/loss": 1.0})
        time.sleep(0.1)
    (run.out / "written.txt").write_text(str(params.steps))
    return {"waited": params.steps}
'''

GRAPH = """
stages:
  sample:
    desc: waits
    cmd: exec python -m tasks sample
    deps: [tasks/sample.py]
    params: [sample]
    outs: [artifacts/sample]
    meta: {main: waited}
"""


@pytest.fixture
def waiting(tmp_path: Path) -> Project:
    """Return a project of one stage that waits, and a grid of three trials over it."""
    project = copy_tree(tmp_path)
    code = WAITS.replace("NAME", "sample")
    (project.root / "tasks" / "sample.py").write_text(code, encoding="utf-8")
    (project.root / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    path = project.root / "params.yaml"
    shared = path.read_text(encoding="utf-8").split("tokenize:")[0]  # what every stage is given
    path.write_text(shared + "sample: {steps: 1}\n", encoding="utf-8")
    space = {"sample.steps": [3, 61, 4]}
    write_search(project, stage="sample", metric="waited", seed=4, set={}, space=space)
    commit(project, "a stage that waits")
    return project


def wait_for_end(project: Project) -> list[str]:
    """Return what still runs of a sweep after a while, in the project or in a worktree of it."""
    import psutil

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        places = [process.info["cwd"] or "" for process in psutil.process_iter(["cwd"])]
        left = [place for place in places if place.startswith(str(project.root))]
        if not left:
            return []
        time.sleep(0.2)
    return left


def start(project: Project, until: str) -> subprocess.Popen[str]:
    process = project.start("python", "-m", "flows", "sweep")
    read_until(process, until)
    return process


def read_until(process: subprocess.Popen[str], until: str) -> None:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if until in line:
            return
    raise AssertionError("".join(lines))


def stop(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    assert process.stdout is not None
    process.stdout.read()
    process.stdout.close()
    assert process.wait(timeout=60) == {9: -9, 2: 130, 15: 143}[number]


SETTLE = """
from tasks.project.environment import set_environment
set_environment()
from tasks.tracking import runs, store
runs.finish_runs()
runs.close_dead_runs(store.connect())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "stops", [[signal.SIGKILL], [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]]
)
def test_a_sweep_that_is_stopped_goes_on_without_loss(
    waiting: Project, stops: list[signal.Signals]
) -> None:
    for number in stops:
        process = start(waiting, "")  # the sweep is announced
        second = waiting.start("python", "-m", "flows", "sweep")
        read_until(
            second, f"waiting for process {process.pid} (`make sweep`), which works in this project"
        )
        stop(second, signal.SIGTERM)
        read_until(process, "step 1/61")
        stop(process, number)
        assert wait_for_end(waiting) == []
        settled = waiting.python("-c", SETTLE)  # what a killed trial had no time to send
        assert settled.returncode == 0, settled.stderr
        statuses = {run["name"].split("-")[0]: run["status"] for run in waiting.runs()}
        assert statuses["sweep"] == statuses["trial"] == statuses["sample"] == "KILLED"
        assert len(worktrees(waiting)) == 1  # of the trial that was cut off
    cut_off = [run["name"] for run in waiting.runs()].count("sample")
    done = waiting.python("-m", "flows", "sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    grid = parse_grid()
    study = study_of(waiting)
    assert [trial.value for trial in study.trials] == grid
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert study.best_value == 3
    assert worktrees(waiting) == []
    runs = waiting.runs()
    assert {run["status"] for run in runs if run["name"] != "sample"} == {"FINISHED"}
    names = [run["name"] for run in runs if run["name"] != "sample"]
    assert sorted(name.split("-")[0] for name in names) == ["sweep", *["trial"] * 3]
    finished = [run for run in runs if run["name"] == "sample" and run["status"] == "FINISHED"]
    assert len(finished) == 3
    assert cut_off > len(stops)


def parse_grid() -> list[float]:
    search = Search.model_validate({**GOOD, "seed": 4, "space": {"sample.steps": [3, 61, 4]}})
    return [float(point["sample.steps"]) for point in search.grid]


@pytest.mark.slow
def test_a_trial_that_is_done_costs_nothing_where_only_the_record_is_lost(
    waiting: Project,
) -> None:
    write_search(waiting, stage="sample", metric="waited", set={}, space={"sample.steps": [2]})
    assert waiting.python("-m", "flows", "sweep").returncode == 0
    (path,) = waiting.root.glob(".state/sweeps/*/study.db")
    path.unlink()
    done = waiting.python("-m", "flows", "sweep")
    assert done.returncode == 0, done.stderr
    assert [run["name"] for run in waiting.runs()].count("sample") == 1  # from the run cache
    assert [run["name"] for run in waiting.runs()].count("trial-0") == 1
    assert [trial.value for trial in study_of(waiting).trials] == [2]


def test_a_mistake_that_the_first_trial_shows_stops_the_sweep(waiting: Project) -> None:
    write_search(waiting, stage="sample", metric="missing", set={}, space={"sample.steps": [1]})
    done = waiting.python("-m", "flows", "sweep")
    assert done.returncode == 2
    assert done.stderr == "metric is missing; sample writes waited\n"
    assert {run["status"] for run in waiting.runs() if run["name"] != "sample"} == {"FAILED"}
    done = waiting.python("-m", "flows", "adopt")
    assert done.returncode == 2
    assert done.stderr.startswith("no trial of sweep-")
