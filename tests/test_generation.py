from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gptmill.generation import GenerationConfig, _candidates, _choose, _Row, generate
from gptmill.layouts import HUGGING_FACE_GPT2
from gptmill.mapping import read_state
from gptmill.model import GPT
from gptmill.weights import of_dict
from helpers import tiny_config, tiny_gpt

PROMPTS = [[5, 6, 7], [9], list(range(40, 52)), [5, 6, 7, 8]]


def greedy(max_new_tokens: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=max_new_tokens, temperature=0.0, top_k=0, top_p=1.0)


def sampled(*, top_k: int = 0, top_p: float = 1.0, temperature: float = 1.0) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=12, temperature=temperature, top_k=top_k, top_p=top_p)


def babbler(context_length: int = 32) -> GPT:
    """Return a model that does not repeat itself: tied random weights soon would."""
    return tiny_gpt(tiny_config(context_length=context_length, tie_weights=False), seed=2)


@torch.no_grad()
def uncached(model: GPT, prompt: list[int], n_new: int, stop_id: int | None) -> list[int]:
    """The book's loop: crop, read everything again, take the likeliest."""
    ids = list(prompt)
    for _ in range(n_new):
        window = torch.tensor([ids[-model.config.context_length :]])
        chosen = int(model(window)[0, -1].argmax())
        if chosen == stop_id:
            break
        ids.append(chosen)
    return ids[len(prompt) :]


def test_cached_equals_uncached_row_by_row() -> None:
    model = babbler()
    new_ids = generate(model, PROMPTS, greedy(15), stop_id=None, seed=1)
    assert new_ids == [uncached(model, prompt, 15, None) for prompt in PROMPTS]
    assert min(len(set(row)) for row in new_ids) > 6


def test_generation_goes_on_past_the_context_length() -> None:
    model = babbler(context_length=16)
    prompts = [*PROMPTS, list(range(100, 130))]
    new_ids = generate(model, prompts, greedy(20), stop_id=None, seed=1)
    assert new_ids == [uncached(model, prompt, 20, None) for prompt in prompts]


def test_each_row_stops_by_itself_and_the_others_go_on() -> None:
    model = babbler(context_length=16)
    free = generate(model, PROMPTS, greedy(20), stop_id=None, seed=1)
    stop_id = free[0][4]
    new_ids = generate(model, PROMPTS, greedy(20), stop_id=stop_id, seed=1)
    assert new_ids == [uncached(model, prompt, 20, stop_id) for prompt in PROMPTS]
    assert len(new_ids[0]) <= 4
    assert max(map(len, new_ids)) == 20


def test_greedy_ids_are_those_of_transformers() -> None:
    torch.manual_seed(3)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=317,
            n_positions=64,
            n_embd=24,
            n_layer=2,
            n_head=3,
            bos_token_id=316,
            eos_token_id=316,
            tie_word_embeddings=False,
        )
    ).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.2)
    ours = as_ours(theirs)
    expected = theirs.generate(
        torch.tensor([PROMPTS[2]]),
        attention_mask=torch.ones(1, len(PROMPTS[2]), dtype=torch.long),
        max_new_tokens=30,
        do_sample=False,
        eos_token_id=400,
        pad_token_id=316,
    )
    new_ids = generate(ours, PROMPTS, greedy(30), stop_id=None, seed=1)
    assert new_ids[2] == expected[0, len(PROMPTS[2]) :].tolist()
    assert len(set(new_ids[2])) > 6


def as_ours(theirs: GPT2LMHeadModel) -> GPT:
    model = GPT(tiny_config(context_length=64, tie_weights=False))
    tensors = of_dict(Path("theirs"), dict(theirs.state_dict()), mapped=False)
    model.load_state_dict(read_state(HUGGING_FACE_GPT2, model.config, tensors))
    return model.eval()


