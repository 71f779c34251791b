"""The whole pipeline on a tiny configuration, through its doors, with equal bytes behind each."""

import re
import shutil
import sqlite3
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from docs.site import artifacts
from gptmill.figures import read_figures
from gptmill.files import md5, read_json
from tasks.frame.stage import load
from tasks.project.graph import stages
from tests.support.project import Project, commit, tiny_project

TABLES = ("params", "metrics")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def first(project: Project) -> str:
    """Return what the first `make pipeline` of the project printed, by a pipe."""
    done = project.python("-m", "flows", "pipeline")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def query(project: Project, text: str, *values: str) -> list[str]:
    """Return the first column of a query of MLflow's store."""
    with sqlite3.connect(project.root / "mlflow" / "mlflow.db") as store:
        return [str(row[0]) for row in store.execute(text, values)]


def lock(project: Project) -> dict[str, str]:
    """Return the hash of every output."""
    content = YAML(typ="safe").load(project.root / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for stage in content.values() for out in stage["outs"]}


def test_every_stage_runs_once_and_shows_its_figure(project: Project, first: str) -> None:
    assert set(lock(project)) == {path for stage in stages().values() for path in stage["outs"]}
    assert "ran tokenize, sample, pretrain" in first
    assert "pretrain: train a GPT from scratch, or go on from weights\npretrain ran in " in first
    assert " INFO " not in first  # no line of Prefect's
    assert re.search(r"│ pretrain .* validation_loss [\d.]+ \(baseline:", first)
    assert "gptmill chat artifacts/instruct" in first
    assert "artifacts/evaluate/report.md" in first
    (log,) = re.findall(r"^log       (.+)$", first, re.MULTILINE)
    assert "Task run 'pretrain' - step 12/12" in (project.root / log).read_text(encoding="utf-8")


def test_second_run_executes_nothing_and_says_so(project: Project, first: str) -> None:
    before = lock(project)
    done = project.python("-m", "flows", "pipeline")
    assert done.returncode == 0, done.stderr
    for stage in stages():
        assert f"Task run '{stage}' - Finished in state Cached('unchanged" in project.log()
        assert f"{stage} is up to date: " in done.stdout
    assert "nothing ran" in done.stdout
    assert lock(project) == before


def test_dvc_repro_in_a_second_clone_makes_the_same_bytes(
    project: Project, first: str, tmp_path: Path
) -> None:
    clone = Project(tmp_path / "clone")
    assert project.run("git", "clone", "-q", str(project.root), str(clone.root)).returncode == 0
    done = clone.run("cp", "-r", str(project.root / "data"), str(clone.root / "data"))
    assert done.returncode == 0
    done = clone.run("dvc", "repro")  # the line of the README, without Prefect
    assert done.returncode == 0, done.stdout + done.stderr
    assert lock(clone) == lock(project)


def test_runs_are_nested_finished_and_tagged_with_hashes(project: Project, first: str) -> None:
    runs = {run["name"]: run for run in project.runs()}
    assert {run["status"] for run in runs.values()} == {"FINISHED"}
    parents = [run["id"] for run in project.runs() if run["name"].startswith("pipeline ")]
    hashes = lock(project)
    for stage in stages():
        tags = project.tags(runs[stage]["id"])
        assert tags["mlflow.parentRunId"] in parents
        for path in stages()[stage]["outs"]:
            assert tags[f"dvc.out.{path}"] == hashes[path]
    assert project.tags(parents[0])["stage.pretrain"] == f"ran:{runs['pretrain']['id']}"
    assert project.tags(parents[0])["base"] == "pretrain"
    metrics = query(project, "select key from metrics where run_uuid = ?", parents[0])
    assert {"classify_f1", "bag_of_words_f1", "general_assistant_passed"} <= {*metrics}
    cost = query(project, "select key from metrics where run_uuid = ?", runs["sample"]["id"])
    assert {"cost/seconds", "cost/cpu_seconds", "cost/peak_memory_gb"} <= {*cost}
    (report,) = project.root.glob(f"mlflow/artifacts/{parents[0]}/artifacts/report.html")
    assert f"runs/{runs['sample']['id']}" in report.read_text(encoding="utf-8")


