from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptmill.generation.sampling import (
    LIKELIEST,
    GenerationConfig,
    candidates,
    choose,
    penalised,
)

BOOK_LOGITS = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79])


def config(**changes: Any) -> GenerationConfig:
    plain = {"max_new_tokens": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(**{**plain, **changes})


def probabilities(logits: Tensor, config: GenerationConfig) -> Tensor:
    """Return the probability of every id in its own place."""
    found, ids = candidates(logits, config)
    return torch.zeros(len(logits)).double().scatter(0, ids, found / found.sum())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 5, "temperature": 1.3},
        {"top_p": 0.9},
        {"top_p": 0.999, "temperature": 3.0},  # more ids than are sorted at first
        {"min_p": 0.05},
        {"temperature": 1.5, "top_k": 300, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
    ],
)
def test_the_distribution_is_that_of_the_processors_of_transformers(
    changes: dict[str, Any],
) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(4)).double() * 3
    own, seen = config(**changes), [1, 7, 7, 4000, 23, 24, 25]
    theirs = [TemperatureLogitsWarper(own.temperature)]
    if own.repetition_penalty != 1:
        theirs = [RepetitionPenaltyLogitsProcessor(own.repetition_penalty), *theirs]
    if own.top_k:
        theirs.append(TopKLogitsWarper(own.top_k))
    if own.top_p < 1:
        theirs.append(TopPLogitsWarper(own.top_p))
    if own.min_p:
        theirs.append(MinPLogitsWarper(own.min_p))
    scores = LogitsProcessorList(theirs)(torch.tensor([seen]), logits[None].clone())
    expected = scores.softmax(-1)[0]
    found = probabilities(penalised(logits, seen, own.repetition_penalty), own)
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def test_some_of_these_keep_more_ids_than_are_sorted_at_first() -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(4)).double() * 3
    kept, _ = candidates(logits, config(top_p=0.999, temperature=3.0))
    assert len(kept) > LIKELIEST


def test_top_k_gives_the_probabilities_of_the_book() -> None:
    expected = torch.tensor([0.0615, 0, 0, 0.5775, 0, 0, 0, 0.3610, 0]).double()
    found = probabilities(BOOK_LOGITS, config(top_k=3))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.58, 0.9, 0.94, 0.97, 0.999])
def test_top_p_keeps_the_fewest_ids_that_hold_that_much(top_p: float) -> None:
    shares = BOOK_LOGITS.double().softmax(-1).tolist()
    kept: set[int] = set()
    held = 0.0
    for index in sorted(range(9), key=lambda index: -shares[index]):
        if held >= top_p:
            break
        kept.add(index)
        held += shares[index]
    _, ids = candidates(BOOK_LOGITS, config(top_p=top_p))
    assert set(ids.tolist()) == kept


def test_half_is_held_by_one_of_two_equals() -> None:
    assert len(candidates(torch.zeros(2), config(top_p=0.5))[0]) == 1


def test_the_smallest_draw_takes_no_id_of_probability_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.zeros(size).double())
    logits = torch.tensor([[-2e3, -2e3, 5.0, 4.0]])
    assert choose(logits, [config()], [[1]], [torch.Generator()]) == [2]


def test_the_coldest_draw_is_the_likeliest_id() -> None:
    cold = config(temperature=1e-310)
    assert choose(BOOK_LOGITS[None], [cold], [[1]], [torch.Generator()]) == [3]


def test_rows_of_one_batch_have_configs_of_their_own() -> None:
    logits = BOOK_LOGITS.expand(3, -1)
    configs = [
        config(temperature=0.0),
        config(top_k=1),
        config(temperature=0, repetition_penalty=9),
    ]
    seen = [[3], [3], [3, 5]]
    assert choose(logits, configs, seen, [torch.Generator()] * 3) == [3, 3, 7]


@pytest.mark.parametrize("penalty", [0.01, 100.0])
@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-5, 1.0, 1e300])
def test_the_most_extreme_settings_choose_an_id(penalty: float, temperature: float) -> None:
    logits = 1000 * torch.randn(1, 50, generator=torch.Generator().manual_seed(2))
    extreme = config(repetition_penalty=penalty, temperature=temperature)
    (chosen,) = choose(logits, [extreme], [range(25)], [torch.Generator().manual_seed(3)])
    assert 0 <= chosen < 50


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_weights_are_named(value: float, temperature: float) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = value
    settings = [config(temperature=temperature)] * 2
    with pytest.raises(ValueError, match="logits are not finite numbers"):
        choose(logits, settings, [[], []], [torch.Generator()] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": 1e-300}, "must be from 0.01 to 100"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"beams": 0}, "beams is 0"),
        ({"beams": 2}, "beams is 2 and temperature 1.0"),
        ({"length_penalty": float("inf")}, "length_penalty is inf"),
    ],
)
def test_bounds_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**change)
