"""Losses per token and per byte, against torch and counting by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptmill.evaluation.language_model import (
    bits_per_byte,
    cut,
    token_nats,
    token_sizes,
)
from gptmill.model.objectives import IGNORE
from tests.support.tiny import TINY_TEXT, tiny_gpt, tiny_tokenizer


@pytest.mark.parametrize("count", [2, 8, 9, 10, 61])
def test_windows_make_each_id_but_the_first_a_target_once(count: int) -> None:
    ids = np.arange(100, 100 + count, dtype=np.uint16)
    inputs, targets = cut(ids, length=8, limit=0)
    counted = targets != IGNORE
    assert inputs.shape == targets.shape
    np.testing.assert_array_equal(targets[counted], ids[1:])
    np.testing.assert_array_equal(inputs[counted], ids[:-1])


def test_a_limit_keeps_windows_from_start_to_end() -> None:
    ids = np.arange(1000)
    inputs, targets = cut(ids, length=10, limit=5)
    assert inputs[:, 0].tolist() == [0, 240, 490, 740, 990]
    assert (targets != IGNORE).sum() == 49
    assert len(cut(ids, length=10, limit=500)[0]) == 100


def test_nats_equal_torch_cross_entropy_whatever_the_batch_size() -> None:
    model = tiny_gpt()
    ids = np.random.default_rng(0).integers(0, 317, size=75)
    inputs, targets = cut(ids, length=32, limit=0)
    found = [token_nats(model, inputs, targets, batch_size=n, device="cpu") for n in (1, 2, 5)]
    expected = []
    for start in (0, 32, 64):
        window = torch.from_numpy(ids[start : start + 33])
        with torch.no_grad():
            logits = model(window[None, :-1])[0]
        expected.append(F.cross_entropy(logits, window[1:], reduction="none").numpy())
    for nats in found:
        np.testing.assert_allclose(nats, np.concatenate(expected), rtol=2e-5)


def test_bits_per_byte_of_a_fair_coin_a_byte() -> None:
    assert bits_per_byte(math.log(2), tokens=100, size=100) == pytest.approx(1.0)
    assert bits_per_byte(math.log(256), tokens=50, size=200) == pytest.approx(2.0)


def test_token_sizes_add_up_to_the_bytes_of_the_text() -> None:
    tokenizer = tiny_tokenizer()
    sizes = token_sizes(tokenizer)
    text = TINY_TEXT + "caf\u00e9 \u65e5\u672c"
    assert len(sizes) == tokenizer.n_vocab
    assert sizes[[*tokenizer.encode(text), tokenizer.eot_id]].sum() == len(text.encode())
