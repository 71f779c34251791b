from pathlib import Path

import pytest

from gptmill.checkpoint.checkpoint import save_causal_lm
from gptmill.checkpoint.model_card import Card, write_card
from gptmill.records import content_hash, file_hashes, recorded_at
from tasks.project.environment import ROOT
from tests.support.project import Project, commit
from tests.support.tiny import tiny_gpt, tiny_tokenizer

GRAPH = """
stages:
  first:
    cmd: mkdir -p artifacts && cp -r given artifacts/first
    deps: [given]
    outs: [artifacts/first]
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project whose only stage has put a model into its output."""
    project = Project(tmp_path)
    for words in (("git", "init", "-q"), ("dvc", "init", "-q")):
        assert project.run(*words).returncode == 0
    model = tmp_path / "given" / "model"
    save_causal_lm(model, tiny_gpt(), tiny_tokenizer())
    card = Card(name="A", task="text-generation", summary="A.", intended_use="B.", limits="C.")
    write_card(model, card)
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / ".gitignore").write_text("/artifacts\n")
    done = project.run("dvc", "repro")
    assert done.returncode == 0, done.stderr
    return project


def head(project: Project) -> str:
    return project.run("git", "rev-parse", "HEAD").stdout.strip()


def test_a_commit_stands_for_the_bytes_that_its_dvc_lock_records(project: Project) -> None:
    output = project.root / "artifacts" / "first"
    assert recorded_at(output) is None  # nothing is committed
    commit(project, "a stage and what it made")
    assert recorded_at(output) == recorded_at(output / "model") == head(project)
    assert recorded_at(project.root / ".dvc") is recorded_at(Path("/")) is None
    (output / "model" / "config.json").write_text("{}")
    assert recorded_at(output) is recorded_at(output / "model") is None


def test_an_exported_card_names_the_commit(project: Project) -> None:
    commit(project, "a stage and what it made")
    words = ("artifacts/first/model", "out", "--format", "hf")
    done = project.python("-m", "gptmill", "export", *words)
    assert done.returncode == 0, done.stderr
    text = (project.root / "out" / "README.md").read_text()
    assert f"Made by gptmill at commit `{head(project)}`. The commit's dvc.lock" in text
    inside = (project.root / "artifacts/first/model/README.md").read_text()
    assert "commit" not in inside  # equal inputs, equal bytes


LITTER = (".DS_Store", "a/Thumbs.db", "a/desktop.ini", "a/.ipynb_checkpoints/c-checkpoint.py")


def test_a_folder_s_hash_is_dvc_s_whatever_lies_beside_its_files(project: Project) -> None:
    folder = project.root / "code"
    for name in ("b.py", "a/c.py", "a/__pycache__/c.pyc", "d.pyc", "a/.e.py.partial", *LITTER):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (project.root / ".dvcignore").write_bytes((ROOT / ".dvcignore").read_bytes())
    assert list(file_hashes(folder)) == ["a/c.py", "b.py"]
    done = project.run("dvc", "add", "code")
    assert done.returncode == 0, done.stderr
    assert f"md5: {content_hash(folder)}\n" in (project.root / "code.dvc").read_text()
