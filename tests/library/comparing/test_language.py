"""Bits per byte of two models on documents that neither was trained on, against torch."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptmill.checkpoint.checkpoint import save_causal_lm
from gptmill.comparing import significance
from gptmill.comparing.language import BLOCK, language_models, units
from gptmill.comparing.section import MissingError
from gptmill.comparing.side import Side
from gptmill.data.token_file import TokenFile
from gptmill.model.gpt import GPT
from tests.support.tiny import tiny_gpt, tiny_tokenizer

TEXTS = [f"the quick brown fox number {k} jumps" for k in range(40)]


def write_side(
    folder: Path, model: GPT, texts: Sequence[str], *, taught: Sequence[str] = ("a text",)
) -> Side:
    tokenizer = tiny_tokenizer()
    (folder / "pretrain").mkdir(parents=True)
    save_causal_lm(folder / "pretrain", model, tokenizer)
    (folder / "tokenize/tokenizer").mkdir(parents=True)
    tokenizer.save(folder / "tokenize/tokenizer", context_length=32)
    for part, documents in (("train", taught), ("validation", texts)):
        TokenFile.write(
            folder / f"tokenize/{part}.bin",
            [np.array(tokenizer.encode(text), dtype=np.uint32) for text in documents],
            names=[str(k) for k in range(len(documents))],
            separator=tokenizer.eot_id,
            vocab_size=tokenizer.n_vocab,
            fingerprint=tokenizer.fingerprint,
        )
    return Side(folder.name, folder.name, folder)


def louder(model: GPT) -> GPT:
    """Return a model with other weights: certain, and therefore mostly wrong."""
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3)
    return model


def test_bits_per_byte_are_torch_s_and_the_worse_model_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    first = write_side(tmp_path / "A", tiny_gpt(), TEXTS, taught=TEXTS[:5])
    second = write_side(tmp_path / "B", louder(tiny_gpt()), TEXTS[2:])
    section = language_models(first, second, device="cpu")
    (figure,) = section.figures
    assert section.rows == 35
    assert "38 are in both, and 3 of these were left out" in section.notes[0]
    assert figure.gain.high < 0  # the whole interval is a loss
    assert figure.p == pytest.approx(2 / 1001)

    model, tokenizer, nats = tiny_gpt(), tiny_tokenizer(), 0.0
    for text in TEXTS[5:]:
        ids = torch.tensor([[tokenizer.eot_id, *tokenizer.encode(text)]])
        nats += F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()
    size = sum(len(text.encode()) for text in TEXTS[5:])
    assert figure.first.value == pytest.approx(nats / math.log(2) / size, rel=1e-5)

    same = language_models(first, Side("B", "", first.folder), device="cpu")
    assert same.figures[0].p == 1
    assert same.notes[1] == "A and B have the same weights"


def test_few_documents_are_cut_into_blocks_and_few_blocks_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    text = "Thé quick brown föx. " * 1000
    blocks, name = units([text, "short"], tokenizer)
    assert name == "blocks of 2,048 tokens of 2 documents"
    assert "".join(blocks) == text + "short"
    assert len(blocks) == -(-len(tokenizer.encode(text)) // BLOCK) + 1
    cut, name = units([text] * 30, tokenizer)
    assert len(cut) == 30
    assert name.startswith("documents")
    assert set(cut) == {blocks[0]}
    assert units([], tokenizer)[0] == []
    side = write_side(tmp_path / "A", tiny_gpt(), TEXTS[:1])
    with pytest.raises(MissingError, match="at least 30"):
        language_models(side, side, device="cpu")
