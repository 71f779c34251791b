"""A whole project of its own in a temporary folder: this tree's files, tiny data, tiny params."""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.commands.data import base
from flows.sweeps.params import edited
from gptmill.files import sha256, write_json
from gptmill.sources.table import TARGETS
from tasks.project.environment import ROOT
from tests.support.tiny import tiny_bpe

PROSE = "the king and his people went up to the great city by the sea in peace"
ADVERTISEMENT = "win a free prize now call cash claim urgent reply"
WORDS, SPAM = PROSE.split(), ADVERTISEMENT.split()

# what makes the pipeline small; everything else is as in params.yaml
TINY: dict[str, Any] = {
    "runtime": {"device": "cpu", "precision": "fp32", "compile": False},
    "resume": {"every_seconds": 0},
    "tokenize": {"validation_fraction": 0.3},
    "sample": {"windows": {"max_length": 256, "stride": 256}},
    "pretrain": {
        "shape": {"emb_dim": 16, "n_layers": 2, "n_heads": 2},
        "steps": 12,
        "batch_tokens": 1024,
        "evaluate_every": 6,
        "sample_every": 6,
        "evaluate_windows": 4,
        "final_windows": 8,
        "generation": {"max_new_tokens": 4},
    },
    "lora": {"epochs": 1},
    "classify": {"epochs": 1},
    "instruct": {"epochs": 1, "max_new_tokens": 4},
    "evaluate": {
        "windows": 8,
        "resamples": 20,
        "generation": {"max_new_tokens": 4},
        "max_new_tokens": 4,
    },
}