def test_what_is_drawn_depends_on_seed_and_place_and_not_on_the_batch() -> None:
    model = babbler()
    all_rows = generate(model, PROMPTS, sampled(), stop_id=None, seed=7)
    assert generate(model, PROMPTS, sampled(), stop_id=None, seed=7) == all_rows
    assert generate(model, PROMPTS[:2], sampled(), stop_id=None, seed=7) == all_rows[:2]
    assert generate(model, PROMPTS, sampled(), stop_id=None, seed=8) != all_rows
    torch.manual_seed(99)
    assert generate(model, PROMPTS, sampled(), stop_id=None, seed=7) == all_rows


def test_equal_prompts_of_one_batch_go_different_ways() -> None:
    rows = generate(babbler(), [[5, 6]] * 4, sampled(), stop_id=None, seed=7)
    assert len({tuple(row) for row in rows}) == 4


def test_more_prompts_than_one_batch_holds_come_back_in_order() -> None:
    model = babbler()
    prompts = [[index, index + 1] * (1 + index % 3) for index in range(70)]
    new_ids = generate(model, prompts, greedy(3), stop_id=None, seed=1)
    assert new_ids[::23] == [uncached(model, prompt, 3, None) for prompt in prompts[::23]]


def test_ids_are_drawn_as_often_as_they_are_probable() -> None:
    model = babbler()
    config = GenerationConfig(max_new_tokens=1, temperature=0.5, top_k=4, top_p=1.0)
    rows = generate(model, [[5, 6]] * 2000, config, stop_id=None, seed=1)
    counts = Counter(row[0] for row in rows)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6]]))[0, -1]
    values, ids = logits.topk(4)
    expected = (values / 0.5).softmax(-1)
    assert counts.keys() == set(ids.tolist())
    for index, probability in zip(ids.tolist(), expected.tolist(), strict=True):
        deviation = (probability * (1 - probability) / 2000) ** 0.5
        assert abs(counts[index] / 2000 - probability) < 4 * deviation


BOOK_LOGITS = torch.tensor([[4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79]])


def probabilities(logits: Tensor, config: GenerationConfig) -> Tensor:
    """Return the probability of every id in its own place."""
    found, ids = _candidates(logits, config)
    return torch.zeros_like(logits).scatter(-1, ids, found)


def test_top_k_gives_the_probabilities_of_the_book() -> None:
    found = probabilities(BOOK_LOGITS.double(), sampled(top_k=3))
    expected = torch.tensor([[0.0615, 0, 0, 0.5775, 0, 0, 0, 0.3610, 0]]).double()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.58, 0.9, 0.94, 0.97, 0.999])
def test_top_p_keeps_the_fewest_ids_that_hold_that_much(top_p: float) -> None:
    shares = BOOK_LOGITS.double().softmax(-1)[0].tolist()
    kept: set[int] = set()
    held = 0.0
    for index in sorted(range(9), key=lambda index: -shares[index]):
        if held >= top_p:
            break
        kept.add(index)
        held += shares[index]
    found = probabilities(BOOK_LOGITS.double(), sampled(top_p=top_p))[0]
    assert set(found.nonzero().flatten().tolist()) == kept


def test_half_is_held_by_one_of_two_equals() -> None:
    found = probabilities(torch.zeros(1, 2).double(), sampled(top_p=0.5))
    assert found.count_nonzero() == 1


def test_the_smallest_draw_takes_no_id_of_probability_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.zeros(size).double())
    row = _Row([1], [], torch.Generator())
    assert _choose(torch.tensor([[-2e3, -2e3, 5.0, 4.0]]), [row], sampled()) == [2]


def test_the_coldest_draw_is_greedy() -> None:
    model = babbler()
    cold = generate(model, PROMPTS, sampled(temperature=1e-310), stop_id=None, seed=1)
    assert cold == generate(model, PROMPTS, greedy(12), stop_id=None, seed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_bounds_are_checked(change: dict[str, Any], message: str) -> None:
    good = {"max_new_tokens": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**{**good, **change})


def test_an_empty_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="a prompt has no ids"):
        generate(babbler(), [[1], []], greedy(1), stop_id=None, seed=1)
