"""The pages of `evaluate`: a report on the tables, answers and samples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gptmill.data.tables import markdown_table
from tasks.frame.run import Metrics

Tables = Mapping[str, pd.DataFrame]
GAINS = ("continued_gain", "continued_other", "assistant_gain", "general_gain")
CONTINUED = {
    "continued_gain": "{rows:,} windows of held-out documents",
    "continued_other": "{rows:,} other texts, the general questions",
}
"""The texts on which a continued model is compared with its start."""
RIGHT = ("right", "before_right", "baseline_right")
ASSISTANT = (
    *("kind", "rows", *RIGHT, "token_f1", "before_token_f1"),
    *("length_ratio", "stopped", "repetition"),
)
"""The columns of the assistant's table in the report; the CSV file has all columns."""
CLASSIFIER = ("accuracy", "f1", "auc")
ANSWERS = ("token_f1", "stopped", "length_ratio", "repetition")
JUDGED = {
    "pretrain": ("loss", "bits_per_byte"),
    "classify": CLASSIFIER,
    "lora": CLASSIFIER,
    "instruct": ("right", "exact_match", *ANSWERS),
    "general_assistant": ("passed", "loss", *ANSWERS),
}
QUALITY = tuple(f"{model}_{name}" for model, names in JUDGED.items() for name in names)
"""The figures of the project's own models, without bounds, counts and baselines."""


def figures(tables: Tables) -> Metrics:
    """Return the tables as flat metrics: MODEL_COLUMN, and `instruct_COLUMN` over all kinds."""
    metrics: Metrics = {}
    for table in (tables["language_model"], tables["classifiers"]):
        for row in table.to_dict("records"):
            model = str(row.pop("model"))
            own = {name: value for name, value in row.items() if not str(name).endswith(model)}
            metrics |= {f"{model}_{name}": _number(value) for name, value in own.items()}
    *kinds, total = tables["assistant"].to_dict("records")
    metrics |= {f"instruct_{name}": _number(total[name]) for name in total if name != "kind"}
    metrics["instruct_kinds"] = len(kinds)
    metrics["instruct_kinds_beaten"] = sum(row["beats"] for row in kinds)
    metrics["instruct_kinds_beaten_beyond_interval"] = sum(row["beats_interval"] for row in kinds)
    for row in tables["general"][tables["general"]["kind"] == "all"].to_dict("records"):
        metrics |= _prefixed(f"general_{row.pop('model')}", row)
    if "other_text" in tables:
        for row in tables["other_text"].to_dict("records"):
            metrics |= _prefixed(f"other_{row.pop('model')}", row)
    for name in [name for name in GAINS if name in tables]:
        metrics |= _prefixed(name, tables[name].iloc[-1].to_dict())
    return {name: value for name, value in metrics.items() if math.isfinite(float(value))}


def _prefixed(prefix: str, row: Mapping[Any, Any]) -> Metrics:
    return {f"{prefix}_{name}": _number(row[name]) for name in row if name != "kind"}


def report(tables: Tables) -> str:
    """Return the results in sentences and tables, as markdown."""
    language, classifiers, assistant = (
        tables[name] for name in ("language_model", "classifiers", "assistant")
    )
    return "\n\n".join(
        [
            "## Main figures",
            markdown_table(main_figures(tables)),
            "## Pretrained model",
            _language_sentence(language),
            markdown_table(language),
            *_continued(tables),
            "## Classifiers",
            _classifiers_sentence(classifiers),
            markdown_table(_with_intervals(classifiers, ("accuracy", "f1", "auc", "f1_gain"))),
            "## Assistant",
            _assistant_sentence(assistant),
            markdown_table(_with_intervals(assistant, (*RIGHT, "stopped"))[list(ASSISTANT)]),
            "Assistant minus base on the exercises:",
            markdown_table(_with_intervals(tables["assistant_gain"], ("named", "token_f1"))),
            "## General questions",
            _general_sentence(tables["general_gain"]),
            markdown_table(
                _with_intervals(tables["general"], ("passed", "loss", "token_f1", "stopped"))
            ),
            "Assistant minus base:",
            markdown_table(_with_intervals(tables["general_gain"], ("passed", "loss", "token_f1"))),
            "All intervals are 95 % confidence intervals: Wilson's for accuracy and other shares "
            "of rows, a bootstrap over the rows for F1, AUC, losses and differences, a paired "
            "bootstrap for `f1_gain` (F1 minus the F1 of the bag of words). The baseline "
            "of a kind of exercise is the most frequent answer in the training part; `before` is "
            "the base without fine-tuning. `right` is the share of answers that name the expected "
            "word and nothing else, in a sentence or alone, and that match the expected answer "
            "where it is longer than three words; `named` is the same share of the rows with a "
            "short expected answer; `passed` is the share of answers that "
            "follow the rules of the question; `loss` is the loss of the reference answers in nats "
            "per token; `length_ratio` compares the words of the answers with the words of the "
            "references; `stopped` is the share of answers that end before the limit; "
            "`repetition` is the mean share of runs of four words that repeat an earlier run.\n",
        ]
    )


