"""The decoder: new ids for prompts, returned whole or streamed.

A continuation depends on the model, the prompt, the config and the seed alone: each prompt draws
from a separate random stream, and the sequences of a batch do not see each other.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from gptmill.generation.beams import beam_search
from gptmill.generation.cached_batch import CachedBatch, CachedSequence
from gptmill.generation.sampling import GenerationConfig, choose
from gptmill.model.gpt import GPT

__all__ = ["DecodingBatch", "DecodingSequence", "GenerationConfig", "generate", "stream"]

ROWS_AT_ONCE = 32  # prompts decoded together; bounds the memory of the cache


@dataclass
class DecodingSequence(CachedSequence):
    """A prompt and the continuation decoded so far.

    `config`, `stop_ids` and `draws` determine the choice of ids; `ended` is the reason for the
    end, empty before the end.
    """

    config: GenerationConfig = field(kw_only=True)
    stop_ids: frozenset[int] = frozenset()
    draws: torch.Generator = field(default_factory=torch.Generator)
    n_prompt: int = 0
    ended: Literal["", "stop", "length"] = ""

    @classmethod
    def begin(
        cls,
        prompt: Sequence[int],
        config: GenerationConfig,
        *,
        stop_ids: Collection[int],
        seed: int,
        index: int = 0,
    ) -> "DecodingSequence":
        """Return the sequence of a prompt, without new ids.

        `index` distinguishes the sequences of one seed. Raises ValueError for a prompt without ids.
        """
        if not prompt:
            raise ValueError("a prompt has no ids: at least 1 is needed, for example <|endoftext|>")
        draws = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
        return cls(
            list(prompt),
            config=config,
            stop_ids=frozenset(stop_ids),
            draws=draws,
            n_prompt=len(prompt),
        )

    @property
    def new_ids(self) -> list[int]:
        """Return the continuation of the prompt, without the stop id."""
        return self.ids[self.n_prompt :]

    def take(self, chosen: int) -> bool:
        """Take a chosen id; return whether to show it.

        Every id except a stop id is appended and shown; a stop id ends the sequence.
        """
        if chosen in self.stop_ids:
            self.ended = "stop"
            return False
        self.ids.append(chosen)
        if len(self.ids) - self.n_prompt >= self.config.max_new_tokens:
            self.ended = "length"
        return True


class DecodingBatch(CachedBatch[DecodingSequence]):
    """Sequences decoded together, each with a separate config.

    Sequences may join at any step.
    """

    def step(self) -> list[tuple[DecodingSequence, int]]:
        """Decode an id for each ready sequence.

        Returns (sequence, id) pairs for the ids to show. Sequences that have ended leave the batch.
        """
        logits = self.next_logits()
        rows = self.rows[: self.n_ready]
        chosen = choose(
            logits,
            [row.config for row in rows],
            [row.ids for row in rows],
            [row.draws for row in rows],
        )
        shown = [(row, new) for row, new in zip(rows, chosen, strict=True) if row.take(new)]
        for row in rows:
            if row.ended:
                self.leave(row)
        return shown

    def run(self, rows: Sequence[DecodingSequence]) -> None:
        """Decode all sequences to the end.

        A waiting sequence joins as soon as the batch has room.
        """
        waiting = deque(sorted(rows, key=lambda row: len(row.ids)))
        while waiting or self.rows:
            room = min(self.n_rows - len(self.rows), len(waiting))
            self.join([waiting.popleft() for _ in range(room)])
            self.step()


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    stop_ids: Collection[int],
    seed: int,
) -> list[list[int]]:
    """Return each prompt's continuation as ids, without the stop id.

    See cached_batch.py for sequences longer than the context.
    """
    rows = _rows(prompts, config, stop_ids, seed)
    if config.beams > 1:
        return [beam_search(model, row.ids, config, stop_ids=row.stop_ids) for row in rows]
    if rows:
        DecodingBatch(model, min(len(rows), ROWS_AT_ONCE), _longest(rows)).run(rows)
    return [row.new_ids for row in rows]


def stream(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    stop_ids: Collection[int],
    seed: int,
) -> Iterator[list[int | None]]:
    """Yield, step by step, the new id of each prompt.

    A prompt that has ended yields None. The ids of all steps together equal the result of
    `generate`. All prompts are decoded at once. Raises ValueError for a beam search, because the
    first id of a beam search is only known at the end.
    """
    if config.beams > 1:
        raise ValueError(f"beams is {config.beams}: a beam search cannot be streamed, set it to 1")
    rows = _rows(prompts, config, stop_ids, seed)
    return _steps(model, rows)


def _steps(model: GPT, rows: list[DecodingSequence]) -> Iterator[list[int | None]]:
    if not rows:
        return
    batch = DecodingBatch(model, len(rows), _longest(rows))
    batch.join(rows)
    while batch.rows:
        new_ids = {id(row): new for row, new in batch.step()}
        if new_ids:
            yield [new_ids.get(id(row)) for row in rows]


def _rows(
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    stop_ids: Collection[int],
    seed: int,
) -> list[DecodingSequence]:
    return [
        DecodingSequence.begin(prompt, config, stop_ids=stop_ids, seed=seed, index=index)
        for index, prompt in enumerate(prompts)
    ]


def _longest(rows: Sequence[DecodingSequence]) -> int:
    """Return the largest number of positions a sequence may need."""
    return max(len(row.ids) + row.config.max_new_tokens for row in rows)
