"""Text generation: completions of prompts, streamed as deltas.

A prompt is a list of ids, and the last delta of a completion has the reason for the end. The
command line and the server both generate text through this module alone, and therefore stop at the
same strings and ids and show the same text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from torch import nn

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.generation.decoder import (
    DecodingBatch,
    DecodingSequence,
    GenerationConfig,
    generate,
)
from gptmill.generation.quantization import WeightFormat, quantize
from gptmill.model.gpt import GPT
from gptmill.tokenizer.chat_template import Template
from gptmill.tokenizer.huggingface import read_stop_ids
from gptmill.tokenizer.stream import TextStream
from gptmill.tokenizer.tokenizer import Tokenizer

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Delta:
    """A decoding step's addition to a completion.

    An id, the text that may be shown by now, and the reason for the end at the last delta. Text
    is held back where it may be the beginning of a stop string or part of a character. A
    completion that ends at a stop id has a last delta without an id.
    """

    row: int
    id: int | None
    text: str
    finish: Finish | None


@dataclass(eq=False)
class Completion:
    """The continuation of a prompt, in progress.

    `index` is the position of the prompt among the prompts requested together.
    """

    index: int
    row: DecodingSequence
    text: TextStream

    def take(self, new_id: int | None) -> Delta:
        """Return the delta for the sequence's next id.

        `new_id` is None where the sequence has ended at a stop id.
        """
        if new_id is None:
            return Delta(self.index, None, self.text.finish(), "stop")
        shown = self.text.feed(new_id)
        if self.text.stopped:
            return Delta(self.index, new_id, shown, "stop")
        if self.row.ended:
            return Delta(self.index, new_id, shown + self.text.finish(), "length")
        return Delta(self.index, new_id, shown, None)


class CompletionBatch:
    """Completions decoded together; they join and leave between two steps."""

    def __init__(
        self, model: GPT, n_rows: int, capacity: int, *, prefill_budget: int | None = None
    ) -> None:
        """Allocate `n_rows` completions of up to `capacity` ids each.

        `capacity` counts the ids of prompt and continuation. `prefill_budget`: see cached_batch.py.
        """
        self._batch = DecodingBatch(model, n_rows, capacity, prefill_budget=prefill_budget)
        self._completions: dict[int, Completion] = {}  # by the id() of the row

    @property
    def room(self) -> int:
        """Return how many more completions may join."""
        return self._batch.n_rows - len(self._batch.rows)

    def join(self, completion: Completion) -> None:
        """Add a completion, to be prefilled at the next step."""
        self._completions[id(completion.row)] = completion
        self._batch.join([completion.row])

    def leave(self, completion: Completion) -> None:
        """Remove a completion that has not ended."""
        del self._completions[id(completion.row)]
        self._batch.leave(completion.row)

    def step(self) -> list[tuple[Completion, Delta]]:
        """Decode an id for each prefilled completion.

        Returns each completion with a delta. Completions that have ended leave the batch.
        """
        rows = list(self._batch.rows)
        new_ids = {id(row): new for row, new in self._batch.step()}
        deltas = []
        for row in rows:
            if id(row) not in new_ids and not row.ended:
                continue  # the prompt is still in prefill
            completion = self._completions[id(row)]
            delta = completion.take(new_ids.get(id(row)))
            deltas.append((completion, delta))
            if row.ended:
                del self._completions[id(row)]
            elif delta.finish:
                self.leave(completion)
        return deltas


def _own_memory(model: GPT) -> GPT:
    """Copy the tensors that `quantize` shares, so that the pages of a mapped file are released."""
    for part in model.modules():
        if not isinstance(part, nn.Linear):
            for name, parameter in part.named_parameters(recurse=False):
                setattr(part, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
    return model


@dataclass(frozen=True, kw_only=True)
class TextGenerator:
    """A model with a tokenizer and an optional chat template.

    `stops` are the ids that end a text by the folder's configs.
    """

    name: str
    model: GPT
    tokenizer: Tokenizer
    template: Template | None
    stops: frozenset[int] = frozenset()

    @classmethod
    def open(
        cls, folder: Path, *, weights: WeightFormat | None = None, device: str = "cpu"
    ) -> Self:
        """Load a checkpoint folder, with dropout off.

        `weights` is the format of the weights for decoding, see quantization.py; None leaves the
        weights unchanged. Raises ValueError where the tokenizer has ids unknown to the model.
        """
        tokenizer = Tokenizer.from_folder(folder)
        model = load_causal_lm(folder, mapped=True).to(device)
        if tokenizer.n_vocab > model.config.vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has {tokenizer.n_vocab} ids, but the model knows only "
                f"{model.config.vocab_size}: the two do not belong together"
            )
        if weights is not None:
            model = quantize(_own_memory(model), weights)
        name = folder.resolve().name
        return cls(
            name=name,
            model=model,
            tokenizer=tokenizer,
            template=Template.read(folder),
            stops=frozenset(read_stop_ids(folder)),
        )

    @property
    def context_length(self) -> int:
        """Return how many ids the model reads at once."""
        return self.model.config.context_length

    @property
    def stop_ids(self) -> frozenset[int]:
        """Return the ids that end a text.

        The end id of a document, the end ids of the folder's configs, and with a chat template
        the end ids of a turn.
        """
        end = self.stops | {self.tokenizer.eot_id}
        return end if self.template is None else end | self.template.stop_ids(self.tokenizer)

    def completions(
        self,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        *,
        stops: Sequence[str] = (),
        seed: int,
    ) -> list[Completion]:
        """Return a completion of each prompt, not yet begun.

        Each completion draws from a separate random stream.
        """
        ends = self.stop_ids
        return [
            Completion(
                index,
                DecodingSequence.begin(prompt, config, stop_ids=ends, seed=seed, index=index),
                TextStream(self.tokenizer, stops),
            )
            for index, prompt in enumerate(prompts)
        ]

    def stream(
        self, prompt: Sequence[int], config: GenerationConfig, *, stops: Sequence[str], seed: int
    ) -> Iterator[Delta]:
        """Yield the deltas of a prompt's completion.

        A beam search yields all deltas at the end of the search.
        """
        completion = self.completions([prompt], config, stops=stops, seed=seed)[0]
        if config.beams > 1:
            yield from self._stream_beam_search(prompt, config, completion)
            return
        batch = CompletionBatch(self.model, 1, len(prompt) + config.max_new_tokens)
        batch.join(completion)
        while not batch.room:
            yield from (delta for _, delta in batch.step())

    def _stream_beam_search(
        self, prompt: Sequence[int], config: GenerationConfig, completion: Completion
    ) -> Iterator[Delta]:
        ids = generate(self.model, [prompt], config, stop_ids=self.stop_ids, seed=0)[0]
        for new_id in ids:
            completion.row.take(new_id)
            delta = completion.take(new_id)
            yield delta
            if delta.finish:
                return
        yield completion.take(None)
