"""A byte-level byte pair encoding, learned from texts.

The library tokenizers learns the merges (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909)
from words in GPT-2's split. The result has GPT-2's form: single bytes, merges, `<|endoftext|>`.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from gptmill.tokenizer.tokenizer import Tokenizer
from gptmill.tokenizer.vocabulary import SPELLING, unspell

LEAST_SIZE = len(SPELLING) + 2
"""Ids of the smallest learned vocabulary: all bytes, a merge, and the end of a text."""
LEAST_COUNT = 2
"""Pairs that occur less often are not merged."""


def learn_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn a vocabulary of `size` ids from texts; equal texts give an equal vocabulary.

    Raises ValueError for texts with too few repeated pairs for `size`.
    """
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        min_frequency=LEAST_COUNT,
        initial_alphabet=list(SPELLING.values()),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    merges = json.loads(library.to_str())["model"]["merges"]
    tokenizer = Tokenizer((unspell(left), unspell(right)) for left, right in merges)
    if tokenizer.n_vocab != size:
        raise ValueError(
            f"the texts give a vocabulary of {tokenizer.n_vocab:,} ids at most, and {size:,} are "
            "wanted: lower the size, or add text"
        )
    return tokenizer
