import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, GPT2Tokenizer

from gptmill.files import read_json, write_json, write_text
from gptmill.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, read_vocabulary
from tasks.project.environment import ROOT
from tests.support.tiny import (
    TINY_TEXT,
    tiny_bpe,
    tiny_merges,
    tiny_tokenizer,
)

BPE = ROOT / "data" / "bpe"
real = pytest.mark.skipif(not BPE.exists(), reason="GPT-2's vocabulary is not fetched yet")

ODD_TEXTS = [
    "",
    " ",
    "  two  spaces \t\r\n\n  and\u00a0a hard one ",
    "it's they'll WE'RE I'd've 'tis",
    "a1b22 3.14 ١٢٣ ½ Ⅷ",
    "日本語 한국어 \U0001f600\U0001f468\u200d\U0001f469 e\u0301 \ufeff\x00\x7f",
    "ends in spaces   ",
    f"{END_OF_TEXT} spelled {END_OF_TEXT}out",
]


def random_texts(n: int, seed: int = 1) -> list[str]:
    """Return texts of words, spaces and characters from all of Unicode."""
    draw = random.Random(seed)
    anything = [chr(draw.randrange(0x3000)) for _ in range(200)]
    anything += [chr(draw.randrange(0x110000)) for _ in range(100)]
    kept = [char for char in anything if unicodedata.category(char) != "Cs"]
    parts = [*kept, *TINY_TEXT.split(), " ", " ", "  ", "\n", "'s", "7"]
    return ["".join(draw.choices(parts, k=draw.randrange(40))) for _ in range(n)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save(folder, context_length=32, chat_template="{{ messages[0].content }}!")
    return folder


def test_transformers_gives_the_same_ids(saved: Path) -> None:
    ours, theirs = tiny_tokenizer(), AutoTokenizer.from_pretrained(saved)
    for text in [*ODD_TEXTS, *random_texts(200), TINY_TEXT]:
        ids = theirs(text, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids) == text == theirs.decode(ids)


def test_transformers_opens_the_folder_as_meant(saved: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(saved)
    assert isinstance(theirs, GPT2Tokenizer)
    assert len(theirs) == tiny_tokenizer().n_vocab == 317
    assert theirs.model_max_length == 32
    assert theirs.padding_side == "right"
    special = {theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id}
    assert special == {tiny_tokenizer().eot_id} == {316}
    chat = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat == "Hi!"


def test_a_saved_folder_loads_as_the_same_tokenizer(saved: Path, tmp_path: Path) -> None:
    loaded = Tokenizer.from_folder(saved)
    assert loaded.fingerprint == tiny_tokenizer().fingerprint
    assert loaded.encode(TINY_TEXT) == tiny_tokenizer().encode(TINY_TEXT)
    loaded.save(tmp_path, context_length=32)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()


def test_the_vocabulary_of_a_folder_is_read_whoever_wrote_it(saved: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(saved).save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    assert read_vocabulary(saved) == tiny_tokenizer().ids()
    assert read_vocabulary(tmp_path) == tiny_tokenizer().ids()
    assert read_vocabulary(tmp_path / "none") is None


def test_the_fingerprint_tells_vocabularies_apart() -> None:
    merges = tiny_merges()
    prints = {
        Tokenizer(part).fingerprint
        for part in (merges, merges[:-1], [*merges[:-2], *merges[:-3:-1]])
    }
    assert len(prints) == 3


def test_a_batch_gives_the_ids_of_each_text() -> None:
    tokenizer = tiny_tokenizer()
    texts = [*ODD_TEXTS, *random_texts(20)]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.dtype == np.uint32
        assert ids.tolist() == tokenizer.encode(text)


def test_half_a_character_decodes_to_the_replacement() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("é")
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode(np.array(ids, dtype=np.uint32)) == "é"
    assert tokenizer.decode([tokenizer.eot_id]) == END_OF_TEXT


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("onlyone", r"line 62: 'onlyone' is not a merge; allowed are two known tokens"),
        ("a b c", r"line 62: 'a b c'"),
        ("a  b", r"line 62: 'a  b'"),
        ("zzz q", r"line 62: 'zzz q'"),
        ("日 本", r"line 62"),
        ("", r"line 62: ''"),
    ],
)
def test_a_wrong_merges_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    vocab_bpe, encoder_json = tiny_bpe(tmp_path)
    write_text(vocab_bpe, vocab_bpe.read_text(encoding="utf-8") + line + "\n")
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_bpe_files(vocab_bpe, encoder_json)


def test_a_merge_that_is_there_twice_is_named(tmp_path: Path) -> None:
    vocab_bpe, encoder_json = tiny_bpe(tmp_path)
    text = vocab_bpe.read_text(encoding="utf-8")
    write_text(vocab_bpe, text + text.splitlines()[7] + "\n")
    with pytest.raises(ValueError, match=r"line 62: .* union is new"):
        Tokenizer.from_bpe_files(vocab_bpe, encoder_json)


def test_a_vocabulary_that_does_not_fit_its_merges_is_refused(tmp_path: Path) -> None:
    vocab_bpe, encoder_json = tiny_bpe(tmp_path)
    good = read_json(encoder_json)
    swapped = {**good, "a": good["b"], "b": good["a"]}
    missing = {token: index for token, index in good.items() if token != END_OF_TEXT}
    for content, message in [
        (swapped, f"token 'a' should have id {good['a']} and has {good['b']}"),
        (missing, r"<\|endoftext\|> is missing"),
        ({**good, "more": 317}, "it has 318 tokens, the merges make 317"),
        ([1, 2], "not a JSON object"),
    ]:
        write_json(encoder_json, content)
        with pytest.raises(ValueError, match=f"does not belong to .*: .*{message}"):
            Tokenizer.from_bpe_files(vocab_bpe, encoder_json)


def test_windows_line_ends_and_no_header_are_read(tmp_path: Path) -> None:
    vocab_bpe, encoder_json = tiny_bpe(tmp_path)
    lines = vocab_bpe.read_text(encoding="utf-8").splitlines()[1:]
    vocab_bpe.write_bytes("\r\n".join(lines).encode())
    loaded = Tokenizer.from_bpe_files(vocab_bpe, encoder_json)
    assert loaded.fingerprint == tiny_tokenizer().fingerprint


KNOWN_IDS = {
    "This is some text": [1212, 318, 617, 2420],
    "Every effort moves you": [6109, 3626, 6100, 345],
    "Every day holds a": [6109, 1110, 6622, 257],
    "Hello, I am": [15496, 11, 314, 716],
    "Do you have time": [5211, 345, 423, 640],
    "<|user|>": [27, 91, 7220, 91, 29],
    "Hello, do you like tea?": [15496, 11, 466, 345, 588, 8887, 30],
    " In the sunlit terracesof someunknownPlace.": [
        *(554, 262, 4252, 18250, 8812, 2114, 1659, 617, 34680, 27271, 13),
    ],
}


@real
def test_gpt2s_vocabulary_gives_the_published_ids() -> None:
    tokenizer = Tokenizer.from_bpe_files(BPE / "vocab.bpe", BPE / "encoder.json")
    assert (tokenizer.n_vocab, tokenizer.eot_id) == (50257, 50256)
    assert {text: tokenizer.encode(text) for text in KNOWN_IDS} == KNOWN_IDS


@real
def test_gpt2s_vocabulary_opens_in_transformers(tmp_path: Path) -> None:
    ours = Tokenizer.from_bpe_files(BPE / "vocab.bpe", BPE / "encoder.json")
    ours.save(tmp_path, context_length=1024)
    assert read_json(tmp_path / "vocab.json") == read_json(BPE / "encoder.json")
    assert (tmp_path / "merges.txt").read_bytes() == (BPE / "vocab.bpe").read_bytes()
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*ODD_TEXTS, *random_texts(100)]:
        assert ours.encode(text) == theirs(text, split_special_tokens=True)["input_ids"]