def test_the_reference_names_every_file_tag_and_metric(project: Project, first: str) -> None:
    for stage, described in artifacts.FILES.items():
        folder = project.root / "artifacts" / stage
        files = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        }
        assert not [name for name in files if not _named(name, described)], stage
    tags = {tag for run in project.runs() for tag in project.tags(run["id"])}
    assert not [tag for tag in tags if not _named(tag, artifacts.TAGS)]
    metrics = query(project, "select distinct key from metrics")
    folders = {stage: project.root / "artifacts" / stage for stage in artifacts.FILES}
    figures = {key for folder in folders.values() for key in read_figures(folder)}
    assert not [key for key in {*metrics} - figures if not _named(key, artifacts.METRICS)]
    for stage, folder in folders.items():
        quality = load(stage).section.quality
        written = read_json(folder / "metrics.json") if quality else {}
        assert set(written) == set(quality), stage


def _named(name: str, described: dict[str, str]) -> bool:
    """Return whether a name matches a pattern; PATH, NAME and KIND stand for anything."""
    patterns = [word for line in described for word in line.split(", ")]
    words = [re.sub("PATH|NAME|KIND", "*", word) for word in patterns]
    return any(fnmatch(name, f"{word}*" if word.endswith("/") else word) for word in words)


def test_logged_models_carry_their_figures_and_those_of_the_evaluation(
    project: Project, first: str
) -> None:
    sources = {
        "pretrain": ("artifacts/tokenize", "validation_loss", "pretrain_bits_per_byte"),
        "lora": ("artifacts/split/labelled", "test_accuracy", "lora_f1"),
        "classify": ("artifacts/split/labelled", "test_accuracy", "classify_f1"),
        "instruct": ("artifacts/split/instructions", "validation_loss", "instruct_right"),
    }
    found = (
        "select metric_name from logged_model_metrics join logged_models using (model_id)"
        " where name = ? and dataset_name = ?"
    )
    for name, (dataset, *figures) in sources.items():
        assert {*figures} <= {*query(project, found, name, dataset)}
    assert "general_assistant_passed" in query(
        project, found, "instruct", "data/questions/general.jsonl"
    )
    assert not query(
        project, "select metric_name from logged_model_metrics where metric_name like 'system/%'"
    )


def test_predictions_and_answers_are_tables(project: Project, first: str) -> None:
    runs = _ids(project)
    tables = {"classify": "predictions", "instruct": "answers", "evaluate": "general_answers"}
    for stage, name in tables.items():
        place = project.root / "mlflow" / "artifacts" / runs[stage] / "artifacts" / f"{name}.json"
        assert {"columns", "data"} <= {*read_json(place)}
        assert f'"{name}.json"' in project.tags(runs[stage])["mlflow.loggedArtifacts"]


@pytest.mark.slow
def test_outputs_without_a_run_get_one_with_a_model(
    project: Project, first: str, tmp_path: Path
) -> None:
    clone = Project(tmp_path / "clone")
    assert project.run("git", "clone", "-q", str(project.root), str(clone.root)).returncode == 0
    shutil.copytree(project.root / "data", clone.root / "data")
    shutil.copy(project.root / "dvc.lock", clone.root)
    (clone.root / ".dvc/config.local").write_text(
        f"[cache]\n    dir = {project.root / '.dvc/cache'}\n"
    )
    assert clone.run("dvc", "checkout").returncode == 0
    for _ in range(2):
        done = clone.python("-m", "flows", "stage", "classify")
        assert done.returncode == 0, done.stderr
    (run,) = clone.runs()  # the second time there is a run
    assert (run["status"], clone.tags(run["id"])["restored"]) == ("FINISHED", "true")
    found = "select metric_name from logged_model_metrics join logged_models using (model_id)"
    assert "test_accuracy" in query(clone, found)
    params, metrics = (f"select key from {table} where run_uuid = ?" for table in TABLES)
    executed = _ids(project)["classify"]
    assert {*query(clone, params, run["id"])} <= {*query(project, params, executed)}
    recorded = {*query(clone, metrics, run["id"])}
    assert {"train/loss", "val/accuracy", "test_accuracy"} <= recorded
    assert recorded <= {*query(project, metrics, executed)}
    assert lock(clone) == lock(project)


