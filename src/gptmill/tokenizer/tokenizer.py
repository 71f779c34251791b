"""Text to token ids and back, from tokenizer files on disk.

One class serves GPT-2's two files, any folder of Hugging Face's with a `tokenizer.json`, and the
metadata of a GGUF file.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gptmill.files import checked, read_json, read_text, write_json, write_text
from gptmill.tokenizer import gguf, huggingface
from gptmill.tokenizer.bpe_engines import Part, TokenizersEngine, encoded_in_order, engine
from gptmill.tokenizer.huggingface import Definition
from gptmill.tokenizer.vocabulary import (
    END_OF_TEXT,
    ROLES,
    SPELLING,
    Merge,
    gpt2_tokens,
    longest_first,
    read_merge,
    spell,
    unspell,
)

__all__ = ["END_OF_TEXT", "MERGES_HEADER", "Merge", "Tokenizer", "read_vocabulary"]

MERGES_HEADER = "#version: 0.2"


class Tokenizer:
    """A tokenizer with its special tokens.

    Tokenizers with equal `fingerprint` give equal ids to every text. `eot_id` ends a document,
    `eos_id` ends the text of a model, `pad_id` pads rows; `chat_template` is the template in the
    same files. `prefix` and `suffix` are the ids that Hugging Face's tokenizer puts around a text,
    such as the begin of a text: empty for GPT-2 and SmolLM2.
    """

    def __init__(self, definition: Definition | Iterable[Merge]) -> None:
        """Take a definition, or the merges of GPT-2's form in the order of their ids."""
        if not isinstance(definition, Definition):
            definition = _gpt2(definition)
        self.definition = definition
        self.chat_template: str | None = None
        self.special_ids = definition.special
        self.eot_id = self.special_ids[definition.end]
        self.bos_id = self._role("bos_token")
        self.eos_id = self._role("eos_token")
        self.pad_id = self._role("pad_token")
        self._engine = engine(definition)
        self.fingerprint = self._engine.fingerprint()
        self.n_vocab = len(self._engine.bytes_of)
        self.prefix, self.suffix = self._template()
        words = "|".join(re.escape(word) for word in longest_first(self.special_ids))
        self._special = re.compile(f"({words})")

    def _role(self, role: str) -> int:
        return self.special_ids.get(self.definition.roles.get(role, ""), self.eot_id)

    def _template(self) -> tuple[list[int], list[int]]:
        if not isinstance(self._engine, TokenizersEngine):
            return [], []
        library = self._engine.tokenizer
        inside, whole = (library.encode("a", add_special_tokens=add).ids for add in (False, True))
        if not inside:
            return list(whole), []
        start = next((k for k in range(len(whole)) if whole[k : k + len(inside)] == inside), 0)
        return list(whole[:start]), list(whole[start + len(inside) :])

    @classmethod
    def from_bpe_files(cls, vocab_bpe: Path, encoder_json: Path) -> Self:
        """Read GPT-2's two files: the merges in order, and the id of each token.

        Raises ValueError for a malformed file, and for files that do not belong together.
        """
        tokenizer = cls(_read_merges(vocab_bpe))
        difference = _difference(expected=tokenizer.ids(), given=read_json(encoder_json))
        if difference:
            raise ValueError(f"{encoder_json} does not belong to {vocab_bpe}: {difference}")
        return tokenizer

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the tokenizer of a Hugging Face folder, and the chat template if there is one.

        The folder has a `tokenizer.json`, or else GPT-2's `vocab.json` and `merges.txt`. Raises
        ValueError naming the file and the mistake.
        """
        template = huggingface.read_chat_template(folder)
        if (folder / "tokenizer.json").is_file():
            definition = huggingface.read(folder)
            try:
                tokenizer = cls(definition)
            except ValueError as error:
                raise ValueError(f"{folder / 'tokenizer.json'}: {error}") from None
        elif (folder / "vocab.json").is_file():
            tokenizer = cls.from_bpe_files(folder / "merges.txt", folder / "vocab.json")
        else:
            raise ValueError(
                f"{folder} has no tokenizer; allowed are a tokenizer.json, or GPT-2's vocab.json "
                "and merges.txt"
            )
        tokenizer.chat_template = template
        return tokenizer

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """Read the tokenizer in a GGUF file's metadata: values, or fields of `GGUFReader`.

        Raises ValueError for a tokenizer other than a byte-level byte pair encoding.
        """
        tokenizer = cls(gguf.read(metadata))
        tokenizer.chat_template = gguf.chat_template(metadata)
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; special tokens in the text are plain text."""
        return self._engine.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of `text` after the prefix, for a model to continue."""
        return [*self.prefix, *self.encode(text)]

    def encode_with_special(self, text: str) -> list[int]:
        """Return the ids of `text` with its special tokens, prefix and suffix.

        They equal the ids of Hugging Face's tokenizer.
        """
        if isinstance(self._engine, TokenizersEngine):
            return self._engine.encode_with_special(text)
        ids: list[int] = []
        for part, is_special in self.parts(text):
            ids.extend([self.special_ids[part]] if is_special else self.encode(part))
        return ids

    def parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield the special tokens in `text` and the text between, with whether each is special."""
        for index, part in enumerate(self._special.split(text)):
            if part:
                yield part, index % 2 == 1

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the ids of each text as `encode` does, on all cores."""
        parts = self.encode_documents([text] for text in texts)
        return [
            arrays[0] if len(arrays := [ids for _, ids in group]) == 1 else np.concatenate(arrays)
            for _, group in groupby(parts, key=itemgetter(0))
        ]

    def encode_documents(self, documents: Iterable[Iterable[str]]) -> Iterator[Part]:
        """Yield ids of documents that are given in pieces, in order, with the document's index.

        Memory does not grow with the documents: for GPT-2's form, not even with the longest.
        """
        return encoded_in_order(self._engine, documents)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of `ids`; invalid UTF-8 becomes replacement characters."""
        return self._engine.decode(ids, skip_special=skip_special)

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes of an id in a text.

        Ids beyond the vocabulary have none: models often have more rows than tokens.
        """
        assert index >= 0, "an id counts from 0"
        return self._engine.bytes_of[index] if index < self.n_vocab else b""

    def ids(self) -> dict[str, int]:
        """Return the ids of all tokens by their spelling in files."""
        added = {token["content"]: token["id"] for token in self.definition.content["added_tokens"]}
        vocabulary = self.definition.content["model"]["vocab"]
        if isinstance(vocabulary, list):  # of a unigram model, with scores
            vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
        return {**vocabulary, **added}

    def save(self, folder: Path, *, context_length: int, chat_template: str | None = None) -> None:
        """Save the files for Hugging Face's tools: GPT-2's two, or else a `tokenizer.json`."""
        if self.definition.is_gpt2():
            merges = [" ".join(merge) for merge in self.definition.merges]
            write_json(folder / "vocab.json", self.ids())
            write_text(folder / "merges.txt", "\n".join([MERGES_HEADER, *merges, ""]))
        else:
            write_json(folder / "tokenizer.json", self.definition.content)
        config = huggingface.config(self.definition, context_length)
        write_json(folder / "tokenizer_config.json", config)
        if chat_template is not None:
            write_text(folder / "chat_template.jinja", chat_template)


def _gpt2(merges: Iterable[Merge]) -> Definition:
    """Return the definition of GPT-2's form with these merges."""
    spelled = [(spell(left), spell(right)) for left, right in merges]
    roles = dict.fromkeys(ROLES, END_OF_TEXT)
    return huggingface.byte_level(
        gpt2_tokens(spelled), spelled, [END_OF_TEXT], split="gpt-2", roles=roles
    )


