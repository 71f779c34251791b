"""Runs of a million characters: ids equal those of GPT-2's pattern, or a sentence names the run."""

import json
import random
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
import regex

from gptmill.tokenizer import bpe_engines
from gptmill.tokenizer.bpe_engines import EncodingError
from gptmill.tokenizer.tokenizer import Tokenizer
from tests.support.tiny import chatty_folder, tiny_tokenizer

PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's own code
)
EVERY_BLANK = "".join(map(chr, filter(lambda code: regex.match(r"\s", chr(code)), range(0x3001))))
BLANK_RUNS = [" ", "\n", " \n"]  # tiktoken panics on these
OTHER_RUNS = [*"\t\u00a0\u2028aA1-'", "\r\n", "'s", "\u4e2d", "\U0001f600", "\u0301", "\x1c"]
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def words_by_definition(text: str) -> list[str]:
    return [match[0] for match in regex.finditer(PATTERN, text)]


def test_cuts_keep_the_words_and_ids_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(bpe_engines.BLANKS.fullmatch(blank) for blank in EVERY_BLANK)
    assert not any(map(bpe_engines.BLANKS.fullmatch, "a\x1c\x1d\x1e\x1f\u200b\ufeff"))
    draw, tokenizer = random.Random(1), tiny_tokenizer()
    letters = [*EVERY_BLANK, *"  \n\n the'sLL12-\u0301\u4e2d\x1c\U0001f600"]
    texts = ["".join(draw.choices(letters, k=draw.randrange(60))) for _ in range(300)]
    whole = [tokenizer.encode(text) for text in texts]
    for stride in (1, 2, 7):
        monkeypatch.setattr(bpe_engines, "STRIDE", stride)
        for text, ids in zip(texts, whole, strict=True):
            parts = bpe_engines._parts(text)
            words = [word for part in parts for word in words_by_definition(part)]
            assert words == words_by_definition(text)
            assert tokenizer.encode(text) == ids
        assert any(len(bpe_engines._parts(text)) > 2 for text in texts)


def test_units_of_a_text_in_pieces_have_the_words_and_ids_of_the_whole() -> None:
    draw, tokenizer = random.Random(2), tiny_tokenizer()
    letters = [*EVERY_BLANK, *"  \n\n the'sLL12--\u0301\u4e2d\x1c\U0001f600"]
    most = 0
    for _ in range(1000):
        text = "".join(draw.choices(letters, k=draw.randrange(60)))
        cuts = sorted(draw.choices(range(len(text) + 1), k=4))
        pieces = [text[first:last] for first, last in pairwise([0, *cuts, len(text)])]
        units = list(tokenizer._engine.units(pieces))
        most = max(most, len(units))
        words = [word for unit in units for word in words_by_definition(unit)]
        assert words == words_by_definition(text)
        parts = list(tokenizer.encode_documents([pieces, [text]]))
        for document in (0, 1):
            ids = [ids for index, ids in parts if index == document]
            assert np.concatenate(ids).tolist() == tokenizer.encode(text)
    assert most > 3


@pytest.mark.parametrize(
    "run",
    [*BLANK_RUNS, *(pytest.param(run, marks=pytest.mark.slow) for run in OTHER_RUNS)],
    ids=ascii,
)
def test_a_run_of_a_million_gets_the_ids_of_its_words(run: str) -> None:
    tokenizer = tiny_tokenizer()
    text = f"before{run * (1_100_000 // len(run))}after  {run * 40}"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch(["x", text])[1].tolist() == ids
    grouped = ((word, len(list(same))) for word, same in groupby(words_by_definition(text)))
    expected = [np.tile(tokenizer.encode(word), count) for word, count in grouped]
    np.testing.assert_array_equal(ids, np.concatenate(expected))


def test_a_run_too_long_for_a_pattern_is_a_sentence(tmp_path: Path) -> None:
    folder = chatty_folder(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": LLAMA}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    byte_level["trim_offsets"] = True
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    long = f"a{' ' * 200_000}b"
    assert tokenizer.decode(tokenizer.encode(long)) == long
    with pytest.raises(EncodingError, match=r"the tokenizer cannot split .*; break runs") as it:
        tokenizer.encode_batch(["x", f"a{' ' * 10_100_000}b"])
    assert it.value.index == 1