def main_figures(tables: Tables) -> pd.DataFrame:
    """Return a row for each main figure, with the baseline beside the model."""
    language = tables["language_model"].set_index("model")["bits_per_byte"]
    classifiers = tables["classifiers"].set_index("model")
    exercises, general = tables["assistant"].iloc[-1], tables["general"]
    total = general[general["kind"] == "all"].set_index("model")
    rows: list[tuple[str, str, str, float, str, float]] = [
        ("language model", "bits per byte", model, language[model], "bigram", language["bigram"])
        for model in ("pretrain", "start", "load_gpt2")
        if model in language
    ]
    if "other_text" in tables:
        bits = tables["other_text"].set_index("model")["bits_per_byte"]
        other = ("other text", "bits per byte", "pretrain", bits["pretrain"])
        rows.append((*other, "start", bits["start"]))
    words = "bag_of_words"
    for model in classifiers.index.difference([words, "majority"]):
        for figure in ("accuracy", "f1", "auc"):
            value, usual = (classifiers[figure][name] for name in (model, words))
            rows.append(("classifier", figure, model, value, "bag of words", usual))
    for figure in ("right", *ANSWERS):
        before = exercises[f"before_{figure}"]
        rows.append(("exercises", figure, "assistant", exercises[figure], "base", before))
    for figure in ("passed", "loss", *ANSWERS):
        value, usual = (total[figure][name] for name in ("assistant", "base"))
        rows.append(("general questions", figure, "assistant", value, "base", usual))
    columns = ["task", "figure", "model", "value", "beside", "value beside"]
    return pd.DataFrame(rows, columns=columns)


def general_page(answers: pd.DataFrame, count: int) -> str:
    """Return the first answers of each kind of question as markdown, both models side by side."""
    blocks = []
    for kind, rows in answers.groupby("kind", sort=True):
        blocks += [f"## {kind}", markdown_table(rows.head(count).drop(columns=["id", "kind"]))]
    return "\n\n".join([*blocks, ""])


def answers_page(answers: pd.DataFrame, count: int) -> str:
    """Return the first answers of each kind as markdown, because scores hide the mistakes."""
    blocks = []
    for kind, rows in answers.groupby("kind", sort=True):
        blocks.append(f"## {kind}")
        for row in rows.head(count).to_dict("records"):
            asked = f"{row['instruction']} {row['input']}"
            lines = (
                asked,
                f"expected: {row['output']}",
                f"before: {row['before']}",
                f"answer: {row['answer']}",
            )
            blocks.append("\n".join(f"- {' '.join(line.split())}" for line in lines))
    return "\n\n".join([*blocks, ""])


def samples_page(prompts: Sequence[str], continuations: Sequence[str]) -> str:
    """Return prompts in bold with their continuations, as markdown quotes."""
    texts = [
        f"> **{prompt}**{continuation}".replace("\n", "  \n> ")
        for prompt, continuation in zip(prompts, continuations, strict=True)
    ]
    return "\n\n".join([*texts, ""])


def _number(value: float) -> float | int:
    """Return a number, with true as 1 and false as 0."""
    return value if isinstance(value, float) else int(value)


