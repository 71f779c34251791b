"""Results of a stage for a reader: main figure, baseline, folder, next command."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptmill.figures import read_figures
from tasks.project.environment import ROOT
from tasks.project.graph import lock, locked_outputs, producer, stages, upstream

JUDGE = "evaluate"  # the stage whose metrics hold the baselines of all stages
MAIN_FIGURES = (
    "pretrain_bits_per_byte",
    *(f"{name}_{figure}" for name in ("classify", "lora") for figure in ("accuracy", "f1", "auc")),
    "bag_of_words_f1",
    "instruct_right",
    "instruct_token_f1",
    "general_assistant_passed",
    "general_assistant_loss",
    "general_base_passed",
)
"""The figures of the last evaluation that a pipeline's run shows in MLflow."""
STATES = {
    "ran": "ran",
    "unchanged": "is up to date",
    "restored": "is restored from DVC's cache",
}


def metrics_of(stage: str) -> dict[str, Any]:
    """Load a stage's figures; empty before the stage has run."""
    return read_figures(ROOT / "artifacts" / stage)


@dataclass(frozen=True)
class Results:
    """Main figure, metrics and hashes of the outputs of a stage."""

    figure: str
    metrics: Mapping[str, Any]
    outputs: Mapping[str, str]


def results_of(stage: str) -> Results:
    """Return the present results of a stage."""
    return Results(main_figure(stage), metrics_of(stage), locked_outputs(stage))


def main_figures() -> dict[str, float]:
    """Return the main figures of the last evaluation, as far as measured."""
    figures = metrics_of(JUDGE)
    return {name: float(figures[name]) for name in MAIN_FIGURES if name in figures}


def main_figure(stage: str) -> str:
    """Return a stage's main figure as text, `validation_loss 5.812`."""
    name = stages()[stage]["meta"]["main"]
    value = metrics_of(stage).get(name)
    return "" if value is None else f"{name} {shown(value)}"


def baseline(stage: str) -> str:
    """Return the baselines of the main figure, `unigram 6.504`; "" where none is known.

    Baselines measured on other inputs than the stage's do not count.
    """
    names = stages()[stage]["meta"].get("baselines", {})
    figures = metrics_of(stage)
    if stage != JUDGE and names and _has_same_inputs(stage):
        figures = metrics_of(JUDGE) | figures
    known = {label: figures[name] for label, name in names.items() if name in figures}
    return ", ".join(f"{label} {shown(value)}" for label, value in known.items())


def beside(stage: str) -> str:
    """Return the baselines to print after the main figure, ` (baseline: unigram 6.504)`, or ""."""
    against = baseline(stage)
    return f" (baseline: {against})" if against else ""


def _has_same_inputs(stage: str) -> bool:
    """Return whether the last evaluation used the present inputs of a stage."""
    used = {dep["path"]: dep["md5"] for dep in lock().get(JUDGE, {}).get("deps", [])}
    shared = [path for path in stages()[stage]["deps"] if path in used and producer(path)]
    return bool(shared) and all(
        used[path] == locked_outputs(str(producer(path))).get(path) for path in shared
    )


def shown(value: object) -> str:
    """Format a figure for a person to read."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def result_lines(stage: str, state: str) -> list[str]:
    """Return the lines printed after a stage: figure beside baselines, folder, next command."""
    figure = main_figure(stage)
    text = f"{stage} {STATES[state]}" + (f": {figure}" if figure else "")
    lines = [text + beside(stage), f"results   artifacts/{stage}/"]
    if use := stages()[stage]["meta"].get("use"):
        lines.append(f"use       {use}")
    lines.append(f"next      {_next_command(stage)}")
    return lines


def _next_command(stage: str) -> str:
    """Return the command after a stage: the first stage that reads its outputs."""
    later = next((name for name in stages() if stage in upstream(name)), None)
    return f"make {later}" if later else "make ui"
