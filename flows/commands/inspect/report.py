"""`make report`: one HTML page on a run, by default on the present artifacts.

RUN is a folder with the stages' artifacts, a git revision with its dvc.lock, an MLflow run, or a
registered version, as a side of `make compare`. The page is one file for any browser, a phone's
too, without scripts and network.
"""

import re
import tempfile
from pathlib import Path

from flows.commands.arguments import named
from flows.sides.facts import facts
from flows.sides.resolve import resolve
from gptmill.comparing.report.page import render
from gptmill.comparing.side import Side
from gptmill.files import write_text
from tasks.project.environment import ROOT
from tasks.project.graph import stages

USAGE = "usage: make report RUN=champion; without RUN, artifacts"


def main(arguments: list[str]) -> int:
    """Write the page of a run into compare/."""
    name = named(arguments, ["RUN"], USAGE).get("RUN", "artifacts")
    with tempfile.TemporaryDirectory(prefix="gptmill-report-") as temporary:
        html = page(resolve("RUN", name, Path(temporary)))
    folder = ROOT / "compare"
    folder.mkdir(exist_ok=True)
    stem = re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_.")
    write_text(folder / f"report-{stem}.html", html)
    print(f"page      compare/report-{stem}.html")
    return 0


def page(side: Side, *, title: str = "") -> str:
    """Return the page on a side."""
    return render(side, facts(side, title=title), stages=list(stages()))
