"""The server's decoding thread: jobs that it takes in together are told what each is told alone."""

import queue
from functools import partial

from gptmill.generation.completion import CompletionBatch, Delta, TextGenerator
from gptmill.generation.decoder import GenerationConfig
from gptmill.serving.worker import Event, Job, Worker
from tests.support.tiny import tiny_config, tiny_gpt, tiny_tokenizer

CONFIG = GenerationConfig(max_new_tokens=30, temperature=0.8, top_k=0, top_p=1.0)


def test_a_long_prompt_and_short_ones_are_answered_as_each_alone() -> None:
    model = tiny_gpt(tiny_config(context_length=64), seed=2).eval()
    generator = TextGenerator(name="tiny", model=model, tokenizer=tiny_tokenizer(), template=None)
    prompts = [[[5, 6, 7]], [list(range(33)), [9]], [[8]]]  # of three jobs
    told: list[queue.Queue[Event]] = [queue.Queue() for _ in prompts]
    jobs = [
        Job(generator.completions(given, CONFIG, seed=4), events.put)
        for given, events in zip(prompts, told, strict=True)
    ]
    worker = Worker(
        partial(CompletionBatch, model, 3, 64, prefill_budget=4), at_once=3, max_waiting=3
    )
    try:
        for job in jobs:
            worker.submit(job)
        steps = [all_of(events) for events in told]
    finally:
        worker.close()
        worker.join()
    assert [delta for step in steps[0] for delta in step] == alone(generator, prompts[0][0])
    assert [delta for step in steps[2] for delta in step] == alone(generator, prompts[2][0])
    first = [delta for step in steps[1] for delta in step if delta.row == 0]
    assert first == alone(generator, prompts[1][0])
    begun = [{delta.row for delta in step} for step in steps[1]]
    assert begun[0] == {1}, "the short prompt of the two is not held up by the long one"
    assert {0, 1} in begun


def all_of(events: "queue.Queue[Event]") -> list[list[Delta]]:
    found = []
    while (event := events.get(timeout=60)) is not None:
        assert not isinstance(event, Exception), event
        found.append(event)
    return found


def alone(generator: TextGenerator, prompt: list[int]) -> list[Delta]:
    return list(generator.stream(prompt, CONFIG, stops=(), seed=4))
