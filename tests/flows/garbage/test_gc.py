"""Garbage collection in a real store and cache, and thirty nights with a rollback."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.project import HEAD, Project, one_stage_project, prefect_of, source_entry
from tests.support.tiny import tiny_bpe

pytestmark = pytest.mark.slow
STAGE = '''
"""pretrain: a stage that makes a random model, by the number of texts."""

import torch
from pydantic import Field

from gptmill.checkpoint.checkpoint import save_causal_lm
from gptmill.files import write_text
from gptmill.model.gpt import GPT, GPTConfig
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.frame.run import Metrics, Run
from tasks.frame.stage import Section, stage
from tasks.project.environment import ROOT


class Shape(Section):
    width: int = Field(gt=0, le=512)


@stage
def pretrain(params: Shape, run: Run) -> Metrics:
    texts = list((ROOT / "data/text").rglob("*.txt"))
    tokenizer = Tokenizer.from_bpe_files(
        ROOT / "data/bpe/vocab.bpe", ROOT / "data/bpe/encoder.json"
    )
    shape = {"context_length": 32, "emb_dim": params.width, "n_layers": 2, "n_heads": 2}
    switches = {"drop_rate": 0.0, "qkv_bias": True, "tie_weights": True}
    config = GPTConfig(vocab_size=tokenizer.n_vocab, **shape, **switches)
    model = GPT(config, generator=torch.Generator().manual_seed(len(texts)))
    save_causal_lm(run.out, model, tokenizer)
    run.log_model("generator", run.out)
    return {"texts": len(texts)}
'''
GRAPH = """
stages:
  pretrain:
    desc: makes a random model
    cmd: exec python -m tasks pretrain
    deps: [data/text, data/manifest/text.json, data/bpe, tasks/pretrain.py]
    params: [pretrain]
    outs: [artifacts/pretrain]
    meta: {main: texts}
"""
FOLDERS = (".dvc/cache", ".git", ".state", "artifacts", "data", "mlflow")
DAY_MS = 24 * 60 * 60 * 1000
LONG_AGO = {"GIT_COMMITTER_DATE": "2020-01-01T00:00:00Z"}
"""The dates of the records in git: MLflow's dates alone decide then."""


