"""One name, everywhere: what is written in two places is compared as a set."""

import re
import subprocess
from pathlib import Path

import pytest
from pydantic import BaseModel

from gptmill.records import IGNORED
from tasks.frame.stage import load
from tasks.project.environment import QUIET, ROOT
from tasks.project.graph import (
    ancestors,
    lock,
    params,
    read_yaml,
    stages,
    upstream,
)
from tasks.shared.ledger import trained

SHARED = {"seed", "runtime", "resume", "shared", "gate"}


def modules(folder: str) -> set[str]:
    return {path.stem for path in ROOT.glob(f"{folder}/[!_]*.py")}


def test_modules_stages_and_sections_have_the_same_names() -> None:
    assert modules("tasks") == set(stages()) == set(params()) - SHARED


@pytest.mark.parametrize(
    ("top", "most", "packages"),
    [("src", 12, 13), ("tasks", 12, 12), ("flows", 12, 12), ("tests", 15, 15)],
)
def test_folders_can_be_taken_in_at_a_glance(top: str, most: int, packages: int) -> None:
    for folder in (ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir())):
        files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        folders = [path for path in folder.iterdir() if list(path.rglob("*.py"))]
        assert len(files) <= most, folder
        assert len(folders) <= packages, folder
        assert not [name for name in files if name.startswith("_") and name != "__main__.py"]


def test_every_stage_has_a_test_file() -> None:
    files = {
        path.stem.removeprefix("test_") for path in (ROOT / "tests" / "tasks").glob("test_*.py")
    }
    assert set(stages()) <= files


@pytest.mark.parametrize("name", list(stages()))
def test_a_stage_is_named_once(name: str) -> None:
    stage = stages()[name]
    assert load(name).name == name
    assert stage["cmd"] == f"exec python -m tasks {name}"
    assert all(f"{out}/".startswith(f"artifacts/{name}/") for out in stage["outs"])
    assert set(stage["params"]) - SHARED == {name}
    assert issubclass(load(name).section, BaseModel)
    assert load(name).params() is not None  # params.yaml as it stands is valid


def test_make_lists_every_stage_and_every_command() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  ([\w-]+) ", done.stdout, re.MULTILINE))
    assert set(stages()) <= listed
    assert modules("flows/commands/*") - {"stage"} <= listed


def test_the_documented_stages_are_in_the_graph_s_order() -> None:
    text = (ROOT / "docs" / "stages.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert listed == [name for name in stages() if name in listed]
    assert len(listed) >= 9


def test_metrics_and_plots_are_declared_where_a_stage_writes_them() -> None:
    content = read_yaml(ROOT / "dvc.yaml")
    measured = [name for name in stages() if load(name).section.quality]
    assert content["metrics"] == [f"artifacts/{name}/metrics.json" for name in measured]
    drawn = {name: plot["y"] for plots in content["plots"] for name, plot in plots.items()}
    for name in trained():
        files = [f"artifacts/{name}/{table}.csv" for table in ("training", "evaluations")]
        assert drawn[name] == dict(zip(files, ("train_loss", "val_loss"), strict=True))


# pygtrie, through which DVC keeps its paths, warns of a change of its own
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
def test_the_graph_is_dvc_s() -> None:
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        graph = repo.index.graph
        for stage in repo.index.stages:
            if stage.addressing in stages():
                reads = {found.addressing for found in graph.successors(stage)}
                assert reads - {"data.dvc"} == set(upstream(stage.addressing))


def test_ancestors_come_before_in_the_file() -> None:
    order = list(stages())
    for name in order:
        assert all(order.index(before) < order.index(name) for before in ancestors(name))


@pytest.mark.parametrize(
    ("kind", "stale"),
    [
        ("labelled", {"split", "lora", "classify", "evaluate"}),
        ("instructions", {"split", "instruct", "evaluate"}),
        ("text", {"tokenize", "sample", "pretrain", "evaluate"}),
    ],
)
def test_a_new_file_stales_what_reads_it_and_no_more(kind: str, stale: set[str]) -> None:
    changed = {f"data/{kind}", f"data/manifest/{kind}.json"}
    of_other_kinds = {"labelled": "instructions", "instructions": "labelled"}.get(kind)
    found = set()
    for name, stage in stages().items():  # in an order in which a stage comes after its inputs
        if any(_lies_in(dep, changed) for dep in stage["deps"]):
            found.add(name)
            # the other kind's rows come out of split as they were
            changed |= {out for out in stage["outs"] if out != f"artifacts/split/{of_other_kinds}"}
    assert found == stale


def _lies_in(path: str, folders: set[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def test_the_folder_mlflow_does_not_shadow_the_package() -> None:
    import mlflow

    assert list((ROOT / "mlflow").glob("*.py")) == []
    assert Path(mlflow.__file__).parent != ROOT / "mlflow"


def test_dvc_lock_is_of_these_stages() -> None:
    assert set(lock()) <= set(stages())


def test_no_tool_reports_home() -> None:
    assert QUIET["DO_NOT_TRACK"] == QUIET["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert QUIET["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert "analytics = false" in (ROOT / ".dvc" / "config").read_text(encoding="utf-8")


def test_no_param_has_a_name_that_dvc_leaves_out_of_its_keys() -> None:
    """DVC drops `size` and `nfiles` from a run's key wherever they stand, params too.

    Two runs that differ in such a param only would be one, and the second be given the
    outputs of the first.
    """

    def names(content: object) -> set[str]:
        if not isinstance(content, dict):
            return set()
        return set(content).union(*(names(value) for value in content.values()))

    assert names(params()).isdisjoint({"size", "nfiles"})


def test_the_record_is_of_the_values_that_params_yaml_gives_each_stage() -> None:
    """However params.yaml writes them: shared or not, the values are what a stage depends on."""
    unchanged = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml", "dvc.lock"]
    if subprocess.run(unchanged, cwd=ROOT).returncode:
        pytest.skip("params.yaml or dvc.lock has edits that no run has recorded yet")
    for name, entry in lock().items():
        recorded = entry["params"]["params.yaml"]
        assert recorded == {section: params().get(section) for section in recorded}, name


def test_dvc_and_we_leave_out_the_same_files() -> None:
    lines = (ROOT / ".dvcignore").read_text(encoding="utf-8").split()
    assert lines == [f"**/{name}" for name in IGNORED]
