import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from gptmill.checkpoint.checkpoint import save_causal_lm
from gptmill.evaluation.language_model import cut, token_nats
from gptmill.evaluation.perplexity import measure, windows
from gptmill.model.gpt import GPT
from tests.support.tiny import (
    TINY_TEXT,
    tiny_config,
    tiny_gpt,
    tiny_tokenizer,
)


def babbler(context_length: int = 32) -> GPT:
    return tiny_gpt(tiny_config(context_length=context_length, tie_weights=False), seed=2)


@pytest.mark.parametrize(
    ("context_length", "stride"), [(32, 32), (32, 5), (16, 16), (7, 3), (9, 1)]
)
def test_loss_is_that_of_transformers_logits(
    context_length: int, stride: int, tmp_path: Path
) -> None:
    """The definition, word by word: each id once, by the first window that predicts it."""
    tokenizer, model = tiny_tokenizer(), babbler()
    save_causal_lm(tmp_path, model, tokenizer)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = tokenizer.encode(TINY_TEXT)
    nats: dict[int, float] = {}
    for begin in range(0, len(ids) - 1, stride):
        inputs = ids[begin : min(begin + context_length, len(ids) - 1)]
        with torch.no_grad():
            rows = theirs(torch.tensor([inputs])).logits[0].log_softmax(-1)
        for place, row in enumerate(rows, start=begin + 1):
            nats.setdefault(place, -row[ids[place]].item())
    assert sorted(nats) == list(range(1, len(ids)))

    found = measure(model, tokenizer, TINY_TEXT, context_length=context_length, stride=stride)
    size = len(TINY_TEXT.encode()) - len(tokenizer.token_bytes(ids[0]))
    assert found.tokens == len(ids) - 1
    assert found.loss == pytest.approx(sum(nats.values()) / len(nats), abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(sum(nats.values()) / math.log(2) / size, abs=1e-5)


def test_without_overlap_it_is_what_the_evaluation_measures() -> None:
    tokenizer, model = tiny_tokenizer(), babbler()
    ids = torch.tensor(tokenizer.encode(TINY_TEXT)).numpy()
    inputs, targets = cut(ids, length=32, limit=0)
    expected = token_nats(model, inputs, targets, batch_size=4, device="cpu").mean()
    found = measure(model, tokenizer, TINY_TEXT, context_length=32, stride=32)
    assert found.loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("n_ids", [2, 8, 9, 10, 24, 25, 31])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_every_id_but_the_first_is_predicted_once(n_ids: int, stride: int) -> None:
    found = [
        place
        for _, end, new in windows(n_ids, 8, stride)
        for place in range(end - new + 1, end + 1)
    ]
    assert found == list(range(1, n_ids))
    assert all(0 < end - begin <= 8 and new > 0 for begin, end, new in windows(n_ids, 8, stride))


@pytest.mark.parametrize(
    ("text", "context_length", "stride", "message"),
    [
        ("x", 8, 8, "the text has 1 tokens: at least 2"),
        ("", 8, 8, "the text has 0 tokens"),
        ("x y z", 33, 8, "context_length is 33: allowed is 1 to the model's 32"),
        ("x y z", 0, 1, "context_length is 0"),
        ("x y z", 8, 9, "stride is 9: allowed is 1 to the context length, 8"),
        ("x y z", 8, 0, "stride is 0"),
    ],
)
def test_what_cannot_be_scored(text: str, context_length: int, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(babbler(), tiny_tokenizer(), text, context_length=context_length, stride=stride)


def test_a_loss_too_large_for_a_perplexity_and_one_that_is_no_number() -> None:
    model = babbler()
    assert model.lm_head is not None
    model.lm_head.weight.data *= 1e4
    found = measure(model, tiny_tokenizer(), TINY_TEXT, context_length=32, stride=32)
    assert found.loss > 1000
    assert found.perplexity is None
    model.lm_head.weight.data[:] = math.nan
    with pytest.raises(ValueError, match="weights are not finite"):
        measure(model, tiny_tokenizer(), TINY_TEXT, context_length=32, stride=32)
