"""The whole comparison of two sides: all tasks, corrected p values, a verdict."""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from gptmill.comparing.answers import exercises, general_questions
from gptmill.comparing.classifiers import classifiers
from gptmill.comparing.language import language_models
from gptmill.comparing.section import Figure, MissingError, Section
from gptmill.comparing.side import Side, changes, unknown
from gptmill.comparing.significance import LEVEL, RESAMPLES, holm

Task = Callable[[Side, Side], Section]


def tasks(device: str) -> dict[str, tuple[str, Task]]:
    """Return the title and the comparison of each task, by name."""
    named = {
        "classify": "Classifier: all weights trained",
        "lora": "Classifier: low-rank adapters",
    }
    return {
        **{
            stage: (title, partial(classifiers, stage=stage, title=title))
            for stage, title in named.items()
        },
        "exercises": ("Assistant: exercises", exercises),
        "general": ("Assistant: general questions", general_questions),
        "pretrain": ("Language model", partial(language_models, device=device)),
    }


@dataclass(frozen=True)
class Comparison:
    """The comparison of two sides."""

    first: Side
    second: Side
    sections: tuple[Section, ...]

    @property
    def sides(self) -> tuple[Side, Side]:
        """Return A and B."""
        return self.first, self.second

    @property
    def figures(self) -> list[tuple[Section, Figure]]:
        """Return all figures with their sections."""
        return [(section, figure) for section in self.sections for figure in section.figures]

    @property
    def verdict(self) -> str:
        """Return the verdict over all figures in a single line."""
        words: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
        for section, figure in self.figures:
            words[figure.verdict].append(f"{figure.name} ({section.name})")
        total = len(self.figures)
        parts = [
            f"{word} on {', '.join(words[word])}" for word in ("better", "worse") if words[word]
        ]
        if not parts:
            return f"No significant difference between A and B on {total} figures."
        rest = len(words["same"])
        ending = f"; no significant difference on the other {rest} of {total} figures"
        return f"B is {', and '.join(parts)}{ending if rest else ''}."


def compare(first: Side, second: Side, *, device: str) -> Comparison:
    """Compare two sides on every task that both have.

    Raises ValueError with the reasons where no task can be compared.
    """
    comparison = compare_tasks(first, second, device=device, names=list(tasks(device)))
    if not comparison.figures:
        reasons = "; ".join(f"{part.name}: {part.missing}" for part in comparison.sections)
        raise ValueError(f"nothing can be compared: {reasons}")
    return comparison


def compare_tasks(first: Side, second: Side, *, device: str, names: Collection[str]) -> Comparison:
    """Compare two sides on the named tasks."""
    chosen = {name: task for name, task in tasks(device).items() if name in names}
    sections = [_compared(name, *task, first, second) for name, task in chosen.items()]
    figures = [figure for section in sections for figure in section.figures]
    corrected = iter(holm([figure.p for figure in figures]))
    return Comparison(
        first,
        second,
        tuple(
            replace(
                section,
                figures=tuple(replace(f, corrected=next(corrected)) for f in section.figures),
            )
            for section in sections
        ),
    )


def _compared(name: str, title: str, task: Task, first: Side, second: Side) -> Section:
    try:
        return task(first, second)
    except MissingError as error:
        return Section(name, title, missing=str(error))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON content."""
    return {
        "verdict": comparison.verdict,
        "sides": {
            side.letter: {"name": side.name, "origin": side.origin} for side in comparison.sides
        },
        "differences": [asdict(change) for change in changes(*comparison.sides)],
        "not_recorded": unknown(*comparison.sides),
        "statistics": {
            "interval": 0.95,
            "level": LEVEL,
            "correction": "Holm",
            "figures": len(comparison.figures),
            "resamples": RESAMPLES,
        },
        "tasks": [
            {
                **asdict(section),
                "figures": [
                    {**asdict(figure), "verdict": figure.verdict, "sentence": figure.sentence}
                    for figure in section.figures
                ],
            }
            for section in comparison.sections
        ],
    }
