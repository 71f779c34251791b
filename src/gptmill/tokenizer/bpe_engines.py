"""The libraries that encode text: tiktoken for GPT-2's form, tokenizers for any `tokenizer.json`.

tiktoken is 6 to 14 times faster than tokenizers. But tiktoken's Unicode tables take 13 characters
for letters that tokenizers' tables do not, and tiktoken fails on a byte without an id, of which
SmolLM2 has 21. GPT-2's ids are equal in both libraries.
"""

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]
from tokenizers import Tokenizer

from gptmill.tokenizer.huggingface import Definition
from gptmill.tokenizer.vocabulary import END_OF_TEXT, gpt2_tokens, unspell

Ids = npt.NDArray[np.uint32]
Part = tuple[int, Ids]  # the index of a document, and ids
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# Unicode's property White_Space, which is `\s` in the patterns; Python's `\s` has four more.
BLANKS = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*")
WINDOW = 2**23  # characters
LONGEST_QUEUE = 10_000  # short documents
STRIDE = 100_000  # tiktoken's stack holds a million blanks


class EncodingError(ValueError):
    """A text that the library cannot encode; `index` is its place in a batch."""

    index = 0


class Engine(Protocol):
    """Encodes text without special tokens, and knows the bytes of each id."""

    @property
    def bytes_of(self) -> Sequence[bytes]:
        """Return the bytes of each id in a text."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens in the text are plain text."""

    def encode_to_numpy(self, text: str) -> Ids:
        """Return the ids of a text without Python's lock, for a thread of its own."""

    def units(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield a text, given in pieces, in units whose ids put together are the text's."""

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        """Return the text of ids."""

    def fingerprint(self) -> str:
        """Return a hash of everything that determines ids."""


class TiktokenEngine:
    """GPT-2's form, encoded by tiktoken without any download."""

    def __init__(self, definition: Definition) -> None:
        tokens = gpt2_tokens(definition.merges)
        self.bytes_of = [*map(unspell, tokens[:-1]), END_OF_TEXT.encode()]
        ranks = {token: rank for rank, token in enumerate(self.bytes_of[:-1])}
        self.end = len(ranks)
        self.encoding = tiktoken.Encoding(
            "gptmill",
            pat_str=r50k_pat_str,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.end},
            explicit_n_vocab=self.end + 1,
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens in the text are plain text."""
        with _named_failure():
            return list(chain.from_iterable(map(self.encoding.encode_ordinary, _parts(text))))

    def units(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield a text in units that end before a lone blank between two words.

        GPT-2's pattern always starts a new word there.
        """
        held: list[str] = []
        for piece in pieces:
            cut = _last_lone_blank(piece)
            if cut:
                yield "".join([*held, piece[:cut]])
                held = []
            held.append(piece[cut:])
        yield "".join(held)

    def encode_to_numpy(self, text: str) -> Ids:
        """Return the ids of a text: tiktoken releases Python's lock."""
        with _named_failure():
            parts = [self.encoding.encode_to_numpy(p, disallowed_special=()) for p in _parts(text)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        """Return the text of ids; invalid UTF-8 becomes replacement characters."""
        skipped = {self.end} if skip_special else set()
        known = range(len(self.bytes_of))
        kept = (self.bytes_of[i] for i in map(int, ids) if i in known and i not in skipped)
        return b"".join(kept).decode("utf-8", errors="replace")

    def fingerprint(self) -> str:
        """Return a hash of all tokens in order."""
        digest = hashlib.sha256()
        for token in self.bytes_of[:-1]:
            digest.update(len(token).to_bytes(4, "little") + token)
        digest.update(END_OF_TEXT.encode("ascii"))
        return digest.hexdigest()


class TokenizersEngine:
    """Any `tokenizer.json`, encoded by Hugging Face's tokenizers."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        content = definition.content
        self.tokenizer = Tokenizer.from_str(json.dumps(content))
        self._plain = _plain(definition)
        self.bytes_of = self._bytes()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens in the text are plain text."""
        with _named_failure():
            return list(self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def encode_with_special(self, text: str) -> list[int]:
        """Return the ids of a text with its special tokens, between prefix and suffix."""
        with _named_failure():
            return list(self.tokenizer.encode(text).ids)

    def encode_to_numpy(self, text: str) -> Ids:
        """Return the ids of a text: tokenizers releases Python's lock.

        The threads are Python's: after the library has started its own threads, it prints warnings
        in every forked process.
        """
        return np.array(self.encode(text), dtype=np.uint32)

    def units(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield the whole text: no cut is safe for every pattern and normalizer."""
        yield "".join(pieces)

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        """Return the text of ids; invalid UTF-8 becomes replacement characters."""
        known = [index for index in map(int, ids) if index < len(self.bytes_of)]
        return self.tokenizer.decode(known, skip_special_tokens=skip_special)

    def fingerprint(self) -> str:
        """Return a hash of model, split, normalizer and added tokens."""
        names = ("model", "pre_tokenizer", "normalizer", "added_tokens")
        parts = _without_offsets({name: self.definition.content[name] for name in names})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _bytes(self) -> list[bytes]:
        added = {token["id"] for token in self.definition.content["added_tokens"]}
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        bytes_of = [b""] * (max(vocabulary.values()) + 1)
        decoders = _types(self.definition.content["decoder"])
        for token, index in vocabulary.items():
            literal = index in added and "ByteLevel" in decoders
            bytes_of[index] = token.encode() if literal else _bytes(token, decoders)
        return bytes_of


def encoded_in_order(engine: Engine, documents: Iterable[Iterable[str]]) -> Iterator[Part]:
    """Yield the index of each document, given in pieces, with ids of its text, on all cores.

    A document has one part or more. About WINDOW characters are held at a time, or the longest unit
    of the engine. An EncodingError has the index of its document.
    """
    units = (
        (index, unit) for index, pieces in enumerate(documents) for unit in engine.units(pieces)
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque[tuple[int, int, Future[Ids]]] = deque()
        held = 0
        for index, unit in units:
            waiting.append((index, len(unit), pool.submit(engine.encode_to_numpy, unit)))
            held += len(unit)
            while held > WINDOW or len(waiting) > LONGEST_QUEUE:
                held -= waiting[0][1]
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())


def _result(index: int, _: int, encoded: Future[Ids]) -> Part:
    try:
        return index, encoded.result()
    except EncodingError as error:
        error.index = index
        raise


def _last_lone_blank(text: str) -> int:
    """Return the place of the last lone blank between two other characters; 0 without one."""
    for place in range(len(text) - 2, 0, -1):
        if text[place] in " \n" and not (text[place - 1].isspace() or text[place + 1].isspace()):
            return place
    return 0


def _parts(text: str) -> list[str]:
    """Cut a text, so that no part has a long run of blanks before another character.

    tiktoken panics on such a run. GPT-2's pattern keeps the last blank of a run for the next word:
    a cut before that blank changes no id. A look at every STRIDE-th character misses no long run.
    """
    cuts, place = [0], STRIDE
    while place < len(text):
        blanks = BLANKS.match(text, place)
        assert blanks is not None
        if place < blanks.end() < len(text):
            cuts.append(blanks.end() - 1)
        place = blanks.end() + STRIDE
    return [text[start:end] for start, end in pairwise([*cuts, len(text)])]


@contextmanager
def _named_failure() -> Iterator[None]:
    """Raise EncodingError where a library fails, as tokenizers does on ten million blanks."""
    try:
        yield
    except BaseException as error:  # the panic has no class to import, and is no Exception
        if type(error).__name__ not in ("PanicException", "ValueError"):
            raise
        raise EncodingError(
            f"the tokenizer cannot split the text ({error}); break runs of more than a million "
            "characters of one kind, such as spaces"
        ) from None


def _bytes(token: str, decoders: set[str]) -> bytes:
    """Return the bytes of a token of the model, by the types of the decoder's steps."""
    if "ByteLevel" in decoders:
        return unspell(token)
    byte = BYTE_TOKEN.fullmatch(token)
    if byte and "ByteFallback" in decoders:
        return bytes([int(byte[1], 16)])
    return token.replace("\u2581", " ").encode()  # the space of SentencePiece


def _types(step: Any) -> set[str]:
    if not step:
        return set()
    return {step["type"]}.union(*map(_types, step.get("decoders", [])))


def _plain(definition: Definition) -> Tokenizer:
    """Return the library's tokenizer for text in which special tokens are plain text."""
    hidden = Tokenizer.from_str(json.dumps(_with_hidden_tokens(definition)))
    added = [token for token in definition.content["added_tokens"] if not token["special"]]
    if any(hidden.token_to_id(token["content"]) != token["id"] for token in added):
        hidden = Tokenizer.from_str(json.dumps(definition.content))  # nothing to hide
    hidden.encode_special_tokens = True
    return hidden


def _with_hidden_tokens(definition: Definition) -> dict[str, Any]:
    """Return the content with special tokens renamed in the model, so that no text spells one."""
    model = dict(definition.content["model"])
    if isinstance(model.get("vocab"), dict):
        merged = {part for merge in definition.merges for part in (*merge, "".join(merge))}
        hidden = definition.special.keys() - merged - {model.get("unk_token")}
        model["vocab"] = {
            f"\x00{token}" if token in hidden else token: index
            for token, index in model["vocab"].items()
        }
    return {**definition.content, "model": model}


def _without_offsets(value: Any) -> Any:
    """Return JSON without `trim_offsets`, which changes no id."""
    if isinstance(value, dict):
        return {k: _without_offsets(v) for k, v in value.items() if k != "trim_offsets"}
    return [_without_offsets(item) for item in value] if isinstance(value, list) else value


def engine(definition: Definition) -> Engine:
    """Return the fastest engine with exact ids."""
    return TiktokenEngine(definition) if definition.is_gpt2() else TokenizersEngine(definition)
