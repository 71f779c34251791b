import pytest
import torch
from transformers import GPT2LMHeadModel

from gptmill.generation.decoder import GenerationConfig, generate, stream
from tests.support.decoders import (
    PROMPTS,
    as_ours,
    babbler,
    greedy,
    theirs_of,
)


def beams(n_beams: int, *, n_new: int = 12, **changes: float) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=n_new, temperature=0.0, top_k=0, top_p=1.0, beams=n_beams, **changes
    )


def expected(
    theirs: GPT2LMHeadModel, prompt: list[int], config: GenerationConfig, stop_ids: list[int]
) -> list[int]:
    found = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=config.max_new_tokens,
        do_sample=False,
        num_beams=config.beams,
        length_penalty=config.length_penalty,
        repetition_penalty=config.repetition_penalty,
        eos_token_id=stop_ids,
        pad_token_id=316,
    )[0, len(prompt) :].tolist()
    ends = [place for place, new in enumerate(found) if new in stop_ids]
    return found[: ends[0]] if ends else found


@pytest.mark.parametrize("n_beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
def test_beams_are_those_of_transformers(n_beams: int, length_penalty: float) -> None:
    theirs = theirs_of(seed=3, spread=0.1)
    ours = as_ours(theirs)
    lengths = set()
    for penalty in (1.0, 1.4):
        for stop_ids in ([400], list(range(0, 317, 3))):
            config = beams(n_beams, length_penalty=length_penalty, repetition_penalty=penalty)
            found = generate(ours, PROMPTS, config, stop_ids=set(stop_ids), seed=1)
            assert found == [expected(theirs, prompt, config, stop_ids) for prompt in PROMPTS]
            lengths |= set(map(len, found))
    assert len(lengths) > 1


def test_one_beam_is_greedy_and_many_are_no_less_likely() -> None:
    model = babbler()
    alone = generate(model, PROMPTS, greedy(12), stop_ids=(), seed=1)
    assert generate(model, PROMPTS, beams(1), stop_ids=(), seed=1) == alone
    many = generate(model, PROMPTS, beams(8), stop_ids=(), seed=1)
    assert many != alone

    def log_probability(prompt: list[int], new: list[int]) -> float:
        with torch.no_grad():
            found = model(torch.tensor([prompt + new]))[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(new) - 1)
        return sum(float(found[place, index]) for place, index in zip(places, new, strict=True))

    better = [
        log_probability(prompt, searched) - log_probability(prompt, taken)
        for prompt, searched, taken in zip(PROMPTS, many, alone, strict=True)
    ]
    assert sum(better) > 0.1


def test_beams_go_on_past_the_context() -> None:
    found = generate(babbler(16), PROMPTS, beams(3, n_new=40), stop_ids=(), seed=1)
    assert [len(row) for row in found] == [40] * 4


def test_a_search_cannot_be_streamed() -> None:
    with pytest.raises(ValueError, match="beams is 2: a beam search cannot be streamed"):
        stream(babbler(), PROMPTS, beams(2), stop_ids=(), seed=1)