def _language_sentence(table: pd.DataFrame) -> str:
    rows = table.set_index("model")
    loss = rows["loss"]
    sentence = (
        f"{loss['pretrain']:.2f} nats per token on {rows['tokens']['pretrain']:,} validation "
        f"tokens: {_beside(loss['pretrain'], loss['unigram'])} a unigram model, "
        f"{_beside(loss['pretrain'], loss['bigram'])} a bigram."
    )
    if "load_gpt2" in loss:
        bits = rows["bits_per_byte"]
        sentence += (
            " Fine-tuning starts from a separate model, load_gpt2, with "
            f"{bits['load_gpt2']:.3f} bits per byte on the same text (pretrain: "
            f"{bits['pretrain']:.3f})."
        )
    return sentence


def _continued(tables: Tables) -> list[str]:
    """Return the comparison of a continued model with its start; empty for a random start."""
    if "continued_gain" not in tables:
        return []
    verdicts = "; ".join(
        _verdict(tables[name].iloc[-1].to_dict(), texts) for name, texts in CONTINUED.items()
    )
    return [
        f"pretrain minus start, the weights that the training went on from, in bits per byte: "
        f"{verdicts}. Worse on other texts is what the training has forgotten.",
        markdown_table(_with_intervals(tables["other_text"], ("bits_per_byte",))),
    ]


def _verdict(gain: Mapping[Any, Any], texts: str) -> str:
    """Return a difference in bits per byte with its interval, in words."""
    low, high = (gain[f"bits_per_byte_{end}"] for end in ("low", "high"))
    verdict = "better" if high < 0 else "worse" if low > 0 else "not different beyond the interval"
    return (
        f"{gain['bits_per_byte']:+.4f} ({low:+.4f} to {high:+.4f}) on "
        f"{texts.format(rows=int(gain['rows']))}: {verdict}"
    )


def _beside(loss: float, other: float) -> str:
    return f"{abs(other - loss):.2f} {'below' if loss < other else 'above'}"


def _classifiers_sentence(table: pd.DataFrame) -> str:
    beating = list(table.loc[table["beats_majority"], "model"])
    columns = ["model", "f1_gain", "f1_gain_low", "f1_gain_high"]
    tuned = table.loc[~table["model"].isin(["bag_of_words", "majority"]), columns]
    gains = [
        f"{model} {gain:+.3f} ({low:+.3f} to {high:+.3f})"
        for model, gain, low, high in tuned.itertuples(index=False)
    ]
    return (
        "Accuracy above the majority class's confidence interval: "
        f"{', '.join(beating).replace('_', ' ') or 'none'}. F1 compared with the bag of words on "
        f"the same rows: {', '.join(gains)}."
    )


def _assistant_sentence(table: pd.DataFrame) -> str:
    kinds = table.iloc[:-1]
    beaten = list(kinds.loc[kinds["beats"], "kind"])
    beyond = list(kinds.loc[kinds["beats_interval"], "kind"])
    return (
        f"More right answers than the baseline on {len(beaten)} of {len(kinds)} kinds of question "
        f"({', '.join(beaten) or 'none'}); above the baseline's confidence interval on "
        f"{len(beyond)} ({', '.join(beyond) or 'none'})."
    )


def _general_sentence(gains: pd.DataFrame) -> str:
    total = gains.iloc[-1]
    worse = [name for name in ("passed", "loss", "token_f1") if total[f"{name}_worse"]]
    verdict = (
        f"worse than the base beyond the interval in {', '.join(worse)}"
        if worse
        else "not worse than the base beyond the interval"
    )
    return (
        f"On {int(total['rows'])} general questions the assistant is {verdict}: "
        f"{100 * total['passed']:+.1f} points of passed checks ({100 * total['passed_low']:+.1f} "
        f"to {100 * total['passed_high']:+.1f}), {total['loss']:+.3f} nats per token of the "
        f"references ({total['loss_low']:+.3f} to {total['loss_high']:+.3f})."
    )


def _with_intervals(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the table with estimate and interval merged into one column."""
    shown = table.copy()
    for name in columns:
        limits = (shown.pop(f"{name}_low"), shown.pop(f"{name}_high"))
        shown[name] = [
            f"{value:.3f} ({low:.3f} to {high:.3f})"
            for value, low, high in zip(table[name], *limits, strict=True)
        ]
    return shown