def model_project(root: Path) -> Project:
    """Return a project whose one stage makes, logs and registers a model of half a megabyte."""
    project = one_stage_project(root)
    (root / "tasks" / "sample.py").unlink()
    (root / "tasks" / "pretrain.py").write_text(STAGE, encoding="utf-8")
    (root / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    with (root / "sources.toml").open("a", encoding="utf-8") as file:
        file.write(source_entry("bpe", "bpe"))
    params = (root / "params.yaml").read_text(encoding="utf-8")
    params = params.replace("sample: {times: 1}", "pretrain: {width: 64}")
    (root / "params.yaml").write_text(params, encoding="utf-8")
    project.params({"gate": {"generator": {"thresholds": []}}})
    tiny_bpe(root / "bpe")
    with (root / ".gitignore").open("a", encoding="utf-8") as file:
        file.write("/bpe\n")
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return model_project(tmp_path)


NIGHTS = f"""
import pathlib, sqlite3
from flows.commands.manage import gc, promote
from flows.pipeline import pipeline
first, last, *options = sys.argv[1:]
for number in range(int(first), int(last)):
    if number:  # a day passes
        with sqlite3.connect("mlflow/mlflow.db") as store:
            aged = "start_time = start_time - {DAY_MS}, end_time = end_time - {DAY_MS}"
            store.execute(f"update runs set {{aged}}")
            stamp = "creation_timestamp_ms"
            store.execute(f"update logged_models set {{stamp}} = {{stamp}} - {DAY_MS}")
    pathlib.Path(f"books/{{number:02d}}.txt").write_text(f"Night {{number}}.", encoding="utf-8")
    state = pipeline(return_state=True)
    assert state.message == "ran pretrain", state.message
    if options:
        if number == int(last) // 2:
            promote.main(["KIND=generator", f"VERSION={{number + 1}}", "WHY=a trial"])
        gc.main(options)
        files = [path.lstat() for name in {FOLDERS} for path in pathlib.Path(name).rglob("*")]
        print("size", sum({{file.st_ino: file.st_size for file in files}}.values()), flush=True)
"""


def nights(project: Project, server: dict[str, str], first: int, last: int, *options: str) -> str:
    """Run nights: a day passes, a document is added, the pipeline runs, garbage is collected."""
    words = ("-c", HEAD + NIGHTS, str(first), str(last), *options)
    done = project.python(*words, extra={**server, **LONG_AGO}, timeout=2900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def flows(project: Project, *words: str) -> str:
    done = project.python("-m", "flows", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def counts(project: Project) -> dict[str, int]:
    root = project.root
    return {
        "objects": len(list((root / ".dvc/cache/files/md5").glob("??/*"))),
        "records": len(list((root / ".dvc/cache/runs").glob("??/*/*"))),
        "refs": project.run("git", "for-each-ref", "refs/gptmill").stdout.count("\n"),
        "runs": len(project.runs()),
        "models": len(list((root / "mlflow/artifacts/models").iterdir())),
    }


def generated(project: Project) -> str:
    words = ("-m", "gptmill", "generate", "models:/gptmill-generator@champion", "the")
    done = project.python(*words, extra={"PYTHONPATH": "src"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def server(project: Project) -> Iterator[dict[str, str]]:
    with prefect_of(project) as variables:
        yield variables


@pytest.mark.timeout(1200)
def test_nothing_is_freed_that_something_needs(project: Project, server: dict[str, str]) -> None:
    nights(project, server, 0, 3)
    before = counts(project)
    assert (before["runs"], before["models"], before["refs"]) == (6, 3, 3)
    said = flows(project, "gc", "NIGHTS=0")
    assert "nothing is freed yet: add FREE=1" in said
    assert counts(project) == before
    flows(project, "gc", "NIGHTS=0", "FREE=1")
    assert counts(project) == before, "three registered versions need everything"

    said = flows(project, "gc", "NIGHTS=0", "REFUSED=0")
    assert re.search("refused versions │ 1 .*model copies │ 1 │ [0-9.]+ MB.* runs │ 2 ", said), said
    held = project.start(
        "python",
        "-c",
        "import signal; from tasks.processes import locks\n"
        "with locks.project('a pipeline'): print('held', flush=True); signal.pause()",
    )
    assert held.stdout is not None
    assert held.stdout.readline() == "held\n"
    waiting = project.start("python", "-m", "flows", "gc", "NIGHTS=0", "REFUSED=0", "FREE=1")
    assert waiting.stdout is not None
    assert "waiting for process" in waiting.stdout.readline()
    assert counts(project) == before
    held.terminate()
    held.communicate(timeout=60)
    assert "freed " in waiting.communicate(timeout=200)[0]
    after = counts(project)
    assert (after["runs"], after["models"], after["refs"]) == (4, 2, 2)
    assert after["records"] == before["records"] - 1
    assert after["objects"] < before["objects"]
    assert " 0 " in flows(project, "gc", "NIGHTS=0", "REFUSED=0")

    shutil.rmtree(project.root / "artifacts")
    assert "pretrain is up to date" in flows(project, "stage", "pretrain")
    flows(project, "promote", "KIND=generator", "VERSION=3", "WHY=a trial")
    assert "generator version 1 is champion" in flows(project, "rollback", "KIND=generator")
    assert generated(project)


@pytest.mark.timeout(3000)
def test_thirty_nights_stay_small_and_the_first_champion_can_return(
    project: Project, server: dict[str, str]
) -> None:
    n_nights = int(os.environ.get("NIGHTS", "30"))
    said = nights(project, server, 0, n_nights, "NIGHTS=3", "REFUSED=1", "FREE=1")
    print(said)
    sizes = [int(one) for one in re.findall(r"^size (\d+)", said, re.MULTILINE)]
    assert len(sizes) == n_nights
    assert max(sizes) < 2 * sizes[4]
    assert "generator version 1 is champion" in flows(project, "rollback", "KIND=generator")
    assert generated(project)
    said = flows(project, "lineage", "MODEL=generator@champion")
    first = re.search(r"runs pretrain ([0-9a-f]{32}) ", said)
    assert first, said
    assert "equal: 1 stages" in flows(project, "reproduce", f"RUN={first[1]}")
