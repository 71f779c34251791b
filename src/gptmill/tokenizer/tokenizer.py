"""Text to token ids and back, by a byte-level byte pair encoding from files that lie on disk.

One class serves GPT-2's vocabulary and SmolLM2's, whatever they were read from: GPT-2's two
files, a folder of Hugging Face's, the metadata of a GGUF file.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gptmill.files import read_json, write_json, write_text
from gptmill.tokenizer import gguf, huggingface
from gptmill.tokenizer.bpe_engines import engine
from gptmill.tokenizer.vocabulary import (
    END_OF_TEXT,
    SPELLING,
    Merge,
    Vocabulary,
    gpt2_vocabulary,
    longest_first,
    read_merge,
    unspell,
)

__all__ = ["END_OF_TEXT", "MERGES_HEADER", "Merge", "Tokenizer", "read_vocabulary"]

MERGES_HEADER = "#version: 0.2"


class Tokenizer:
    """A byte-level byte pair encoding with its special tokens.

    `fingerprint` is a hash of the whole vocabulary: two tokenizers with the same one give the
    same ids to every text. `eot_id` ends a document, `eos_id` ends what a model writes,
    `pad_id` fills up rows; `chat_template` is the one that came with the vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary | Iterable[Merge]) -> None:
        """Take a vocabulary, or the merges of one in GPT-2's form in the order of their ids."""
        if not isinstance(vocabulary, Vocabulary):
            vocabulary = gpt2_vocabulary(vocabulary)
        self.vocabulary = vocabulary
        self.chat_template: str | None = None
        self.fingerprint = vocabulary.fingerprint()
        self.n_vocab = len(vocabulary.tokens)
        self.special_ids = {t: vocabulary.ids[t] for t in vocabulary.tokens if self._is_special(t)}
        self.eot_id = self.special_ids[vocabulary.end]
        self.bos_id = self._role("bos_token", self.eot_id)
        self.eos_id = self._role("eos_token", self.eot_id)
        self.pad_id = self._role("pad_token", self.eot_id)
        self._engine = engine(vocabulary)
        words = "|".join(re.escape(word) for word in longest_first(self.special_ids))
        self._special = re.compile(f"({words})")

    def _is_special(self, token: str) -> bool:
        return token in self.vocabulary.special

    def _role(self, role: str, otherwise: int) -> int:
        return self.special_ids.get(self.vocabulary.roles.get(role, ""), otherwise)

    @classmethod
    def from_bpe_files(cls, vocab_bpe: Path, encoder_json: Path) -> Self:
        """Read GPT-2's two files: the merges in order, and the id of each token.

        Raises ValueError where one of them is malformed or the two do not belong together.
        """
        tokenizer = cls(_read_merges(vocab_bpe))
        difference = _difference(expected=tokenizer.ids(), given=read_json(encoder_json))
        if difference:
            raise ValueError(f"{encoder_json} does not belong to {vocab_bpe}: {difference}")
        return tokenizer

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read the tokenizer of a Hugging Face folder, and its chat template if it has one.

        That is `tokenizer.json`, which says all, or else GPT-2's `vocab.json` and `merges.txt`.
        Raises ValueError where it is of a kind that this class does not compute.
        """
        if (folder / "tokenizer.json").is_file():
            tokenizer = cls(huggingface.read(folder))
        elif (folder / "vocab.json").is_file():
            tokenizer = cls.from_bpe_files(folder / "merges.txt", folder / "vocab.json")
        else:
            raise ValueError(
                f"{folder} has no tokenizer; allowed are a tokenizer.json, or GPT-2's vocab.json "
                "and merges.txt"
            )
        tokenizer.chat_template = huggingface.read_chat_template(folder)
        return tokenizer

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """Read the tokenizer in a GGUF file's metadata: values, or fields of `GGUFReader`.

        Raises ValueError where it is of a kind that this class does not compute.
        """
        tokenizer = cls(gguf.read(metadata))
        tokenizer.chat_template = gguf.chat_template(metadata)
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; a special token spelled out in it is plain text."""
        return self._engine.encode(text)

    def encode_with_special(self, text: str) -> list[int]:
        """Return the ids of `text`, in which special tokens that are spelled out are special."""
        ids: list[int] = []
        for part, is_special in self.parts(text):
            ids.extend([self.special_ids[part]] if is_special else self.encode(part))
        return ids

    def parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield `text` in parts, special tokens and the text between them, and which it is."""
        for index, part in enumerate(self._special.split(text)):
            if part:
                yield part, index % 2 == 1

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the ids of each text as `encode` does, on all cores."""
        return self._engine.encode_batch(texts)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become replacement characters."""
        skipped = set(self.special_ids.values()) if skip_special else set()
        spelled = [self.token_bytes(index) for index in map(int, ids) if index not in skipped]
        return b"".join(spelled).decode("utf-8", errors="replace")

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes that an id stands for in a text.

        That is none past the vocabulary's end: models often have more rows than there are tokens.
        """
        assert index >= 0, "an id counts from 0"
        return self.vocabulary.bytes_of[index] if index < self.n_vocab else b""

    def ids(self) -> dict[str, int]:
        """Return each token as the files spell it, with its id."""
        return dict(self.vocabulary.ids)

    def save(self, folder: Path, *, context_length: int, chat_template: str | None = None) -> None:
        """Write the files from which Hugging Face's tools open the same tokenizer.

        `AutoTokenizer` splits digits as `tokenizer.json` says; GPT-2's form needs no such file.
        """
        if self.vocabulary.is_gpt2:
            merges = [" ".join(merge) for merge in self.vocabulary.merges]
            write_json(folder / "vocab.json", self.ids())
            write_text(folder / "merges.txt", "\n".join([MERGES_HEADER, *merges, ""]))
        else:
            write_json(folder / "tokenizer.json", huggingface.content(self.vocabulary))
        config = huggingface.config(self.vocabulary, context_length)
        write_json(folder / "tokenizer_config.json", config)
        if chat_template is not None:
            write_text(folder / "chat_template.jinja", chat_template)


def read_vocabulary(folder: Path) -> dict[str, int] | None:
    """Return the ids that a Hugging Face folder of any origin gives its tokens, if it says so."""
    if (folder / "vocab.json").is_file():
        return dict(read_json(folder / "vocab.json"))
    if not (folder / "tokenizer.json").is_file():
        return None
    content = read_json(folder / "tokenizer.json")
    added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    return {**content["model"]["vocab"], **added}


def _read_merges(path: Path) -> list[Merge]:
    lines = path.read_text(encoding="utf-8").split("\n")
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
    """Say how a vocabulary file differs from the vocabulary that its merges make, if it does."""
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
