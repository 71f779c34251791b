"""tokenize: data/text, a vocabulary -> artifacts/tokenize (token ids, in two parts)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import pandas as pd
from pydantic import Field

from gptmill.data.documents import Document, mixed, read_documents, split_documents
from gptmill.data.token_file import TokenFile
from gptmill.data.token_shards import begun, read_shards, unfinished
from gptmill.files import read_json, write_json
from gptmill.formats.weight_folders import tokenizer_of
from gptmill.origins import write_origins
from gptmill.tokenizer.bpe_engines import EncodingError, Part
from gptmill.tokenizer.learning import LEAST_SIZE, learn_tokenizer
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.frame.run import Inputs, Metrics, Run
from tasks.frame.stage import Section, stage


class Tokenize(Section):
    """params.yaml `tokenize:`."""

    quality: ClassVar[tuple[str, ...]] = ("bytes_per_token",)
    vocabulary: str = Field(description="data/bpe, weights below data/weights, or data/text")
    vocabulary_size: int = Field(ge=LEAST_SIZE, description="of a vocabulary from data/text")
    validation_fraction: float = Field(gt=0, lt=1, description="of the documents, by hash")


@stage
def tokenize(params: Tokenize, run: Run) -> Metrics:
    """Encode documents as ids with <|endoftext|> between them, in two parts."""
    documents, near = keep_together(run, read_documents(run.data("text")))
    train, validation = split_documents(documents, params.validation_fraction)
    if near:
        parts = {"train": train, "validation": validation}
        run.show("near-duplicates", near_examples(parts, near))
    train, mixture = mix(run, train)
    tokenizer = vocabulary(params, run, train)
    shards = finished_shards(run)
    statistics = {}
    for part, chosen in (("train", train), ("validation", validation)):
        tokens = TokenFile.write_parts(
            run.out / f"{part}.bin",
            read_shards(run.shards, shards, chosen, tokenizer.fingerprint)
            if shards
            else encode(tokenizer, chosen),
            names=[document.name for document in chosen],
            separator=tokenizer.eot_id,
            vocab_size=tokenizer.n_vocab,
            fingerprint=tokenizer.fingerprint,
        )
        statistics[part] = {**sizes(chosen), "tokens": len(tokens)}
    (run.out / "tokenizer").mkdir()
    tokenizer.save(run.out / "tokenizer", context_length=CONTEXT_LENGTH)
    write_json(run.out / "statistics.json", statistics)
    write_origins(run.out / "origins.json", run.origins("text"))
    if mixture:
        write_json(run.out / "mixture.json", mixture)
        run.show("mixture", pd.DataFrame(mixture))
    run.show("parts", pd.DataFrame(statistics).T.rename_axis("part").reset_index())
    return figures(statistics)


def keep_together(
    run: Inputs, documents: list[Document]
) -> tuple[list[Document], dict[str, dict[str, Any]]]:
    """Return documents with one position per group of near-duplicates, and the near-duplicates.

    `make data` found the groups. A group stays in the part of the document that stands for it.
    """
    files = read_json(run.path("data/manifest/text.json"))["files"]
    near = {name: file["near"] for name, file in files.items() if "near" in file}
    positions = {f"text/{document.name}": document.position for document in documents}
    moved = [
        replace(document, position=positions[near[name]["group"]]) if name in near else document
        for name, document in zip(positions, documents, strict=True)
    ]
    return moved, near


EXAMPLES = 5  # pairs of near-duplicates shown


def near_examples(
    parts: dict[str, list[Document]], near: dict[str, dict[str, Any]]
) -> pd.DataFrame:
    """Return the most similar documents, a pair of each group, each with part and beginning."""
    lies_in = {f"text/{d.name}": (part, d) for part, chosen in parts.items() for d in chosen}
    assert all(lies_in[name][0] == lies_in[near[name]["group"]][0] for name in near)
    closest: dict[str, str] = {}
    for name in sorted(near, key=lambda name: (-near[name]["similarity"], name)):
        closest.setdefault(near[name]["group"], name)
    rows = []
    for name in list(closest.values())[:EXAMPLES]:
        row = {"similarity": near[name]["similarity"]}
        for which, path in (("", name), ("twin ", near[name]["twin"])):
            part, document = lies_in[path]
            row |= {
                f"{which}document": path,
                f"{which}part": part,
                f"{which}begins": document.beginning,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def mix(run: Inputs, train: list[Document]) -> tuple[list[Document], list[dict[str, Any]]]:
    """Return the training part by the weights of sources.toml, and a row per source.

    Without weights and temperature the part stays as before, and there are no rows.
    """
    manifest = read_json(run.path("data/manifest/text.json"))
    sources = manifest["sources"].values()
    if not any({"weight", "temperature"} & source.keys() for source in sources):
        return train, []
    weights = {name: source.get("weight", 1.0) for name, source in manifest["sources"].items()}
    temperature = max(source.get("temperature", 1.0) for source in sources)
    names = [manifest["files"][f"text/{document.name}"]["sources"][0] for document in train]
    chosen, rows = mixed(train, names, weights, temperature)
    return chosen, [asdict(row) for row in rows]


def vocabulary(params: Tokenize, run: Inputs, train: Sequence[Document]) -> Tokenizer:
    """Return the tokenizer: GPT-2's, of weights, or learned from the training part."""
    if params.vocabulary != "data/text":
        return tokenizer_of(run.path(params.vocabulary))
    try:
        return learn_tokenizer((document.text for document in train), params.vocabulary_size)
    except ValueError as error:
        raise ValueError(f"params.yaml: tokenize.vocabulary_size: {error}") from None


def finished_shards(run: Run) -> int:
    """Return the number of shards that `make shards` wrote; 0 where any is unfinished."""
    shards = begun(run.shards)
    missing = unfinished(run.shards, shards)
    if missing:
        run.log(f"{len(missing)} of {shards} shards are unfinished: all texts are encoded here")
        return 0
    if shards:
        run.log(f"ids read from {shards} shards")
    return shards


def encode(tokenizer: Tokenizer, documents: list[Document]) -> Iterator[Part]:
    """Yield ids of each document; name the file of a text that cannot be encoded."""
    try:
        yield from tokenizer.encode_documents(document.pieces() for document in documents)
    except EncodingError as error:
        raise ValueError(f"data/text/{documents[error.index].name}: {error}") from None


CONTEXT_LENGTH = 1024
"""GPT-2's context length, in the tokenizer's folder; a checkpoint has the model's own."""


def sizes(documents: list[Document]) -> dict[str, int]:
    """Return the counts behind bits per byte and averages, without separators."""
    return {
        "documents": len(documents),
        "characters": sum(document.characters for document in documents),
        "bytes": sum(document.size for document in documents),
    }


def figures(statistics: dict[str, dict[str, int]]) -> Metrics:
    """Return the main figures of both parts."""
    train, validation = statistics["train"], statistics["validation"]
    tokens = train["tokens"] + validation["tokens"]
    return {
        "documents": train["documents"] + validation["documents"],
        "training_tokens": train["tokens"],
        "validation_tokens": validation["tokens"],
        "validation_share_of_tokens": validation["tokens"] / tokens,
        "bytes_per_token": (train["bytes"] + validation["bytes"]) / tokens,
    }
