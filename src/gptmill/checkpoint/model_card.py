"""Model cards: the `README.md` in a checkpoint's folder.

The file begins with YAML for Hugging Face's hub. Equal cards have equal bytes: times, machine paths
and hosts are left out.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Literal

from gptmill.checkpoint.families import family_of
from gptmill.checkpoint.hf_config import read_config
from gptmill.checkpoint.weights import open_folder
from gptmill.files import read_text, write_text
from gptmill.model.gpt import GPTConfig
from gptmill.origins import Origin

Task = Literal["text-generation", "text-classification"]

ORIGIN_COLUMNS = ("source", "licence", "attribution", "files", "hash")
SPDX = re.compile(r"[\w.+-]+")
MADE_BY = "Made by gptmill"


@dataclass(frozen=True, kw_only=True)
class Card:
    """The facts a person should know before using a model."""

    name: str
    task: Task
    summary: str
    """One or two sentences on the model and its training."""
    intended_use: str
    limits: str
    licence: str | None = None
    """The licence of the weights, in the words of the source; None if undecided."""
    base: str | None = None
    """The name of the base model, never a machine path."""
    read: Mapping[str, str] = field(default_factory=dict)
    """The files behind the model, each with its hash (`sha256:...`)."""
    origins: tuple[Origin, ...] = ()
    """All raw data behind the weights, and behind the base."""
    metrics: Mapping[str, float | int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("name", "summary", "intended_use", "limits"):
            if not getattr(self, name).strip():
                raise ValueError(f"a card's {name} is empty; allowed is any text")


def write_card(folder: Path, card: Card) -> None:
    """Write `README.md` to a checkpoint's folder; shape and size come from the folder."""
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
    """Return the YAML for the hub; every JSON string is a YAML string."""
    lines = [
        f"license: {json.dumps(_spdx(card.licence))}",
        f"pipeline_tag: {json.dumps(card.task)}",
        'library_name: "transformers"',
    ]
    if card.base is not None:
        lines.append(f"base_model: {json.dumps(card.base)}")
    return "\n".join(["---", *lines, "---"])


def _spdx(licence: str | None) -> str:
    """Return the hub's form of a licence: a lower-case SPDX identifier, or `other`."""
    if licence is None:
        return "unknown"
    return licence.lower() if SPDX.fullmatch(licence) else "other"


def _shape(config: GPTConfig, parameters: int) -> str:
    rows: list[tuple[object, ...]] = [
        ("architecture", family_of(config).title),
        ("parameters", f"{parameters:,}"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("context", f"{config.context_length:,} tokens"),
        ("layers", config.n_layers),
        ("width", config.emb_dim),
        ("heads", config.n_heads),
    ]
    if config.n_kv_heads != config.n_heads:
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
        f"With transformers, load the model by `{auto}.from_pretrained(folder)` and the tokenizer "
        "by `AutoTokenizer.from_pretrained(folder)`."
    )


def _data(card: Card) -> str:
    parts = []
    if card.read:
        files = ", ".join(f"`{name}` (`{digest}`)" for name, digest in card.read.items())
        parts.append(f"Made from {files}.")
    if card.origins:
        rows = [
            (one.name, one.licence, one.attribution, one.files, f"`{one.hash}`")
            for one in card.origins
        ]
        parts.append(
            "All raw data behind the weights. The hash of several files is the hash of "
            "`sha256sum`'s list:"
        )
        parts.append(_table(ORIGIN_COLUMNS, rows))
    return "\n\n".join(["## Data", *parts]) if parts else ""


def read_card_origins(folder: Path) -> list[Origin]:
    """Read the raw data behind a model from the card in `folder`; empty without a card."""
    path = folder / "README.md"
    lines = read_text(path).split("\n") if path.is_file() else []
    head = _table(ORIGIN_COLUMNS, []).split("\n")
    start = next((k for k in range(len(lines)) if lines[k : k + 2] == head), len(lines))
    rows = takewhile(lambda line: line.startswith("| "), lines[start + 2 :])
    return [_origin_of(row) for row in rows]


def _origin_of(row: str) -> Origin:
    cells = [cell.replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
    name, licence, attribution, files, digest = (cell[1:-1] for cell in cells)
    return Origin(
        name=name,
        licence=licence,
        attribution=attribution,
        files=int(files),
        hash=digest.strip("`"),
    )


def _metrics(card: Card) -> str:
    if not card.metrics:
        return ""
    rows = [(name, _number(value)) for name, value in sorted(card.metrics.items())]
    return "## Metrics\n\n" + _table(("metric", "value"), rows)


def _number(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _origin(card: Card) -> str:
    return f"## Origin\n\n{MADE_BY}. The weights' licence: {card.licence or 'unknown'}."


def name_commit(folder: Path, commit: str) -> None:
    """Add the commit to the card in `folder`.

    A stage cannot, because the bytes of its output would change with each commit.
    """
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    named = f"{MADE_BY} at commit `{commit}`. The commit's dvc.lock records the weights."
    write_text(path, text.replace(f"{MADE_BY}.", named))


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines: list[tuple[object, ...]] = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