def read_vocabulary(folder: Path) -> dict[str, int] | None:
    """Return the ids of all tokens of a Hugging Face folder; None without tokenizer files."""
    if (folder / "vocab.json").is_file():
        path = folder / "vocab.json"
        return dict(checked(dict[str, int], read_json(path), path))
    if not (folder / "tokenizer.json").is_file():
        return None
    return Tokenizer.from_folder(folder).ids()


def _read_merges(path: Path) -> list[Merge]:
    lines = read_text(path).split("\n")
    merges: list[Merge] = []
    known = {bytes([byte]) for byte in SPELLING}
    for number, line in enumerate(lines, start=1):
        if (number == 1 and line.startswith("#version")) or (number == len(lines) and not line):
            continue
        spelled = read_merge(line.removesuffix("\r"))
        merge = spelled and (unspell(spelled[0]), unspell(spelled[1]))
        if merge is None or not known.issuperset(merge) or b"".join(merge) in known:
            raise ValueError(
                f"{path}, line {number}: {line!r} is not a merge; allowed are two known tokens "
                "and one space between them, whose union is new"
            )
        merges.append(merge)
        known.add(b"".join(merge))
    return merges


def _difference(*, expected: dict[str, int], given: Any) -> str:
    """Describe how a vocabulary file differs from the tokens of the merges; empty if equal."""
    if given == expected:
        return ""
    if not isinstance(given, dict):
        return "it is not a JSON object of tokens and ids"
    if END_OF_TEXT not in given:
        return f"{END_OF_TEXT} is missing from it"
    if len(given) != len(expected):
        return f"it has {len(given)} tokens, the merges make {len(expected)}"
    token = next(token for token, index in expected.items() if given.get(token) != index)
    return f"token {token!r} should have id {expected[token]} and has {given.get(token)}"
