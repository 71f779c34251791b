from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
import torch

import gptmill.generation.cached_batch
import gptmill.generation.decoder
from gptmill.generation.decoder import (
    DecodingBatch,
    DecodingSequence,
    GenerationConfig,
    generate,
    stream,
)
from gptmill.generation.sampling import choose
from gptmill.model.gpt import GPT
from tests.support.decoders import (
    PROMPTS,
    as_ours,
    babbler,
    greedy,
    theirs_of,
)

FAMILIES = ["gpt2", "llama"]
DRAWN = GenerationConfig(
    max_new_tokens=40, temperature=0.9, top_k=60, top_p=0.95, min_p=0.01, repetition_penalty=1.1
)


@torch.no_grad()
def uncached(
    model: GPT, row: DecodingSequence, *, n_new: int | None = None, stop_ids: Collection[int] = ()
) -> list[int]:
    """A plain loop: read everything that the rule leaves again for each id, then choose."""
    context, ids = model.config.context_length, list(row.ids)
    start = max(0, len(ids) - context)
    for _ in range(n_new or row.config.max_new_tokens):
        if len(ids) - start > context:
            start = len(ids) - context // 2
        logits = model(torch.tensor([ids[start:]]))[:, -1]
        chosen = choose(logits, [row.config], [ids], [row.draws])[0]
        if chosen in stop_ids:
            break
        ids.append(chosen)
    return ids[row.n_prompt :]