class Project:
    """A project folder and how a user works in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self, *command: str, extra: dict[str, str] | None = None, timeout: float = 280
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user would, the environment's tools first on PATH."""
        return subprocess.run(
            command,
            cwd=self.root,
            env={**self.environment(), **(extra or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def python(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run this interpreter."""
        return self.run(sys.executable, *words, **options)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command and go on."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def log(self) -> str:
        """Return the log of the newest pipeline run."""
        return max((self.root / ".state" / "logs").glob("pipeline-*.log")).read_text("utf-8")

    def environment(self) -> dict[str, str]:
        """Return the variables of a fresh shell: none of pytest's, none that names a server."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT", "MLFLOW", "DVC", "GPTMILL", "PYTEST", "PYTHONPATH"))
        }
        path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
        return {**kept, "PATH": path, "OMP_NUM_THREADS": "1"}

    def params(self, changes: dict[str, Any]) -> None:
        """Merge changes into params.yaml."""
        yaml = YAML()
        path = self.root / "params.yaml"
        content = yaml.load(path)
        _merge(content, changes)
        yaml.dump(content, path)

    def base(self, name: str) -> None:
        """Write the params of configs/bases/NAME.yaml into params.yaml."""
        path = self.root / "params.yaml"
        path.write_text(edited(path.read_text(encoding="utf-8"), base.read(name).params))

    def runs(self) -> list[dict[str, str]]:
        """Return the MLflow runs, oldest first: id, name, status."""
        with sqlite3.connect(self.root / "mlflow" / "mlflow.db") as store:
            rows = store.execute("select run_uuid, name, status from runs order by start_time")
            return [dict(zip(("id", "name", "status"), row, strict=True)) for row in rows]

    def tags(self, run: str) -> dict[str, str]:
        """Return an MLflow run's tags."""
        with sqlite3.connect(self.root / "mlflow" / "mlflow.db") as store:
            return dict(store.execute("select key, value from tags where run_uuid = ?", (run,)))

    def processes(self) -> list[str]:
        """Return the command lines of processes that work in this folder."""
        import psutil

        found = []
        for process in psutil.process_iter(["cwd", "cmdline", "status"]):
            if process.info["cwd"] == str(self.root) and process.info["status"] != "zombie":
                found.append(" ".join(process.info["cmdline"] or []))
        return found


def _merge(content: Any, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        # a shape is either a name or a shape: taken whole
        if isinstance(value, dict) and isinstance(content.get(name), dict):
            _merge(content[name], value)
        else:
            content[name] = value


def copy_tree(root: Path) -> Project:
    """Copy this tree's files (tracked and new ones) into `root`, a git repository of its own."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).exists() and name not in ("data.dvc", "dvc.lock"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    project = Project(root)
    done = project.run("git", "init", "-q")
    assert done.returncode == 0, done.stderr
    return project


def commit(project: Project, message: str) -> None:
    """Commit everything that is there."""
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for words in (("add", "-A"), (*who, "commit", "-q", "-m", message)):
        done = project.run("git", *words)
        assert done.returncode == 0, done.stderr


def tiny_project(root: Path) -> Project:
    """Make a project whose whole pipeline takes a minute."""
    project = copy_tree(root)
    project.base("pretrain")
    project.params(TINY)
    write_tiny_data(root / "data")
    done = project.python("-m", "dvc", "add", "data")
    assert done.returncode == 0, done.stderr
    commit(project, "a tiny project")
    return project


STAGE = '''
"""sample: a stage that repeats the texts."""

from tasks.frame.run import Metrics, Run
from tasks.frame.stage import Section, stage
from tasks.project.environment import ROOT
from pydantic import Field


class Repeats(Section):
    times: int = Field(gt=0, le=100)


@stage
def sample(params: Repeats, run: Run) -> Metrics:
    texts = [path.read_text() for path in sorted((ROOT / "data/text").rglob("*.txt"))]
    (run.out / "written.txt").write_text("".join(texts) * params.times)
    return {"texts": len(texts)}
'''
ONE_STAGE = """
stages:
  sample:
    desc: repeats the texts
    cmd: exec python -m tasks sample
    deps: [data/text, data/manifest/text.json, tasks/sample.py]
    params: [sample]
    outs: [artifacts/sample]
    meta: {main: texts}
"""


def source_entry(name: str, target: str, *, licence: str = "mine", **place: str) -> str:
    """Return an entry of sources.toml; the place is the path NAME unless another is given."""
    at = place if "kind" in place else {"kind": "path", "path": name, **place}
    facts = {"name": name, "target": target, "licence": licence}
    first, second = (
        "".join(f'{key} = "{word}"\n' for key, word in of.items()) for of in (facts, at)
    )
    return f"[[source]]\n{first}[[source.place]]\n{second}"


OWN_SOURCE = source_entry("books", "text/books", make="documents")


def one_stage_project(root: Path) -> Project:
    """Make a project of one stage over a source that git does not track."""
    project = copy_tree(root)
    (root / "tasks" / "sample.py").write_text(STAGE, encoding="utf-8")
    (root / "dvc.yaml").write_text(ONE_STAGE, encoding="utf-8")
    (root / "sources.toml").write_text(OWN_SOURCE, encoding="utf-8")
    text = (root / "params.yaml").read_text(encoding="utf-8")
    kept = text.split("tokenize:")[0], "gate:" + text.partition("gate:")[2]
    (root / "params.yaml").write_text("sample: {times: 1}\n".join(kept), encoding="utf-8")
    deployments = (root / "prefect.yaml").read_text(encoding="utf-8")  # others name more stages
    (root / "prefect.yaml").write_text(deployments.partition("\n  - name: fine-tuning")[0] + "\n")
    (root / "books").mkdir()
    (root / "books" / "one.txt").write_text("One.\n", encoding="utf-8")
    with (root / ".gitignore").open("a", encoding="utf-8") as file:
        file.write("/books\n")
    commit(project, "a project of one stage")
    return project


HEAD = """
import json, os, sys
from tasks.project.environment import set_environment, use_own_source
set_environment(), use_own_source()
"""
SERVER = """
import socket
from flows.prefect_server import prefect_server
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
with prefect_server(port, pages=False) as api:
    print(api, flush=True)
    sys.stdin.read()
"""
FLOW = """
from flows.pipeline import pipeline
state = pipeline(**json.loads(sys.argv[1]), return_state=True)
print(json.dumps([state.name, state.message]))
"""


@contextmanager
def prefect_of(project: Project) -> Iterator[dict[str, str]]:
    """Run a Prefect server of the project; yield the variable that names the server."""
    words = [sys.executable, "-c", HEAD + SERVER]
    with subprocess.Popen(
        words,
        cwd=project.root,
        env=project.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield {"PREFECT_API_URL": process.stdout.readline().strip()}
        process.communicate("")


def run_flow(project: Project, server: dict[str, str], **parameters: Any) -> tuple[str, str]:
    """Run the pipeline flow as a deployment's run does; return the final state and message."""
    done = project.python("-c", HEAD + FLOW, json.dumps(parameters), extra=server)
    return flow_state(done.returncode, done.stdout, done.stderr)


def flow_state(status: int, out: str, err: str) -> tuple[str, str]:
    """Return the final state that a flow's process printed."""
    assert status == 0, out + err
    name, message = json.loads(out.splitlines()[-1])
    return name, message


def write_tiny_data(data: Path) -> None:
    """Write texts, vocabulary, labelled rows, instructions and their manifest."""
    rng = random.Random(5)
    for name in ("text", "labelled", "instructions", "questions"):
        (data / name).mkdir(parents=True)
    tiny_bpe(data / "bpe")
    for number in range(12):
        words = [rng.choice(WORDS) for _ in range(900)]
        (data / "text" / f"{number:02d}.txt").write_text(" ".join(words), encoding="utf-8")
    rows = [f"{label},{_sentence(rng, words)} {k}" for k in range(60) for label, words in KINDS]
    table = "\n".join(["label,text", *rows]) + "\n"
    (data / "labelled" / "sms.csv").write_text(table, encoding="utf-8")
    exercises = [_exercise(k) for k in range(80)]
    text = json.dumps(exercises)
    (data / "instructions" / "instructions.json").write_text(text, encoding="utf-8")
    questions = "".join(_question(k) for k in range(4))
    (data / "questions" / "general.jsonl").write_text(questions, encoding="utf-8")
    write_tiny_manifest(data)


def write_tiny_manifest(data: Path) -> None:
    """Write what is known of the files of data/, kind by kind: all are of one source."""
    files = {
        path.relative_to(data).as_posix(): {
            "sha256": sha256(path),
            "bytes": path.stat().st_size,
            "sources": ["tiny"],
        }
        for path in sorted(data.rglob("*"))
        if path.is_file()
    }
    sources = {"tiny": {"licence": "CC0-1.0", "attribution": "these tests"}}
    (data / "manifest").mkdir(exist_ok=True)
    for kind in TARGETS:
        of_kind = {name: entry for name, entry in files.items() if name.startswith(f"{kind}/")}
        content = {"files": of_kind, "sources": sources if of_kind else {}}
        write_json(data / "manifest" / f"{kind}.json", content)


KINDS = (("ham", WORDS), ("spam", SPAM))


def _sentence(rng: random.Random, words: list[str]) -> str:
    return " ".join(rng.choice(words) for _ in range(6))


def _question(number: int) -> str:
    word = WORDS[number]
    row = {
        "id": f"word-{number}",
        "kind": "word",
        "messages": [{"role": "user", "content": f"Say {word}."}],
        "reference": word,
        "check": {"contains_any": [word]},
    }
    return json.dumps(row) + "\n"


def _exercise(number: int) -> dict[str, str]:
    word = f"{WORDS[number % len(WORDS)]}{number}"
    return {
        "instruction": "Say the word class.",
        "input": word,
        "output": "noun" if number % 2 else "verb",
        "kind": "word class",
    }
