"""`make compare` and `make report`: sides by folder, revision and run; pages, and refusals."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag
from ruamel.yaml import YAML

from flows.commands.inspect import compare as command
from flows.commands.inspect import report
from flows.sides import cached, facts, resolve, runs
from gptmill.comparing import significance
from tests.library.comparing.planted import place, record, write_side
from tests.support.project import Project, commit

RUN, STAGE_RUN = "0123456789abcdef" * 2, "fedcba9876543210" * 2


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project whose commit records a version better than artifacts/."""
    project = Project(tmp_path)
    assert project.run("git", "init", "-q").returncode == 0
    write_side(tmp_path / "artifacts", wrong=30)
    record(tmp_path)
    (tmp_path / ".gitignore").write_text("/artifacts\n/compare\n/.dvc\n")
    (tmp_path / "params.yaml").write_text("classify: {epochs: 2, rates: [1, 2]}\ngate: {}\n")
    commit(project, "the first version")
    shutil.rmtree(tmp_path / "artifacts")
    write_side(tmp_path / "artifacts", wrong=80)
    for module in (command, report, facts, cached, resolve):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    monkeypatch.setattr(command, "has_champion", lambda: False)
    return project


def test_the_last_commit_and_artifacts_are_the_default(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["A=", "B="]) == 0
    printed = capsys.readouterr().out
    assert "verdict   B is worse on accuracy (classify), F1 of spam (classify)" in printed
    assert "pretrain is not compared: A (HEAD) has no pretrain/model.safetensors" in printed
    assert "B         artifacts (a folder, other than in dvc.lock: classify)" in printed
    assert "page      compare/HEAD-artifacts.html" in printed
    content = json.loads((project.root / "compare/HEAD-artifacts.json").read_text())
    assert content["sides"]["A"]["origin"].endswith("the first version")
    assert "<svg" in (project.root / "compare/HEAD-artifacts.html").read_text()
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_a_pipeline_run_has_the_outputs_of_its_stages(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = resolve.records.outputs(
        resolve.parse_lock((project.root / "dvc.lock").read_text(), "")
    )
    tags = {f"dvc.out.{path}": digest for path, digest in digests.items()}
    store = {
        RUN: run(RUN, {"stage.classify": f"ran:{STAGE_RUN}", "mlflow.source.git.commit": "abc"}),
        STAGE_RUN: run(STAGE_RUN, {**tags, "stage": "classify"}),
    }
    monkeypatch.setattr(runs, "find_run", store.get)
    for name in (RUN, STAGE_RUN):
        assert command.main([f"A={name}", "B=HEAD"]) == 0
        assert "No significant difference between A and B on 9 figures" in capsys.readouterr().out
    shutil.rmtree(project.root / ".dvc")
    with pytest.raises(ValueError, match=f"A={RUN}: neither DVC's cache nor the models"):
        command.main([f"A={RUN}"])


def run(name: str, tags: dict[str, str]) -> Run:
    info = RunInfo(name, "0", "user", "FINISHED", 0, 0, "active", run_name="a run")
    return Run(info, RunData(tags=[RunTag(key, value) for key, value in tags.items()]))


def test_a_report_tells_the_params_the_cost_and_the_mistakes_of_a_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(RUN, {"mlflow.source.git.commit": "abcdef12", "git.dirty": "true"})
    costs = {"cost/seconds": [60.0, 30.5], "cost/cpu_seconds": [50.0], "cost/peak_memory_gb": [2.0]}
    costs["cost/cpu_energy_wh"] = [0.5, 0.25]
    made = Run(made.info, RunData([Metric(name, 1, 0, 0) for name in costs], tags=tags_of(made)))
    version = "models:/gptmill-classifier/1"
    monkeypatch.setattr(facts, "registered", lambda hashes: {version: "promoted, champion"})
    monkeypatch.setattr(runs.store, "is_own", lambda uri: False)
    monkeypatch.setattr(runs, "making_run", lambda outputs: made)
    monkeypatch.setattr(facts.runs, "history", lambda run, name: costs[name])
    monkeypatch.setattr(facts, "run_address", lambda run: f"http://mlflow/{run}")
    facts._reference.cache_clear()
    assert report.main(["RUN=HEAD"]) == 0
    assert "compare/report-HEAD.html" in capsys.readouterr().out
    page = (project.root / "compare/report-HEAD.html").read_text()
    for text in (
        "<tr><td>classify.epochs</td><td>2</td><td>3</td></tr>",
        "<tr><td>classify.rates</td><td>[1, 2]</td><td>(none)</td></tr>",
        "the first version</dd>",
        '<td class="right">90.5</td><td class="right">50.0</td><td class="right">2.00</td>',
        "abcdef1 with changes",
        "<dt>energy CPU</dt><dd>3.000 Wh in split, classify, instruct, evaluate</dd>",
        f'<dd>{version} <span class="soft">promoted, champion</span></dd>',
        f'<a href="http://mlflow/{RUN}">classify</a>',
        "classify: 30 wrong test rows; the 20 most confident",
        "<tr><td>artifacts/classify</td><td>",
        "<svg",
    ):
        assert text in page, text
    monkeypatch.setattr(runs, "making_run", lambda outputs: None)
    assert report.main(["RUN="]) == 0
    page = (project.root / "compare/report-artifacts.html").read_text()
    assert "The params of this run are not recorded" in page
    assert "<dt>date</dt><dd>not recorded</dd>" in page
    for words in (["RUN=nothing"], ["A=HEAD"]):
        with pytest.raises(ValueError, match=r"RUN=nothing is none of these|usage: make report"):
            report.main(words)


def test_commit_code_and_environment_are_those_of_the_making_runs(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "ab" * 32
    folder = project.root / ".dvc/cache/runs/ab" / key
    folder.mkdir(parents=True)
    deps = [{"path": "tasks/classify.py", "md5": "1" * 32}, {"path": "artifacts/x", "md5": "2"}]
    YAML().dump({"deps": deps}, folder / "record")
    tags = {"mlflow.source.git.commit": "abcdef12", "dvc.stage_key": key, "stage": "classify"}
    made = run(RUN, tags)
    made = Run(made.info, RunData(params=[Param("device.model", "a GPU")], tags=tags_of(made)))
    again = run(STAGE_RUN, {**tags, "git.dirty": "true", "dvc.stage_key": ""})
    record = runs.record_of([made, made, again])
    assert record["commit"] == {"commit": "abcdef1, abcdef1 with changes"}
    assert record["code"] == {"tasks/classify.py": "1" * 32}
    monkeypatch.setattr(runs.store, "is_own", lambda uri: False)
    monkeypatch.setattr(runs, "making_run", lambda outputs: made)
    shutil.rmtree(project.root / "artifacts")
    write_side(project.root / "artifacts", wrong=30)
    side = resolve.resolve("A", "artifacts", project.root)
    assert side.record["commit"] == {"commit": "abcdef1"}
    assert side.record["environment"] == {"classify.device.model": "a GPU"}


def tags_of(made: Run) -> list[RunTag]:
    return [RunTag(key, value) for key, value in made.data.tags.items()]


def test_a_checkpoint_folder_is_compared_with_the_data_beside_it(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["A=artifacts/classify", "B=HEAD"]) == 0
    printed = capsys.readouterr().out
    assert "verdict   B is better on accuracy (classify), F1 of spam (classify)" in printed
    assert "exercises is not compared: A (artifacts/classify) has no instruct" in printed
    assert "not known" not in printed


def test_a_damaged_or_missing_output_of_a_commit_is_named(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    with (project.root / "dvc.lock").open() as file:
        outs = YAML(typ="safe").load(file)["stages"]["classify"]["outs"]
    place(project.root, outs[0]["md5"]).write_text("[]")
    assert command.main(["A=HEAD"]) == 0
    assert (
        "classify is not compared: A (HEAD) has no classify/predictions.csv: DVC's cache lacks "
        "artifacts/classify of that commit"
    ) in capsys.readouterr().out
    shutil.rmtree(project.root / ".dvc")
    with pytest.raises(ValueError, match="DVC's cache has none of the outputs"):
        command.main(["A=HEAD"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["A=nothing"],
            "A=nothing is none of these: allowed are a folder .* revision .* run",
        ),
        (["A=.git"], "A=.git is a folder without an artifact of a stage: allowed are"),
        (["B=artifacts/none"], "B=artifacts/none is none of these"),
        (["B=--help"], "B=--help is none of these"),
        (["C=HEAD"], "usage: make compare A=HEAD~1 B=artifacts; .*; given: C=HEAD"),
        (["HEAD"], "usage: make compare"),
    ],
)
def test_other_names_are_refused_in_a_sentence(
    project: Project, arguments: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        command.main(arguments)
    assert not (project.root / "compare").exists()


def test_a_project_without_artifacts_is_told_to_make_them(project: Project) -> None:
    shutil.rmtree(project.root / "artifacts")
    with pytest.raises(ValueError, match="there are no artifacts yet; run `make pipeline`"):
        command.main([])


def test_a_commit_without_a_lock_is_refused(project: Project) -> None:
    (project.root / "dvc.lock").unlink()
    commit(project, "no lock")
    with pytest.raises(ValueError, match="A=HEAD is a commit without a dvc"):
        command.main([])
    assert command.main(["A=HEAD~1"]) == 0
