"""The HTML page of a comparison: one file, without scripts or network."""

from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from gptmill.comparing.comparison import Comparison
from gptmill.comparing.curves import training_curves
from gptmill.comparing.section import CHANGES, Example, Section
from gptmill.comparing.side import changes, unknown

SHOWN = 60
"""Examples of a task on the page; the JSON file has all."""
CHANGE_WORDS = {
    "lost": "A right, B wrong",
    "won": "A wrong, B right",
    "both wrong": "both wrong",
    "both right": "both right",
    "unchecked": "without a check",
}


@dataclass(frozen=True)
class _Answers:
    """The examples of a task on the page."""

    counts: list[tuple[str, int]]
    shown: list[Example]
    total: int


def render(comparison: Comparison) -> str:
    """Return the page; all texts are escaped, since answers are texts of a model."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    curves = training_curves(*comparison.sides)
    return environment.from_string(source).render(
        comparison=comparison,
        sides=comparison.sides,
        answers={section.name: _answers(section) for section in comparison.sections},
        curves={stage: Markup(svg) for stage, svg in curves.items()},
        changes=changes(*comparison.sides),
        unknown=unknown(*comparison.sides),
        words=CHANGE_WORDS,
    )


def _answers(section: Section) -> _Answers:
    ordered = sorted(
        section.examples, key=lambda row: (CHANGES.index(row.change), row.first == row.second)
    )
    counts = [
        (CHANGE_WORDS[name], sum(row.change == name for row in ordered))
        for name in CHANGES
        if any(row.change == name for row in ordered)
    ]
    return _Answers(counts, ordered[:SHOWN], len(ordered))
