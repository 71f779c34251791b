"""A pipeline run's own record, and runs made again from it: equal, and not equal with a cause."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.nights.causes import UNKNOWN, causes, conditions
from tests.support.project import Project, one_stage_project

ENTRY = {
    "deps": [
        {"path": "data/text", "md5": "a.dir"},
        {"path": "tasks/sample.py", "md5": "b"},
        {"path": "artifacts/tokenize", "md5": "c.dir"},
    ],
    "params": {"params.yaml": {"sample": {"times": 1}}},
}
HERE = {"packages": {"torch": "2.13.0", "dvc": "3"}, "hardware": {"cpu": "x"}}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"deps": [{"path": "data/text", "md5": "z"}, *ENTRY["deps"][1:]]}, ["data: data/text"]),
        ({"deps": ENTRY["deps"][:2]}, ["input: artifacts/tokenize"]),
        ({"deps": [ENTRY["deps"][0], ENTRY["deps"][2]]}, ["code: tasks/sample.py"]),
        ({"params": {"params.yaml": {"sample": {"times": 2}}}}, ["params: sample.times"]),
    ],
)
def test_other_inputs_are_causes(change: dict[str, Any], found: list[str]) -> None:
    assert causes(ENTRY, {**ENTRY, **change}) == found


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (HERE, UNKNOWN),
        ({**HERE, "packages": {"torch": "2.15.0"}}, "dvc 3 -> absent, torch 2.13.0 -> 2.15.0"),
        ({**HERE, "hardware": {"cpu": "y"}}, "hardware: cpu x -> y"),
    ],
)
def test_other_packages_and_hardware_are_named(now: dict[str, Any], sentence: str) -> None:
    assert conditions(HERE, now).endswith(sentence)
    assert "no record of either" in conditions({}, now)


def reproduce(project: Project, run: str, **extra: str) -> tuple[int, str]:
    done = project.python("-m", "flows", "reproduce", f"RUN={run}", extra=extra)
    return done.returncode, done.stdout + done.stderr


HOUR = 3_600_000_000
"""Microjoules of a watt-hour."""
SPENDING = """
    if "GPTMILL_POWERCAP" in os.environ:
        counter = os.path.join(os.environ["GPTMILL_POWERCAP"], "intel-rapl:0", "energy_uj")
        open(counter, "w").write("3600000000")
    texts = ["""


def package(powercap: Path) -> Path:
    """Make the folder of a CPU package with a counter that is a watt-hour from its end."""
    folder = powercap / "intel-rapl:0"
    folder.mkdir(parents=True)
    values = {"name": "package-0", "energy_uj": 6 * HOUR, "max_energy_range_uj": 7 * HOUR}
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")
    return folder


@pytest.mark.slow
def test_a_run_is_kept_and_made_again(tmp_path: Path) -> None:
    project = one_stage_project(tmp_path)
    root = project.root
    stage = root / "tasks" / "sample.py"
    stage.write_text(
        stage.read_text(encoding="utf-8")
        .replace("import ROOT\n", "import ROOT\nimport os\n")
        .replace("params.times)", "params.times + os.environ.get('TRIAL', ''))")
        .replace("    texts = [", SPENDING),
        encoding="utf-8",
    )
    (root / "tasks" / "new.txt").write_text("https://user:planted@example.org/x?token=planted\n")
    (root / ".env").write_text("KEY=planted\n")
    index = (root / ".git" / "index").read_bytes()
    head = project.run("git", "for-each-ref", "refs/heads").stdout
    assert project.python("-m", "flows", "data").returncode == 0
    counter = {"GPTMILL_POWERCAP": str(package(tmp_path / "powercap").parent)}
    done = project.python("-m", "flows", "pipeline", extra=counter)
    assert done.returncode == 0, done.stderr
    assert (root / ".git" / "index").read_bytes() == index
    assert project.run("git", "for-each-ref", "refs/heads").stdout == head

    run = next(one["id"] for one in project.runs() if one["name"].startswith("pipeline"))
    commit = project.tags(run)["gptmill.commit"]
    kept = root / "mlflow" / "artifacts" / run / "artifacts" / "record"
    for name in ("params.yaml", "sources.toml", "data.dvc", "dvc.lock"):
        assert (kept / name).read_text() == (root / name).read_text()
        committed = project.run("git", "show", f"{commit}:{name}").stdout
        assert committed.strip() == (root / name).read_text().strip()
    diff = (kept / "uncommitted.diff").read_text()
    assert "+import os" in diff
    assert "https://example.org/x" in diff
    assert "planted" not in "".join(file.read_text() for file in kept.iterdir())
    assert ".env" not in project.run("git", "ls-tree", "--name-only", commit).stdout
    assert "torch" in json.loads((kept / "environment.json").read_text())["packages"]

    done = project.python("-m", "flows", "lineage", "MODEL=artifacts/sample")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert f"commit sample {commit} (refs/gptmill/runs/" in said
    assert "sample.times 1 data data/text " in said
    assert "sources books mine runs sample" in said
    assert said.endswith(" in all energy in all 2.000 Wh CPU 2.000 Wh in sample")

    # the tree goes on: other data, other code, other params
    (root / "books" / "two.txt").write_text("Two.\n", encoding="utf-8")
    assert project.python("-m", "flows", "data").returncode == 0
    stage.write_text("raise SystemExit\n", encoding="utf-8")
    before = {path: path.read_bytes() for path in root.glob("*") if path.is_file()}
    status, said = reproduce(project, run)
    assert status == 0, said
    assert said.splitlines()[-1].startswith("equal: 1 stages have the outputs of pipeline ")
    status, said = reproduce(project, run, TRIAL="1")
    assert status == 1, said
    assert "artifacts/sample/written.txt" in said
    assert UNKNOWN in said
    recorded = json.loads((kept / "environment.json").read_text())
    recorded["packages"]["torch"] = "1.0"
    (kept / "environment.json").write_text(json.dumps(recorded))
    assert "package versions: torch 1.0 -> 2" in reproduce(project, run, TRIAL="1")[1]
    assert {path: path.read_bytes() for path in root.glob("*") if path.is_file()} == before
    assert project.run("git", "worktree", "list").stdout.count("\n") == 1
    assert reproduce(project, "0" * 32)[1].startswith(f"RUN={'0' * 32} is no pipeline run")
