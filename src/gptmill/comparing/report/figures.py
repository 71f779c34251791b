"""Figures of a run: metrics of each stage with intervals, and the evaluation's report."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from gptmill.comparing.side import Side
from gptmill.figures import read_figures

EVALUATION = "evaluate/report.md"
ENDS = ("low", "high")
INTERVAL = re.compile(r"[\d.]+ \(\S+ to \S+\)")


def stage_figures(side: Side, stages: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return name and value of each stage's figures, an interval beside its value."""
    found = {stage: read_figures(side.folder / stage) for stage in stages}
    return {stage: _figures(figures) for stage, figures in found.items() if figures}


def _figures(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    bounds = {f"{name}_{end}" for name in metrics for end in ENDS}
    return [
        (name, _shown(value) + _interval(metrics, name))
        for name, value in metrics.items()
        if name not in bounds
    ]


def _interval(metrics: Mapping[str, Any], name: str) -> str:
    bounds = [metrics.get(f"{name}_{end}") for end in ENDS]
    return "" if None in bounds else f" ({' to '.join(map(_shown, bounds))})"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def evaluation(side: Side) -> str:
    """Return the evaluation's report as HTML below a heading of level 2; empty without a report."""
    if not side.has(EVALUATION):
        return ""
    text = side.file(EVALUATION).read_text(encoding="utf-8")
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("table_open", _open_table)
    markdown.add_render_rule("table_close", _close_table)
    text = re.sub("^## ", "### ", text, flags=re.MULTILINE)
    whole = INTERVAL.sub(lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    html: str = markdown.render(whole)
    return html


def _open_table(_: RendererHTML, tokens: Sequence[Token], *position: Any) -> str:
    """Return the start of a table that scrolls by itself on a narrow screen."""
    return '<div class="wide"><table>'


def _close_table(_: RendererHTML, tokens: Sequence[Token], *position: Any) -> str:
    return "</table></div>"
