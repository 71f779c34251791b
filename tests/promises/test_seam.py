"""Prefect over DVC over a stage: real processes, real signals, on stages that only wait."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.project import Project, commit, copy_tree

STAGE = '''
"""NAME: a stage that waits."""

import os
import time

from tasks.frame.run import Metrics, Run
from tasks.frame.stage import Section, stage


class Waits(Section):
    steps: int
    ends: str


@stage
def NAME(params: Waits, run: Run) -> Metrics:
    for step in range(params.steps):
        run.step(step + 1, params.steps, {"train/loss": 1.0})
        time.sleep(0.1)
    if params.ends == "mistake":
        raise ValueError("the text is too short: 3 tokens are missing")
    if params.ends == "killed":
        os.kill(os.getpid(), 9)
    (run.out / "written.txt").write_text(params.ends)
    return {"steps": params.steps}
'''

GRAPH = """
stages:
  tokenize:
    desc: waits
    cmd: exec python -m tasks tokenize
    deps: [tasks/tokenize.py]
    params: [tokenize]
    outs: [artifacts/tokenize]
    meta: {main: steps}
  sample:
    desc: waits too
    cmd: exec python -m tasks sample
    deps: [tasks/sample.py, artifacts/tokenize]
    params: [sample]
    outs: [artifacts/sample]
    meta: {main: steps}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = copy_tree(tmp_path_factory.mktemp("seam"))
    for name in ("tokenize", "sample"):
        code = STAGE.replace("NAME", name)
        (project.root / "tasks" / f"{name}.py").write_text(code, encoding="utf-8")
    (project.root / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    path = project.root / "params.yaml"
    text = path.read_text(encoding="utf-8")
    sections = "tokenize: {steps: 1, ends: well}\nsample: {steps: 1, ends: well}\n"
    rest = text[: text.index("tokenize:")] + text[text.index("pretrain:") :]
    path.write_text(rest + sections, encoding="utf-8")
    commit(project, "stages that wait")
    return project


def ends(project: Project, how: str, steps: int = 1) -> None:
    project.params({"sample": {"steps": steps, "ends": how}})


def test_a_mistake_fails_task_flow_and_run_with_the_stage_s_own_words(project: Project) -> None:
    ends(project, "mistake")
    done = project.python("-m", "flows", "pipeline")
    assert done.returncode == 1
    words = "the text is too short: 3 tokens are missing"
    assert done.stderr.splitlines() == [words]
    assert re.search(r"\nsample failed after \d+s\nfix the error .*\nlog   ", done.stdout)
    assert f"Task run 'sample' - Finished in state Failed('{words}')" in project.log()
    assert f"Finished in state Failed('{words}')" in project.log().split("Flow run")[-1]
    assert "Traceback" not in done.stdout + done.stderr
    assert "NoneType" not in done.stdout + done.stderr
    assert [run["status"] for run in project.runs()] == ["FAILED", "FINISHED", "FAILED"]
    assert not (project.root / "artifacts" / "sample").exists()


def test_a_killed_stage_is_reported_by_its_signal(project: Project) -> None:
    ends(project, "killed")
    status, said = in_a_terminal(project, "python", "-m", "flows", "pipeline")
    assert status == 1
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said))
    last = {
        line.split()[0]: line.rstrip()
        for line in lines
        if "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in line
    }
    assert last["tokenize"].endswith("steps 1")
    assert "s sample was killed by SIGKILL; the kernel kills" in last["sample"]
    assert any(line.startswith("sample was killed by SIGKILL; the kernel") for line in lines)
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")  # the cursor is back
    assert " INFO " not in said
    assert [run["status"] for run in project.runs()][-2:] == ["FAILED", "KILLED"]
    done = project.python("-m", "flows", "stage", "sample")
    assert done.returncode == 1
    assert "sample was killed by SIGKILL; the kernel kills processes when" in done.stderr
    assert project.runs()[-1]["status"] == "KILLED"


