"""The HTML page of a comparison: one file, without scripts or network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from gptmill.comparing.comparison import Comparison
from gptmill.comparing.curves import training_curves
from gptmill.comparing.section import CHANGES, Example
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
class Answers:
    """The examples of a task on the page."""

    counts: list[tuple[str, int]]
    shown: list[Example]
    total: int


def render(comparison: Comparison) -> str:
    """Return the page; all texts are escaped, since answers are texts of a model."""
    curves = training_curves(*comparison.sides)
    return template("page.html").render(
        comparison=comparison,
        sides=comparison.sides,
        answers={
            section.name: ordered_answers(section.examples, CHANGE_WORDS)
            for section in comparison.sections
        },
        curves={stage: Markup(svg) for stage, svg in curves.items()},
        changes=changes(*comparison.sides),
        unknown=unknown(*comparison.sides),
        words=CHANGE_WORDS,
    )


def template(name: str) -> jinja2.Template:
    """Return a template of this package; all values are escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    return environment.get_template(name)


def ordered_answers(examples: Sequence[Example], words: Mapping[str, str]) -> Answers:
    """Return examples in the order of CHANGES, counted by change; at equal change, differing first.

    `words` name the changes.
    """
    ordered = sorted(examples, key=lambda row: (CHANGES.index(row.change), row.first == row.second))
    counts = [
        (words[name], sum(row.change == name for row in ordered))
        for name in CHANGES
        if any(row.change == name for row in ordered)
    ]
    return Answers(counts, ordered[:SHOWN], len(ordered))
