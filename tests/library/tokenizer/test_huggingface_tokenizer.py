"""Tokenizers of SmolLM2's form: the ids, texts and folders of Hugging Face's, from any source."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gptmill.evaluation.language_model import token_sizes
from gptmill.files import read_json, write_json
from gptmill.tokenizer.tokenizer import Tokenizer
from gptmill.tokenizer.vocabulary import SPELLING
from tests.support.tiny import (
    CHATTY,
    LACKING,
    SPECIAL,
    TINY_TEXT,
    chatty_folder,
    tiny_tokenizer,
    train_chatty,
)

Alphabet = Callable[[random.Random], str]
PARTS: list[Alphabet] = [
    lambda draw: draw.choice(TINY_TEXT.split()),
    lambda draw: draw.choice([" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "   \n  "]),
    lambda draw: str(draw.randrange(10 ** draw.randrange(1, 6))),
    lambda draw: draw.choice("\u0661\u00bd\u2167\u0e53\u4e09\u00b2"),
    lambda draw: draw.choice(["'s", "'LL", "don't", "'", "~", "...", "\ufeff", "\x04", "\x1d"]),
    lambda draw: draw.choice(
        ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea"]
    ),
    lambda draw: draw.choice([*SPECIAL, "<|im_", "end|>", "<file", "name>", "<|", "\ue000"]),
    lambda draw: chr(draw.randrange(0x80)),
    lambda draw: chr(draw.choice([*range(0x80, 0xD800, 7), *range(0xE000, 0x10000, 7)])),
    lambda draw: chr(draw.randrange(0x10000, 0x110000)),
]


def texts(n: int, seed: int = 1) -> list[str]:
    """Return texts of words, digits, spaces, emoji, all planes and spelled-out special tokens."""
    draw = random.Random(seed)
    return ["".join(draw.choice(PARTS)(draw) for _ in range(draw.randrange(30))) for _ in range(n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatty_folder(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    ours = Tokenizer.from_folder(folder)
    ours.save(path, context_length=64, chat_template=ours.chat_template)
    return path


def metadata(folder: Path, **other: Any) -> dict[str, Any]:
    """Return what a GGUF file says of the tokenizer in a folder."""
    ours = Tokenizer.from_folder(folder)
    tokens = list(ours.ids())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in ours.special_ids else 1 for t in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in ours.definition.merges],
        "tokenizer.ggml.bos_token_id": ours.bos_id,
        "tokenizer.ggml.eos_token_id": ours.eos_id,
        "tokenizer.ggml.padding_token_id": ours.pad_id,
        "tokenizer.ggml.unknown_token_id": ours.special_ids["<|endoftext|>"],
        "tokenizer.chat_template": CHATTY,
        **{f"tokenizer.ggml.{name}": value for name, value in other.items()},
    }


@pytest.mark.parametrize("digits", [True, False])
def test_any_text_gets_the_ids_of_hugging_face(tmp_path: Path, digits: bool) -> None:
    trained = train_chatty(digits=digits)
    trained.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_folder(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_object=trained)
    for text in texts(400):
        plain = theirs(text, split_special_tokens=True)["input_ids"]
        special = theirs(text)["input_ids"]
        assert ours.encode(text) == plain, repr(text)
        assert ours.encode_with_special(text) == special, repr(text)
        for ids in (plain, special):
            assert ours.decode(ids) == theirs.decode(ids), repr(text)
            skipped = theirs.decode(ids, skip_special_tokens=True)
            assert ours.decode(ids, skip_special=True) == skipped, repr(text)


def test_the_texts_hold_what_is_hard() -> None:
    found = "".join(texts(400))
    assert all(token in found for token in SPECIAL)
    assert len({ord(char) >> 16 for char in found}) == 17  # every plane
    assert {"\x04", "\x1d", "~"} <= set(found)
    assert len(set(found)) > 1000


def test_bytes_without_an_id_are_left_out(folder: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    assert not {SPELLING[byte] for byte in LACKING} & ours.ids().keys()
    assert ours.encode("\x04~\x1d") == []
    assert ours.encode("t~h\x1de") == ours.encode("t~\x1dh~e") != ours.encode("t e")
    assert ours.decode(ours.encode("a\u00f7b")) == "a\ufffdb"  # of its two bytes one is there
    assert ours.encode_batch(["~", "the fox"])[0].shape == (0,)


def test_digits_are_taken_one_by_one(folder: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    found = [ours.token_bytes(index) for index in ours.encode("1234  5678 2026")]
    assert [token for token in found if token.strip()] == [b"%d" % int(d) for d in "123456782026"]
    assert found[4:6] == [b"  ", b"5"]  # GPT-2's pattern alone: b" " and b" 5"


def test_a_batch_gives_the_ids_of_each_text(folder: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    many = texts(50, seed=2)
    for text, ids in zip(many, ours.encode_batch(many), strict=True):
        assert ids.dtype == np.uint32
        assert ids.tolist() == ours.encode(text)


def test_special_tokens_have_their_places(folder: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    assert ours.special_ids == {token: index for index, token in enumerate(SPECIAL)}
    assert (ours.eot_id, ours.bos_id, ours.eos_id, ours.pad_id) == (0, 1, 2, 2)
    assert ours.n_vocab == len(ours.ids()) == 400
    assert ours.token_bytes(4) == b"<filename>"
    assert ours.encode_with_special("<filename><file>name>")[:2] == [4, 3]
    assert not set(ours.special_ids.values()) & set(ours.encode("".join(SPECIAL)))
    assert ours.token_bytes(400) == b""  # embeddings may have more rows
    assert ours.chat_template == CHATTY
    gpt2 = tiny_tokenizer()
    assert gpt2.special_ids == {"<|endoftext|>": 316}
    assert gpt2.eot_id == gpt2.bos_id == gpt2.eos_id == gpt2.pad_id == 316
    assert gpt2.encode_with_special("fox<|endoftext|>") == [*gpt2.encode("fox"), 316]
    assert gpt2.decode([316, *gpt2.encode("fox")], skip_special=True) == "fox"


@pytest.mark.parametrize("form", ["chatty", "gpt2"])
def test_sizes_of_tokens_are_those_of_the_text(folder: Path, form: str) -> None:
    ours = Tokenizer.from_folder(folder) if form == "chatty" else tiny_tokenizer()
    sizes = token_sizes(ours)
    assert sizes.shape == (ours.n_vocab,)
    assert sizes[ours.encode(TINY_TEXT)].sum() == len(TINY_TEXT.encode())
    assert not sizes[list(ours.special_ids.values())].any()


@pytest.mark.parametrize("model_type", [None, "llama"])
def test_transformers_opens_a_saved_folder_as_meant(
    saved: Path, tmp_path: Path, model_type: str | None
) -> None:
    ours = Tokenizer.from_folder(saved)
    ours.save(tmp_path, context_length=64, chat_template=ours.chat_template)
    if model_type:
        write_json(tmp_path / "config.json", {"model_type": model_type})
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in texts(150, seed=3):
        assert ours.encode(text) == theirs(text, split_special_tokens=True)["input_ids"]
        assert ours.encode_with_special(text) == theirs(text)["input_ids"]
    assert len(theirs) == ours.n_vocab
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    assert theirs.unk_token_id == 0
    assert (theirs.model_max_length, theirs.padding_side) == (64, "right")
    assert theirs.get_chat_template() == CHATTY
    assert set(theirs.all_special_tokens) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


def test_every_source_gives_the_same_tokenizer(folder: Path, saved: Path, tmp_path: Path) -> None:
    first = Tokenizer.from_folder(folder)
    AutoTokenizer.from_pretrained(saved).save_pretrained(tmp_path)  # as transformers writes it
    found = [
        Tokenizer.from_folder(saved),
        Tokenizer.from_folder(tmp_path),
        Tokenizer.from_gguf(metadata(folder)),
    ]
    for other in found:
        assert other.fingerprint == first.fingerprint
        assert other.definition.roles == first.definition.roles
        assert other.chat_template == CHATTY
    assert tiny_tokenizer().fingerprint != first.fingerprint
    plain = Tokenizer.from_gguf(metadata(folder, pre="gpt-2"))
    assert plain.fingerprint != first.fingerprint


def test_gpt2s_form_is_known_wherever_it_is_read(tmp_path: Path) -> None:
    gpt2 = tiny_tokenizer()
    gpt2.save(tmp_path, context_length=32)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "vocab.json").exists()
    read = Tokenizer.from_folder(tmp_path / "theirs")
    assert read.fingerprint == gpt2.fingerprint
    read.save(tmp_path / "theirs", context_length=32)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / "theirs" / name).read_bytes() == (tmp_path / name).read_bytes()
    for pre in ("gpt-2", "gpt2"):
        assert Tokenizer.from_gguf(metadata(tmp_path, pre=pre)).fingerprint == gpt2.fingerprint


def test_a_base_without_roles_ends_and_fills_up_by_its_end_of_text(tmp_path: Path) -> None:
    train_chatty().save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_folder(tmp_path)
    assert (ours.eot_id, ours.eos_id, ours.pad_id) == (0, 0, 0)
    ours.save(tmp_path, context_length=32)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (0, 0, None)


CHANGES: list[tuple[str, Any, str]] = [
    ("model.dropout", 0.1, "model.dropout is set: ids would be random; allowed is null"),
    ("model.type", "Abacus", "the library tokenizers cannot read the content"),
    ("model.merges.0", "a b c", "the library tokenizers cannot read the content"),
    ("model.merges.0", ["zz", "top"], "the library tokenizers cannot read the content"),
    ("pre_tokenizer", {"type": "Abacus"}, "the library tokenizers cannot read the content"),
    ("model", 1, "tokenizer.json: model is 1; input should be an object"),
]


@pytest.mark.parametrize(("place", "value", "message"), CHANGES)
def test_unreadable_content_is_refused(
    folder: Path, tmp_path: Path, place: str, value: Any, message: str
) -> None:
    content = read_json(folder / "tokenizer.json")
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target = content
    for part in path:
        target = target[part]
    target[last] = value
    write_json(tmp_path / "tokenizer.json", content)
    with pytest.raises(ValueError, match=message) as refused:
        Tokenizer.from_folder(tmp_path)
    assert str(refused.value).startswith(str(tmp_path / "tokenizer.json"))
    assert "\n" not in str(refused.value)


def test_truncation_and_padding_of_a_file_are_ignored(folder: Path, tmp_path: Path) -> None:
    trained = train_chatty()
    trained.enable_truncation(4)
    trained.enable_padding(length=9)
    trained.save(str(tmp_path / "tokenizer.json"))
    ours, plain = Tokenizer.from_folder(tmp_path), Tokenizer.from_folder(folder)
    assert ours.encode(TINY_TEXT) == plain.encode(TINY_TEXT)
    assert ours.encode_with_special("fox") == plain.encode_with_special("fox")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "model",
            "llama",
            "of the kind 'llama' .*; allowed is 'gpt2' with one of gpt-2, smollm, gpt2",
        ),
        ("pre", "qwen2", "with the split 'qwen2'"),
        ("merges", None, "no tokenizer.ggml.merges"),
        ("merges", ["one"], "'one' is not a merge"),
        ("token_type", [1], "400 tokens and 1 of tokenizer.ggml.token_type"),
        ("token_type", [6] * 400, r"'<\|endoftext\|>' is of the kind 6"),
    ],
)
def test_a_gguf_tokenizer_of_another_kind_is_refused(
    folder: Path, name: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_gguf(metadata(folder, **{name: value}))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} has no tokenizer; allowed are"):
        Tokenizer.from_folder(tmp_path)


def test_a_vocabulary_without_an_end_is_refused(folder: Path, tmp_path: Path) -> None:
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    renamed = json.loads(text.replace("<|endoftext|>", "<|other|>"))
    write_json(tmp_path / "tokenizer.json", renamed)
    with pytest.raises(ValueError, match="no special token ends a document"):
        Tokenizer.from_folder(tmp_path)
