"""examples/: a project of other data that uses gptmill as a package, and the notebook."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.project.environment import ROOT
from tests.support.talkers import environment

EXAMPLE = ROOT / "examples" / "spam-mail"
NOTEBOOK = EXAMPLE / "spam_mail.ipynb"
PLANTED = {
    "easy-ham-1": "Subject: Re: patch {}\n\nthe patch {} for the kernel is in the tree",
    "spam-1": (
        "Subject: win {}\nContent-Type: text/html\n\n<style>b {{}}</style><b>free</b> prize {}"
    ),
}
SMALL = {
    r"vocabulary_size = \d+": "vocabulary_size = 300",
    r"near_duplicates = [\d.]+": "near_duplicates = 1.0",
    r"(?s)kind = .*?\n\n": 'kind = "path"\npath = "mails"\n\n',
    r"emb_dim = \d+": "emb_dim = 16",
    r"steps = \d+": "steps = 3",
}


def cells(kind: str) -> list[dict[str, Any]]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in content if cell["cell_type"] == kind]


def small_copy(folder: Path) -> Path:
    """Copy the example, with planted mails and small params."""
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("out", "downloads"))
    for group, text in PLANTED.items():
        (folder / "mails" / group).mkdir(parents=True)
        for number in range(60):
            mail = text.format(number, number * 7)
            (folder / "mails" / group / f"{number}.txt").write_text(mail, encoding="utf-8")
    params = (folder / "params.toml").read_text(encoding="utf-8")
    for pattern, replacement in SMALL.items():
        assert re.search(pattern, params), pattern
        params = re.sub(pattern, replacement, params, count=1)
    (folder / "params.toml").write_text(params, encoding="utf-8")
    return folder


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python as the example's user does; plots open no window."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment(MPLBACKEND="agg"),
        capture_output=True,
        text=True,
    )


def test_the_example_runs_on_a_few_mails(tmp_path: Path) -> None:
    """The cells of the notebook run as one script."""
    folder = small_copy(tmp_path / "example")
    code = "\n".join("".join(cell["source"]) for cell in cells("code"))
    done = python(folder, "-W", "error", "-c", f"import train\ntrain.main()\n{code}")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["bag of words"]["f1"]["value"] == 1
    assert 0 <= results["gptmill"]["accuracy"]["value"] <= 1
    assert "Subject: Free" in done.stdout
    assert "test mails are misread" in done.stdout
    tested = pd.read_csv(folder / "out" / "test.csv")
    texts = {re.sub(r"\d+", "N", text) for text in tested["text"]}
    assert texts == {
        "Subject: Re: patch N\n\nthe patch N for the kernel is in the tree",
        "Subject: win N\n\nfree prize N",
    }


def test_the_notebook_is_committed_without_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))


def test_the_example_uses_the_library_s_public_names_alone() -> None:
    sources = [path.read_text(encoding="utf-8") for path in EXAMPLE.glob("*.py")]
    sources.append("\n".join("".join(cell["source"]) for cell in cells("code")))
    imports = [line for text in sources for line in re.findall(r"^(?:from|import) .*", text, re.M)]
    assert any("gptmill.training.trainer" in line for line in imports)
    assert not [line for line in imports if re.search(r"\b(tasks|flows|_\w+)\b", line)]
