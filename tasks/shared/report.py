"""The pages of `evaluate`: a report on the tables, answers and samples."""

from collections.abc import Mapping, Sequence

import pandas as pd

from gptmill.data.tables import markdown_table
from tasks.frame.run import Metrics

Tables = Mapping[str, pd.DataFrame]
EXACT = ("exact_match", "before_exact_match", "baseline_exact_match")


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
    return metrics


def report(tables: Tables) -> str:
    """Return the results in sentences and tables, as markdown."""
    language, classifiers, assistant = (
        tables[name] for name in ("language_model", "classifiers", "assistant")
    )
    return "\n\n".join(
        [
            "## Pretrained model",
            _language_sentence(language),
            markdown_table(language),
            "## Classifiers",
            _classifiers_sentence(classifiers),
            markdown_table(_with_intervals(classifiers, ("accuracy", "f1", "auc", "f1_gain"))),
            "## Assistant",
            _assistant_sentence(assistant),
            markdown_table(_with_intervals(assistant, EXACT)),
            "All intervals are 95 % confidence intervals: Wilson's for accuracy and exact match, a "
            "bootstrap over the test rows for F1 and AUC, a paired bootstrap for `f1_gain` (F1 "
            "minus the F1 of the bag of words). The baseline of a kind of question is the most "
            "frequent answer in the training part; `before` is the base without fine-tuning.\n",
        ]
    )


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
        f"More exact answers than the baseline on {len(beaten)} of {len(kinds)} kinds of question "
        f"({', '.join(beaten) or 'none'}); above the baseline's confidence interval on "
        f"{len(beyond)} ({', '.join(beyond) or 'none'})."
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