def rows(
    config: GenerationConfig, *, seed: int, prompts: Sequence[list[int]] = PROMPTS
) -> list[DecodingSequence]:
    return [
        DecodingSequence.begin(prompt, config, stop_ids=(), seed=seed, index=index)
        for index, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("config", [greedy(40), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("context_length", [64, 16, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached_past_the_context_too(
    family: str, context_length: int, config: GenerationConfig
) -> None:
    model = babbler(context_length, family)
    prompts = [*PROMPTS, list(range(100, 130))]
    new_ids = generate(model, prompts, config, stop_ids=(), seed=7)
    expected = [uncached(model, row) for row in rows(config, seed=7, prompts=prompts)]
    assert new_ids == expected
    assert [len(row) for row in new_ids] == [40] * 5
    assert len({new for row in new_ids for new in row}) >= 8


@pytest.mark.parametrize("config", [greedy(20), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_equals_single(family: str, config: GenerationConfig) -> None:
    model = babbler(16, family)
    alone = []
    for row in rows(config, seed=7):
        DecodingBatch(model, 1, 16).run([row])
        alone.append(row.new_ids)
    assert generate(model, PROMPTS, config, stop_ids=(), seed=7) == alone


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_read_in_chunks_equals_one_read_whole(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = babbler(32, family)
    prompts = [list(range(30)), list(range(7, 37)), list(range(50, 78))]
    whole = generate(model, prompts, DRAWN, stop_ids=(), seed=7)
    read: list[int] = []
    monkeypatch.setattr(gptmill.generation.cached_batch, "READ_AT_ONCE", 14)
    monkeypatch.setattr(
        GPT,
        "hidden",
        lambda self, ids, cache=None: (read.append(ids.numel()), self.transformer(ids, cache))[1],
    )
    assert generate(model, prompts, DRAWN, stop_ids=(), seed=7) == whole
    assert max(read) == 14


def test_more_prompts_than_one_batch_holds_come_back_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gptmill.generation.decoder, "ROWS_AT_ONCE", 3)
    model = babbler()
    prompts = [[index, index + 1] * (1 + index % 3) for index in range(10)]
    new_ids = generate(model, prompts, DRAWN, stop_ids={17, 200}, seed=1)
    expected = rows(DRAWN, seed=1, prompts=prompts)
    assert new_ids == [uncached(model, row, stop_ids={17, 200}) for row in expected]


def test_each_row_has_its_own_config_and_stop_ids_and_joins_when_it_comes() -> None:
    model = babbler(16)
    free = uncached(model, rows(greedy(20), seed=1)[0])
    begun = [
        DecodingSequence.begin(PROMPTS[0], greedy(20), stop_ids={free[4], free[11]}, seed=1),
        DecodingSequence.begin(PROMPTS[1], DRAWN, stop_ids=(), seed=5),
        DecodingSequence.begin(PROMPTS[2], greedy(3), stop_ids=(), seed=1),
    ]
    batch = DecodingBatch(model, 2, 16)
    batch.join(begun[:2])
    while len(batch.rows) == 2:
        batch.step()
    batch.run(begun[2:])
    assert begun[0].new_ids == free[: free.index(free[4])]
    assert begun[1].new_ids == uncached(
        model, DecodingSequence.begin([9], DRAWN, stop_ids=(), seed=5)
    )
    assert begun[2].new_ids == uncached(model, rows(greedy(3), seed=1)[2])
    assert [row.ended for row in begun] == ["stop", "length", "length"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_prompt_does_not_hold_up_the_others(family: str) -> None:
    model = babbler(64, family)
    brief, other, long, joining = (
        DecodingSequence.begin(prompt, config, stop_ids=(), seed=3)
        for prompt, config in [
            ([5, 6, 7], greedy(4)),
            ([9], DRAWN),
            (list(range(41)), DRAWN),
            ([8, 9], greedy(70)),  # past the context
        ]
    )
    batch = DecodingBatch(model, 4, 64, prefill_budget=8)
    batch.join([brief, other])
    batch.step()
    batch.join([long, joining])
    while not long.new_ids:
        before = len(other.new_ids)
        batch.step()
        assert len(other.new_ids) == before + 1
    assert brief.ended == "length"  # and left while the long one was being read
    assert len(joining.new_ids) == 6, "40 ids, 8 a step, one of them spent on the other that came"
    batch.run([])
    for row in (brief, other, long, joining):
        alone = DecodingSequence.begin(row.ids[: row.n_prompt], row.config, stop_ids=(), seed=3)
        assert row.new_ids == uncached(model, alone)


@pytest.mark.parametrize("config", [greedy(20), DRAWN], ids=["greedy", "drawn"])
def test_what_is_streamed_is_what_is_generated(config: GenerationConfig) -> None:
    model = babbler(16)
    whole = generate(model, PROMPTS, config, stop_ids={17, 200, 3, 64}, seed=7)
    steps = list(stream(model, PROMPTS, config, stop_ids={17, 200, 3, 64}, seed=7))
    assert all(len(step) == 4 for step in steps)
    assert [[new for new in row if new is not None] for row in zip(*steps, strict=True)] == whole
    assert all(new is None for new in [step[2] for step in steps][len(whole[2]) :])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # inductor's own
def test_a_compiled_step_chooses_the_same_ids() -> None:
    model = babbler(16)
    for config in (greedy(20), DRAWN):
        expected = generate(model, PROMPTS, config, stop_ids={17}, seed=7)
        found = [replace(row, stop_ids=frozenset({17})) for row in rows(config, seed=7)]
        DecodingBatch(model, 3, 16, compiled=True).run(found)
        assert [row.new_ids for row in found] == expected


def test_greedy_ids_are_those_of_transformers() -> None:
    theirs = theirs_of(seed=3, spread=0.2)
    ours = as_ours(theirs)
    expected = theirs.generate(
        torch.tensor([PROMPTS[2]]),
        attention_mask=torch.ones(1, len(PROMPTS[2]), dtype=torch.long),
        max_new_tokens=30,
        do_sample=False,
        eos_token_id=400,
        pad_token_id=316,
    )
    new_ids = generate(ours, PROMPTS, greedy(30), stop_ids=(), seed=1)
    assert new_ids[2] == expected[0, len(PROMPTS[2]) :].tolist()
    assert len(set(new_ids[2])) > 6


def test_what_is_drawn_depends_on_seed_and_place_and_not_on_the_batch() -> None:
    model = babbler()
    all_rows = generate(model, PROMPTS, DRAWN, stop_ids=(), seed=7)
    assert generate(model, PROMPTS[:2], DRAWN, stop_ids=(), seed=7) == all_rows[:2]
    assert generate(model, PROMPTS, DRAWN, stop_ids=(), seed=8) != all_rows
    torch.manual_seed(99)
    assert generate(model, PROMPTS, DRAWN, stop_ids=(), seed=7) == all_rows


def test_equal_prompts_of_one_batch_go_different_ways() -> None:
    found = generate(babbler(), [[5, 6]] * 4, DRAWN, stop_ids=(), seed=7)
    assert len({tuple(row) for row in found}) == 4


def test_ids_are_drawn_as_often_as_they_are_probable() -> None:
    model = babbler()
    config = GenerationConfig(max_new_tokens=1, temperature=0.5, top_k=4, top_p=1.0)
    found = generate(model, [[5, 6]] * 2000, config, stop_ids=(), seed=1)
    counts = Counter(row[0] for row in found)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6]]))[0, -1]
    values, ids = logits.topk(4)
    expected = (values / 0.5).softmax(-1)
    assert counts.keys() == set(ids.tolist())
    for index, probability in zip(ids.tolist(), expected.tolist(), strict=True):
        deviation = (probability * (1 - probability) / 2000) ** 0.5
        assert abs(counts[index] / 2000 - probability) < 4 * deviation


def test_an_empty_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="a prompt has no ids"):
        generate(babbler(), [[1], []], greedy(1), stop_ids=(), seed=1)


def test_no_prompts_give_no_rows() -> None:
    assert generate(babbler(), [], greedy(1), stop_ids=(), seed=1) == []
    assert list(stream(babbler(), [], greedy(1), stop_ids=(), seed=1)) == []
