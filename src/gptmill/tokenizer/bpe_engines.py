"""The libraries that turn plain text into ids, each for the vocabularies it reads exactly.

tiktoken reads GPT-2's form, and is 6 to 14 times faster than tokenizers. It cannot read
SmolLM2's: of its 256 bytes 21 have no id (tokenizers leaves them out of the text, tiktoken
fails), and its own Unicode tables take 13 characters for letters that tokenizers' do not.
So any other form is read by tokenizers, the library that made it.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]
from tokenizers import Tokenizer, models, pre_tokenizers

from gptmill.tokenizer.vocabulary import END_OF_TEXT, Vocabulary

Ids = npt.NDArray[np.uint32]


class Engine(Protocol):
    """Gives ids to text in which nothing is special."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, on all cores."""


class TiktokenEngine:
    """GPT-2's form, read by tiktoken, which is given the vocabulary and never asks the network."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Take the tokens in the order of their ids: merges with lower ids come first."""
        ranks = {token: rank for rank, token in enumerate(vocabulary.bytes_of[:-1])}
        self.encoding = tiktoken.Encoding(
            "gptmill",
            pat_str=r50k_pat_str,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: len(ranks)},
            explicit_n_vocab=len(ranks) + 1,
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self.encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, on all cores: tiktoken works without Python's lock."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._encode_to_numpy, texts))

    def _encode_to_numpy(self, text: str) -> Ids:
        return self.encoding.encode_to_numpy(text, disallowed_special=())


class TokenizersEngine:
    """Any vocabulary, read by Hugging Face's tokenizers; bytes without an id are left out."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Take the tokens that merges make; special ones are no part of plain text."""
        plain = {t: index for t, index in vocabulary.ids.items() if t not in vocabulary.special}
        self.tokenizer = Tokenizer(models.BPE(vocab=plain, merges=list(vocabulary.merges)))
        split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = [pre_tokenizers.Digits(individual_digits=True)] if vocabulary.digits else []
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, split])

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return list(self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, on all cores: tokenizers works without Python's lock.

        Threads of Python share the work, not those of the library, which complains on standard
        error in processes that were forked after it started them.
        """
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [np.array(ids, dtype=np.uint32) for ids in pool.map(self.encode, texts)]


def engine(vocabulary: Vocabulary) -> Engine:
    """Return the engine that reads a vocabulary exactly."""
    return TiktokenEngine(vocabulary) if vocabulary.is_gpt2 else TokenizersEngine(vocabulary)
