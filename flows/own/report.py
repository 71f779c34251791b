"""What was understood of a user's own data: rows, classes, lengths, and rows that do not fit."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pandas as pd

from flows.own.data import KINDS, Entry
from gptmill.data.documents import read_documents
from gptmill.data.row_files import instruction_records, read_instructions, read_labelled
from gptmill.origins import read_manifest
from tasks.project import graph

CLASSES_SHOWN = 10


def report(root: Path, entry: Entry, training: Sequence[str]) -> str:
    """Return lines on the data that an entry made, on the training ahead, and the next command."""
    describe = {"TEXT": _texts, "LABELLED": _labels, "CHATS": _chats}[entry.kind]
    param = KINDS[entry.kind].param
    lines = [
        f"sources.toml: the source {entry.name} makes {entry.path}{entry.columns}",
        *([f"params.yaml: {param} is {entry.path}"] if param else []),
        *describe(root, entry),
        *training,
        "next: make pipeline",
    ]
    return "\n".join(lines)


def _texts(root: Path, entry: Entry) -> list[str]:
    documents = read_documents(root / entry.path)
    others = sorted(
        {
            source
            for name, file in read_manifest(root / "data")["files"].items()
            for source in file["sources"]
            if name.startswith("text/") and source != entry.name
        }
    )
    words = _spread([document.words() for document in documents])
    lines = [f"  {_count(len(documents), 'document')}; words per document: {words}"]
    if others:
        lines.append(
            f"  training reads all of data/text, also {', '.join(others)}: `enabled = false` in "
            "sources.toml leaves a source out"
        )
    return lines


def _labels(root: Path, entry: Entry) -> list[str]:
    table = read_labelled(root / entry.path)
    counts = table["label"].value_counts()
    shown = ", ".join(f"{label} {n:,}" for label, n in counts.head(CLASSES_SHOWN).items())
    more = f" and {len(counts) - CLASSES_SHOWN} more" if len(counts) > CLASSES_SHOWN else ""
    texts = list(table["text"])
    return [
        f"  {_count(len(table), 'row')} in {len(counts)} classes: {shown}{more}",
        f"  words per text: {_words(texts)}",
        *_cut(root, table, entry.kind),
    ]


def _chats(root: Path, entry: Entry) -> list[str]:
    table = read_instructions(root / entry.path)
    asked = [" ".join(pair) for pair in zip(table["instruction"], table["input"], strict=True)]
    turns = [1 + len(history) // 2 for history in table.get("history", [()] * len(table))]
    kinds = table["kind"].value_counts()
    shown = ", ".join(f"{kind} {n:,}" for kind, n in kinds.head(CLASSES_SHOWN).items())
    return [
        f"  {_count(len(table), 'conversation')}; kinds: {shown}",
        f"  turns per conversation: median {median(turns):,.0f}, longest {max(turns):,}",
        f"  words per instruction: {_words(asked)}",
        f"  words per answer: {_words(list(table['output']))}",
        *_cut(root, table, entry.kind),
    ]


def _cut(root: Path, table: pd.DataFrame, kind: str) -> list[str]:
    """Return a line on the rows that do not fit the context, counted in GPT-2's tokens."""
    from gptmill.finetuning import classification, instruction_rows, instructions  # imports torch
    from gptmill.tokenizer.tokenizer import Tokenizer

    bpe, context = root / "data" / "bpe", _context(root)
    if context is None or not bpe.exists():
        return []
    tokenizer = Tokenizer.from_bpe_files(bpe / "vocab.bpe", bpe / "encoder.json")
    if kind == "LABELLED":
        _, n = classification.encode(list(table["text"]), tokenizer, context)
        return [f"  texts cut at the context of {context} tokens: {n:,}"]
    template = instructions.default_template(tokenizer)
    rows = instruction_records(table)
    unfit = instruction_rows.encode_rows(rows, tokenizer, template, context).unfit
    n = len(unfit.get(instruction_rows.TOO_LONG, ()))
    return [f"  conversations left out, longer than the context of {context} tokens: {n:,}"]


def _context(root: Path) -> int | None:
    """Return the context length of the base, None where the weights are not here yet."""
    from gptmill.formats.importing import check_model

    params = graph.read_yaml(root / "params.yaml")
    weights = params["load_gpt2"]["weights"]
    if weights == "artifacts/pretrain":
        length: int = params["sample"]["windows"]["max_length"]
        return length
    return check_model(root / weights).context_length if (root / weights).exists() else None


def _words(texts: Sequence[str]) -> str:
    return _spread([len(text.split()) for text in texts])


def _spread(lengths: Sequence[int]) -> str:
    return f"median {median(lengths):,.0f}, longest {max(lengths):,}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
