"""Model cards: a `README.md` in a checkpoint's folder that says what is known of the model.

The head of the file is YAML as Hugging Face's hub reads it. Equal cards are equal bytes: no time,
no path of a machine and no host is in one.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gptmill.files import write_text
from gptmill.hf_config import read_config
from gptmill.model import GPTConfig
from gptmill.weights import open_folder

Task = Literal["text-generation", "text-classification"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a model was trained on: a name, its hash, its licence where that is known."""

    name: str
    hash: str
    """The algorithm, a colon, the digest: `sha256:...`."""
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a person should know before using a model."""

    name: str
    task: Task
    summary: str
    """One or two sentences: what it is and how it was made."""
    intended_use: str
    limits: str
    licence: str | None = None
    """An identifier of SPDX, as `apache-2.0`; None where nobody has decided."""
    base: str | None = None
    """What it was fine-tuned from: a name, never a path of one machine."""
    data: tuple[Data, ...] = ()
    metrics: Mapping[str, float | int | str] = field(default_factory=dict)
    commit: str | None = None
    """The commit that made it. It would change a stage's bytes: for exports alone."""

    def __post_init__(self) -> None:
        for name in ("name", "summary", "intended_use", "limits"):
            if not getattr(self, name).strip():
                raise ValueError(f"a card's {name} is empty; allowed is what a reader must know")


def write_card(folder: Path, card: Card) -> None:
    """Write `README.md` into a checkpoint's folder; shape and size are read from there."""
    parameters = sum(math.prod(shape) for shape in open_folder(folder).shapes.values())
    sections = [
        _front(card),
        f"# {card.name}",
        card.summary.strip(),
        _shape(read_config(folder), parameters),
        _use(card),
        f"## Limits\n\n{card.limits.strip()}",
        _data(card),
        _metrics(card),
        _origin(card),
    ]
    write_text(folder / "README.md", "\n\n".join(section for section in sections if section) + "\n")


def _front(card: Card) -> str:
    """Return the YAML that the hub reads; a JSON string is one of YAML."""
    lines = [
        f"license: {json.dumps(card.licence or 'unknown')}",
        f"pipeline_tag: {json.dumps(card.task)}",
        'library_name: "transformers"',
    ]
    if card.base is not None:
        lines.append(f"base_model: {json.dumps(card.base)}")
    return "\n".join(["---", *lines, "---"])


def _shape(config: GPTConfig, parameters: int) -> str:
    family = "GPT-2" if config.llama is None else "Llama"
    rows: list[tuple[object, ...]] = [
        ("architecture", family),
        ("parameters", f"{parameters:,}"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("context", f"{config.context_length:,} tokens"),
        ("layers", config.n_layers),
        ("width", config.emb_dim),
        ("heads", config.n_heads),
    ]
    if config.llama is not None:
        rows.append(("key-value heads", config.n_kv_heads))
    rows.append(("feed-forward width", config.ff_dim))
    rows.append(("head tied to the embedding", "yes" if config.tie_weights else "no"))
    return "## Shape\n\n" + _table(("", ""), rows)


def _use(card: Card) -> str:
    auto = {
        "text-generation": "AutoModelForCausalLM",
        "text-classification": "AutoModelForSequenceClassification",
    }[card.task]
    return (
        f"## Intended use\n\n{card.intended_use.strip()}\n\n"
        f"It opens with transformers: `{auto}.from_pretrained(folder)`, and its tokenizer with "
        "`AutoTokenizer.from_pretrained(folder)`."
    )


def _data(card: Card) -> str:
    if not card.data:
        return ""
    rows = [(data.name, f"`{data.hash}`", data.licence or "unknown") for data in card.data]
    return "## Data\n\n" + _table(("data", "hash", "licence"), rows)


def _metrics(card: Card) -> str:
    if not card.metrics:
        return ""
    rows = [(name, _number(value)) for name, value in sorted(card.metrics.items())]
    return "## Metrics\n\n" + _table(("metric", "value"), rows)


def _number(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _origin(card: Card) -> str:
    made = f" at commit `{card.commit}`" if card.commit is not None else ""
    return f"## Origin\n\nMade by gptmill{made}. The weights' licence: {card.licence or 'unknown'}."


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines: list[tuple[object, ...]] = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
