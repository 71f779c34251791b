"""`make compare A=... B=...`: two versions on the same test rows, with a verdict per figure.

A side is a folder with the stages' artifacts, a git revision with its dvc.lock, an MLflow run, or a
registered version; by default A is the champions, or the last commit before there is a champion.
The command prints a table, and writes an HTML page and JSON into `compare/`.
"""

import re
import tempfile
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows.commands.arguments import named
from flows.sides.resolve import resolve
from flows.sides.versions import has_champion
from gptmill.comparing.comparison import Comparison, as_json, compare
from gptmill.comparing.page import render
from gptmill.comparing.side import changes, unknown
from gptmill.device import device_name
from gptmill.files import write_json, write_text
from tasks.project.environment import ROOT
from tasks.tracking.registry import CHAMPION, answered
from tasks.tracking.store import AwayError

SIDES = ("A", "B")
USAGE = (
    "usage: make compare A=HEAD~1 B=artifacts; without A the champions (the last commit before "
    "there is a champion), without B artifacts"
)
VERDICTS = {
    "better": "[green]better[/]",
    "worse": "[red]worse[/]",
    "same": "not significantly different",
}
WIDTH = 110


def main(arguments: list[str]) -> int:
    """Compare two sides, print the table, and write the page."""
    names = _names(arguments)
    with tempfile.TemporaryDirectory(prefix="gptmill-compare-") as temporary:
        first, second = (resolve(side, name, Path(temporary)) for side, name in names.items())
        for side in (first, second):
            print(f"{side.letter}         {side.name} ({side.origin})", flush=True)
        comparison = compare(first, second, device=device_name("auto"))
        html = render(comparison)
    folder = ROOT / "compare"
    folder.mkdir(exist_ok=True)
    stem = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_.") for name in names.values())
    write_text(folder / f"{stem}.html", html)
    write_json(folder / f"{stem}.json", as_json(comparison))
    _print(comparison)
    print(f"page      compare/{stem}.html\nJSON      compare/{stem}.json")
    return 0


def _names(arguments: list[str]) -> dict[str, str]:
    given = named(arguments, SIDES, USAGE)
    return {"A": given.get("A") or _reference(), "B": given.get("B", "artifacts")}


def _reference() -> str:
    """Return the default of A: the champions, where a kind has a champion and MLflow answers."""
    try:
        return CHAMPION if answered(has_champion) else "HEAD"
    except AwayError as error:
        print(f"A is the last commit, since the champions are not known: {error}")
        return "HEAD"


def _print(comparison: Comparison) -> None:
    """Print the figures as a table, then what is missing, and the verdict."""
    names = ("task", "figure", "rows", "A", "B", "B - A (95 %)", "B is")
    table = Table(*names, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for section, figure in comparison.figures:
        show, change = figure.unit.show, figure.difference
        value, low, high = (show(x, sign=True) for x in (change.value, change.low, change.high))
        table.add_row(
            section.name,
            figure.name,
            f"{section.rows:,}",
            show(figure.first.value),
            show(figure.second.value),
            f"{value} ({low} to {high})",
            VERDICTS[figure.verdict],
        )
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)
    for section in comparison.sections:
        if section.missing:
            print(f"{section.name} is not compared: {section.missing}")
    for sentence in unknown(*comparison.sides):
        print(sentence)
    kinds = [change.kind for change in changes(*comparison.sides)]
    counts = ", ".join(f"{kinds.count(kind)} of {kind}" for kind in dict.fromkeys(kinds))
    print(f"differ    {counts or 'nothing in the records'}")
    print(f"verdict   {comparison.verdict}")