def in_a_terminal(project: Project, *command: str) -> tuple[int, str]:
    """Run a command in a terminal; return the status, and what the terminal got."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        command,
        cwd=project.root,
        env={**project.environment(), "TERM": "xterm", "COLUMNS": "120"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        said = b""
        with suppress(OSError):  # a terminal ends so
            while part := os.read(ours, 1 << 16):
                said += part
    os.close(ours)
    return process.returncode, said.decode()


@pytest.fixture
def flow(project: Project) -> Iterator[subprocess.Popen[str]]:
    """Start a pipeline whose second stage takes minutes, and wait until it is at work."""
    ends(project, "well", steps=3000)
    process = project.start("env", "VERBOSE=1", "python", "-m", "flows", "pipeline")
    assert process.stdout is not None
    for line in process.stdout:
        if "step 1/3000" in line:
            break
    yield process
    process.kill()
    process.stdout.close()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_flow_ends_everything(
    project: Project, flow: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert any("tasks sample" in line for line in project.processes())
    flow.send_signal(number)
    deadline = time.monotonic() + 60
    while project.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert project.processes() == []
    assert [run["status"] for run in project.runs()][-2:] == ["KILLED", "KILLED"]
    assert not (project.root / "artifacts" / "sample").exists()
    assert not (project.root / "artifacts" / ".sample.partial").exists() or number == 9


def test_the_next_run_closes_what_a_killed_flow_left_open(project: Project) -> None:
    ends(project, "well")
    done = project.python("-m", "flows", "pipeline")
    assert done.returncode == 0, done.stderr
    assert list((project.root / ".state" / "flows").glob("*.json")) == []
    assert "RUNNING" not in {run["status"] for run in project.runs()}


def test_one_stage_alone_prints_to_the_terminal_and_obeys_ctrl_c(project: Project) -> None:
    ends(project, "well", steps=3001)
    process = subprocess.Popen(
        ["python", "-m", "flows", "stage", "sample"],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert any("step 1/3001" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert project.processes() == []
    assert project.runs()[-1] == {**project.runs()[-1], "name": "sample", "status": "KILLED"}


def test_accept_takes_new_code_and_keeps_the_bytes(project: Project) -> None:
    ends(project, "well", steps=2)  # never run before: DVC has nothing to restore
    done = project.python("-m", "flows", "stage", "sample")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-3:] == [
        "sample ran: steps 2",
        "results   artifacts/sample/",
        "next      make ui",
    ]
    assert "git add" not in done.stdout
    code = project.root / "tasks" / "sample.py"
    code.write_text(code.read_text(encoding="utf-8") + "\n# a comment\n", encoding="utf-8")
    done = project.python("-m", "flows", "accept", "sample")
    assert done.returncode == 0, done.stderr
    status = project.run("dvc", "status", "--json")
    assert json.loads(status.stdout) == {}


@pytest.mark.parametrize("words", [["nonsense"], [], ["sample", "more"]])
def test_a_wrong_stage_is_one_sentence(project: Project, words: list[str]) -> None:
    done = project.python("-m", "tasks", *words)
    assert done.returncode == 2
    assert "one of tokenize, sample" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stage_ends_well_without_its_tracking_server(project: Project) -> None:
    extra = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    started = time.monotonic()
    done = project.python("-m", "tasks", "tokenize", extra=extra)
    assert done.returncode == 0, done.stderr
    assert "MLFLOW_TRACKING_URI is http://127.0.0.1:9" in done.stdout
    assert "and the next command sends them" in done.stderr
    assert time.monotonic() - started < 60


def test_a_missing_input_names_the_command(project: Project, tmp_path: Path) -> None:
    (project.root / "artifacts" / "tokenize").rename(tmp_path / "tokenize")
    done = project.python("-m", "flows", "stage", "sample")
    (tmp_path / "tokenize").rename(project.root / "artifacts" / "tokenize")
    assert done.returncode == 2
    assert "artifacts/tokenize is missing: run `make tokenize`" in done.stderr


def states(project: Project) -> set[str]:
    """Return the names of the states that Prefect has of flow and task runs."""
    with closing(sqlite3.connect(project.root / ".state" / "prefect" / "prefect.db")) as store:
        rows = store.execute(
            "select state_name from flow_run union select state_name from task_run"
        )
        return {row[0] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_work_goes_on_without_prefects_server(project: Project, number: int) -> None:
    ends(project, "well", steps=100 + number)
    (project.root / ".state" / "flows").mkdir(parents=True, exist_ok=True)
    (project.root / ".state" / "flows" / "nothing.json").write_text("{", encoding="utf-8")
    with project.start("env", "VERBOSE=1", "python", "-m", "flows", "pipeline") as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if f"step 1/{100 + number}" in line:
                break
        (server,) = [
            child
            for child in psutil.Process(process.pid).children()
            if "flows.guarded_prefect:make_app" in child.cmdline()
        ]
        os.kill(server.pid, number)
        started = time.monotonic()
        said += process.stdout.read()
    assert process.returncode == 0, said
    assert "nothing.json is unreadable and counts as none" in said
    assert "starting it again" in said
    assert "Traceback" not in said
    assert "View at" not in said
    assert time.monotonic() - started < 120
    assert states(project).isdisjoint({"Running", "Pending"})
    assert list((project.root / ".state" / "flows").iterdir()) == []


@pytest.fixture
def tokenized(project: Project) -> Project:
    """Return the project with the first stage up to date."""
    done = project.python("-m", "flows", "stage", "tokenize")
    assert done.returncode == 0, done.stderr
    return project


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_make_ends_with_the_stage_and_the_next_make_waits(
    tokenized: Project, number: signal.Signals
) -> None:
    project = tokenized
    (project.root / ".venv").mkdir(exist_ok=True)
    (project.root / ".venv" / "installed").touch()
    ends(project, "well", steps=3000)
    process = project.start("make", "sample")
    assert process.stdout is not None
    for line in process.stdout:
        if "step 1/3000" in line:
            break
    process.send_signal(number)
    after = project.run("make", "tokenize")
    assert after.returncode == 0, after.stderr
    assert "(`make sample`), which works in this project" in after.stderr
    assert "busy" not in after.stdout + after.stderr
    assert process.wait() != 0
    process.stdout.close()
    assert project.processes() == []
    assert project.runs()[-1]["status"] == "KILLED"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--temp", "--queue"])
def test_a_run_in_a_temporary_copy_is_recorded_in_the_projects_own_store(
    tokenized: Project, how: str
) -> None:
    project = tokenized
    ends(project, "well")
    if project.run("git", "status", "--porcelain").stdout:
        commit(project, "before an experiment")
    before = project.runs()
    steps = 2 if how == "--temp" else 3
    changes = ["-S", f"sample.steps={steps}", "-n", f"own{steps}"]
    done = project.run("dvc", "exp", "run", how, *changes, "sample")
    assert done.returncode == 0, done.stderr
    if how == "--queue":
        assert project.run("dvc", "queue", "start").returncode == 0
        deadline = time.monotonic() + 120
        while "Success" not in project.run("dvc", "queue", "status").stdout:
            assert time.monotonic() < deadline, project.run("dvc", "queue", "logs", "own3").stdout
            time.sleep(1)
        project.run("dvc", "queue", "stop", "--kill")
    new = [run for run in project.runs() if run not in before]
    assert [run["status"] for run in new] in (["FINISHED"], ["FINISHED", "FINISHED"])
    assert new[-1]["name"] == "sample"
    with closing(sqlite3.connect(project.root / "mlflow" / "mlflow.db")) as store:
        query = "select value from params where run_uuid = ? and key = 'steps'"
        assert store.execute(query, (new[-1]["id"],)).fetchall() == [(str(steps),)]
        rows = store.execute("select artifact_uri from runs").fetchall()
    assert all(row[0].startswith((project.root / "mlflow").as_uri()) for row in rows)


@pytest.fixture
def small_disk(tokenized: Project, tmp_path: Path) -> Iterator[Path]:
    """Give mlflow/ a disk of its own, with a few MB to spare."""
    folder, kept = tokenized.root / "mlflow", tmp_path / "kept"
    shutil.copytree(folder, kept)
    size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    option = f"size={size + (8 << 20)}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder]).returncode != 0:
        pytest.skip("no right to mount a disk")
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield folder
        shutil.copytree(folder, kept, dirs_exist_ok=True)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
    shutil.copytree(kept, folder, dirs_exist_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize(("room", "steps"), [("during", 150), ("after", 151)])
def test_a_disk_of_mlflow_that_fills_in_a_training(
    project: Project, small_disk: Path, room: str, steps: int
) -> None:
    ends(project, "well", steps)
    process = project.start("python", "-m", "flows", "stage", "sample")
    assert process.stdout is not None
    filler, lines = small_disk / "filler", []
    for line in process.stdout:
        lines.append(line)
        if f"step 1/{steps}" in line:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 12))
        if "MLflow is away" in line and room == "during":
            filler.unlink()
    text = "".join(lines)
    assert process.wait() == 0, text
    process.stdout.close()
    assert "Traceback" not in text
    assert "mlflow/mlflow.db has no room: make room on its disk" in text
    assert ("MLflow takes records again" in text) == (room == "during")
    filler.unlink(missing_ok=True)
    if room == "after":
        assert "the next command sends them" in text
        assert project.python("-m", "tasks", "tokenize").returncode == 0
    sample = [run for run in project.runs() if run["name"] == "sample"][-1]
    assert sample["status"] == "FINISHED"
    with closing(sqlite3.connect(project.root / "mlflow" / "mlflow.db")) as store:
        query = "select count(*) from metrics where run_uuid = ? and key = 'train/loss'"
        assert store.execute(query, (sample["id"],)).fetchone() == (steps,)
