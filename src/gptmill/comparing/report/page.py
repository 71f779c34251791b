"""The HTML page of one run: one file, without scripts or network."""

from collections.abc import Sequence

from markupsafe import Markup

from gptmill.comparing.curves import training_curves
from gptmill.comparing.page import template
from gptmill.comparing.report.examples import WORDS, answers, mistakes
from gptmill.comparing.report.facts import Facts
from gptmill.comparing.report.figures import evaluation, stage_figures
from gptmill.comparing.side import Side


def render(side: Side, facts: Facts, *, stages: Sequence[str]) -> str:
    """Return the page; all texts are escaped, since answers are texts of a model.

    `stages` are the names of the stages in order. Parts of which the side has no artifact are left
    out.
    """
    return template("report/page.html").render(
        side=side,
        facts=facts,
        curves={stage: Markup(svg) for stage, svg in training_curves(side).items()},
        evaluation=Markup(evaluation(side)),
        figures=stage_figures(side, [stage for stage in stages if stage != "evaluate"]),
        answers=answers(side),
        mistakes=mistakes(side),
        words=WORDS,
    )
