"""GPT-2's byte pair encoding: text to token ids and back, from files that lie on disk.

tiktoken does the work; this module gives it the vocabulary, so that it never asks the network.
Radford et al. 2019, section 2.2: byte pair encoding over bytes, after a split by a pattern.

A vocabulary is its merges and no more: ids 0 to 255 are the single bytes in GPT-2's order, then
comes what each merge makes, then `<|endoftext|>`.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

from gptmill.files import read_json, write_json, write_text

END_OF_TEXT = "<|endoftext|>"
MERGES_HEADER = "#version: 0.2"

Merge = tuple[bytes, bytes]


class Tokenizer:
    """A byte pair encoding with one special token, `<|endoftext|>`.

    `fingerprint` is a hash of the whole vocabulary: two tokenizers with the same one give the
    same ids to every text.
    """

    def __init__(self, merges: Sequence[Merge]):
        """Take the merges in the order of their ids; each joins two tokens that exist by then."""
        self._merges = tuple(merges)
        ranks = _ranks(self._merges)
        self.eot_id = len(ranks)
        self.n_vocab = len(ranks) + 1
        self.fingerprint = _fingerprint(ranks)
        self.encoding = tiktoken.Encoding(
            "gptmill",
            pat_str=r50k_pat_str,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.eot_id},
            explicit_n_vocab=self.n_vocab,
        )

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
        """Read the tokenizer of a Hugging Face folder: `vocab.json` and `merges.txt`."""
        return cls.from_bpe_files(folder / "merges.txt", folder / "vocab.json")

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; a special token spelled out in it is plain text."""
        return self.encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the ids of each text, on all cores: tiktoken works without Python's lock."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._encode_to_numpy, texts))

    def _encode_to_numpy(self, text: str) -> npt.NDArray[np.uint32]:
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become replacement characters."""
        return self.encoding.decode([int(index) for index in ids])

    def ids(self) -> dict[str, int]:
        """Return each token as GPT-2's files spell it, with its id."""
        spelled = [_spell(token) for token in _ranks(self._merges)]
        return {token: index for index, token in enumerate([*spelled, END_OF_TEXT])}

    def save(self, folder: Path, *, context_length: int, chat_template: str | None = None) -> None:
        """Write the files from which Hugging Face's tools open the same tokenizer."""
        merges = [f"{_spell(left)} {_spell(right)}" for left, right in self._merges]
        write_json(folder / "vocab.json", self.ids())
        write_text(folder / "merges.txt", "\n".join([MERGES_HEADER, *merges, ""]))
        write_json(folder / "tokenizer_config.json", _hugging_face_config(context_length))
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


def _byte_characters() -> dict[int, str]:
    """Return the character by which GPT-2's files spell each byte, in the order of their ids.

    Bytes that Latin-1 prints stand for themselves; the others, spaces and controls, take the
    characters from 256 on, so that a token is one word in a text file.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable}
    return spelled | {byte: chr(256 + index) for index, byte in enumerate(others)}


_SPELLING = _byte_characters()
_BYTES = {character: byte for byte, character in _SPELLING.items()}


def _spell(token: bytes) -> str:
    return "".join(_SPELLING[byte] for byte in token)


def _ranks(merges: Sequence[Merge]) -> dict[bytes, int]:
    tokens = [bytes([byte]) for byte in _SPELLING] + [left + right for left, right in merges]
    return {token: rank for rank, token in enumerate(tokens)}


def _read_merges(path: Path) -> list[Merge]:
    lines = path.read_text(encoding="utf-8").split("\n")
    merges: list[Merge] = []
    known = {bytes([byte]) for byte in _SPELLING}
    for number, line in enumerate(lines, start=1):
        if (number == 1 and line.startswith("#version")) or (number == len(lines) and not line):
            continue
        merge = _read_merge(line)
        if merge is None or not known.issuperset(merge) or b"".join(merge) in known:
            raise ValueError(
                f"{path}, line {number}: {line!r} is not a merge; allowed are two known tokens "
                "and one space between them, whose union is new"
            )
        merges.append(merge)
        known.add(b"".join(merge))
    return merges


def _read_merge(line: str) -> Merge | None:
    parts = line.removesuffix("\r").split(" ")
    if len(parts) != 2 or not _BYTES.keys() >= set("".join(parts)):
        return None
    left, right = (bytes(_BYTES[character] for character in part) for part in parts)
    return left, right


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


def _fingerprint(ranks: dict[bytes, int]) -> str:
    digest = hashlib.sha256()
    for token in ranks:
        digest.update(len(token).to_bytes(4, "little") + token)
    digest.update(END_OF_TEXT.encode("ascii"))
    return digest.hexdigest()


def _hugging_face_config(context_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": context_length,
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