def _ids(project: Project) -> dict[str, str]:
    return {run["name"]: run["id"] for run in project.runs()}


def test_outputs_the_cache_and_mlflow_share_the_bytes_of_weights(
    project: Project, first: str
) -> None:
    logged = list(project.root.glob("mlflow/artifacts/**/model.safetensors"))
    names = ("pretrain", "lora/merged", "classify", "instruct")
    for weights in (project.root / "artifacts" / name / "model.safetensors" for name in names):
        digest = md5(weights)
        assert weights.samefile(project.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]), (
            weights
        )
        assert any(weights.samefile(path) for path in logged), weights


def test_artifacts_hold_no_place_and_no_partial_file(project: Project, first: str) -> None:
    files = [path for path in (project.root / "artifacts").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert ".partial" not in path.name
        assert str(project.root).encode() not in path.read_bytes(), path


def test_a_changed_param_runs_what_rests_on_it_and_no_more(project: Project, first: str) -> None:
    project.params({"lora": {"learning_rate": 0.004}})
    commit(project, "another learning rate")
    done = project.python("-m", "flows", "stage", "evaluate")
    assert done.returncode == 2
    assert "`make lora` first" in done.stderr
    done = project.python("-m", "flows", "pipeline")
    assert done.returncode == 0, done.stderr
    assert "ran lora, evaluate" in done.stdout


def test_one_stage_alone_refuses_inputs_that_are_not_the_recorded_ones(
    project: Project, first: str
) -> None:
    file = project.root / "artifacts" / "split" / "labelled" / "test.csv"
    kept = file.read_bytes()
    file.write_bytes(kept + b"ham,one more\n")
    done = project.python("-m", "flows", "stage", "classify")
    file.write_bytes(kept)
    assert done.returncode == 2
    assert "artifacts/split/labelled/test.csv differs from the output of split" in done.stderr
    assert "`make split`" in done.stderr


def test_changed_raw_data_is_refused_also_by_dvc_repro(project: Project, first: str) -> None:
    file = project.root / "data" / "text" / "00.txt"
    kept, pinned = file.read_bytes(), (project.root / "data.dvc").read_bytes()
    file.chmod(0o644)
    file.write_bytes(kept + b" and more")
    done = project.run("dvc", "repro", "tokenize")
    file.write_bytes(kept)
    (project.root / "data.dvc").write_bytes(pinned)
    assert done.returncode != 0
    assert (
        "data/text/00.txt differs from the record in data/manifest/text.json"
        in done.stderr + done.stdout
    )


@pytest.fixture
def worktree(project: Project, first: str, tmp_path: Path) -> Iterator[Project]:
    tree = Project(tmp_path / "tree")
    assert project.run("git", "worktree", "add", "-q", str(tree.root)).returncode == 0
    yield tree
    project.run("git", "worktree", "remove", "--force", str(tree.root))


def test_a_worktree_runs_its_own_source(worktree: Project) -> None:
    source = worktree.root / "src" / "gptmill" / "files.py"
    source.write_text("raise ValueError('this tree is used')\n", encoding="utf-8")
    done = worktree.python("-m", "tasks", "sample")
    assert done.returncode == 2
    assert "this tree is used" in done.stderr
