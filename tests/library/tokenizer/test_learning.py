"""Vocabularies learned from texts: equal bytes, and the ids of transformers."""

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gptmill.tokenizer.learning import LEAST_SIZE, learn_tokenizer
from gptmill.tokenizer.tokenizer import Tokenizer
from tests.support.tiny import TINY_TEXT

ALPHABET = "aaab bc  c\n\n na\u00efve \u4e2d\u6587 12 34'll don't \U0001f600<|endoftext|>"


def random_text(seed: int, length: int) -> str:
    """Return a text of few letters, so that tokens overlap in many ways."""
    generator = random.Random(seed)
    return "".join(generator.choice(ALPHABET) for _ in range(length))


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    """Save a tokenizer in a new folder."""
    folder.mkdir()
    tokenizer.save(folder, context_length=32)
    return folder


@pytest.mark.parametrize("threads", ["false", "true"])
def test_equal_texts_give_equal_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", threads)
    texts = [random_text(seed, 3_000) for seed in range(8)]
    folders = [saved(learn_tokenizer(texts, 700), tmp_path / str(k)) for k in range(4)]
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


@pytest.mark.parametrize("size", [LEAST_SIZE, 400, 1_200])
def test_ids_equal_those_of_transformers_and_fit_the_size(tmp_path: Path, size: int) -> None:
    tokenizer = learn_tokenizer([random_text(seed, 5_000) for seed in range(8)], size)
    assert tokenizer.n_vocab == size
    assert tokenizer.eot_id == size - 1
    assert tokenizer.definition.is_gpt2()
    reference = AutoTokenizer.from_pretrained(saved(tokenizer, tmp_path / "saved"))
    for seed in range(100, 120):
        text = random_text(seed, 4_000) + TINY_TEXT
        ids = tokenizer.encode(text)
        assert max(ids) < size - 1
        assert ids == reference.encode(text, split_special_tokens=True)
        assert tokenizer.decode(ids) == text


def test_more_ids_than_the_texts_give_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a vocabulary of 258 ids at most, and 300 are wanted"):
        learn_tokenizer(["aa aa"], 300)
