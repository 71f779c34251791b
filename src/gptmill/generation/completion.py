"""A model that speaks: text out of prompts of ids, piece by piece, with the reason it ended.

The command line and the server speak through this module alone, so that both stop at the same
strings and ids and show the same text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.generation.decoder import (
    Batch,
    GenerationConfig,
    Row,
    generate,
)
from gptmill.generation.quantization import Kind, quantize
from gptmill.model.gpt import GPT
from gptmill.tokenizer.chat_template import Template
from gptmill.tokenizer.stream import TextStream
from gptmill.tokenizer.tokenizer import Tokenizer

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What one step adds to a speech: an id, the text that may be shown by now, why it ended.

    Text comes late where it may be the beginning of a stop string or of a character. A speech
    that ends at a stop id has a last piece without an id.
    """

    row: int
    id: int | None
    text: str
    finish: Finish | None


@dataclass(eq=False)
class Speech:
    """One prompt that is being continued; `index` is its place among those asked for together."""

    index: int
    row: Row
    text: TextStream

    def take(self, new_id: int | None) -> Piece:
        """Return what the row's next id adds; None where the row has ended at a stop id."""
        if new_id is None:
            return Piece(self.index, None, self.text.finish(), "stop")
        shown = self.text.feed(new_id)
        if self.text.stopped:
            return Piece(self.index, new_id, shown, "stop")
        if self.row.ended:
            return Piece(self.index, new_id, shown + self.text.finish(), "length")
        return Piece(self.index, new_id, shown, None)


class Talk:
    """Speeches that are decoded together; they join and leave between two steps."""

    def __init__(
        self, model: GPT, n_rows: int, capacity: int, *, read_beside: int | None = None
    ) -> None:
        """Make room for `n_rows` speeches of up to `capacity` ids, prompt and continuation.

        `read_beside`: see reader.py.
        """
        self._batch = Batch(model, n_rows, capacity, read_beside=read_beside)
        self._speeches: dict[int, Speech] = {}  # by their rows

    @property
    def room(self) -> int:
        """Return how many more speeches may join."""
        return self._batch.n_rows - len(self._batch.rows)

    def join(self, speech: Speech) -> None:
        """Take a speech in; its prompt is read at the next step."""
        self._speeches[id(speech.row)] = speech
        self._batch.join([speech.row])

    def leave(self, speech: Speech) -> None:
        """Let a speech go that has not ended."""
        del self._speeches[id(speech.row)]
        self._batch.leave(speech.row)

    def step(self) -> list[tuple[Speech, Piece]]:
        """Add one id to each speech whose prompt is read by now; those that have ended leave."""
        rows = list(self._batch.rows)
        new_ids = {id(row): new for row, new in self._batch.step()}
        found = []
        for row in rows:
            if id(row) not in new_ids and not row.ended:
                continue  # its prompt is being read
            speech = self._speeches[id(row)]
            piece = speech.take(new_ids.get(id(row)))
            found.append((speech, piece))
            if row.ended:
                del self._speeches[id(row)]
            elif piece.finish:
                self.leave(speech)
        return found


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A model, its tokenizer, and its chat template if it has one."""

    name: str
    model: GPT
    tokenizer: Tokenizer
    template: Template | None

    @classmethod
    def open(cls, folder: Path, *, weights: Kind | None = None, device: str = "cpu") -> Self:
        """Read a checkpoint folder; dropout is off.

        `weights` lays them out for decoding, see quantization.py; None leaves them as they are.
        Raises ValueError where the tokenizer has ids that the model does not know.
        """
        tokenizer = Tokenizer.from_folder(folder)
        model = load_causal_lm(folder, mapped=True).to(device)
        if tokenizer.n_vocab > model.config.vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has {tokenizer.n_vocab} ids and the model knows "
                f"{model.config.vocab_size}: they do not belong together"
            )
        if weights is not None:
            model = quantize(model, weights)
        name = folder.resolve().name
        return cls(name=name, model=model, tokenizer=tokenizer, template=Template.read(folder))

    @property
    def context_length(self) -> int:
        """Return how many ids the model reads at once."""
        return self.model.config.context_length

    @property
    def stop_ids(self) -> frozenset[int]:
        """Return the ids that end a text: that of a document's end and those of a turn's."""
        end = frozenset([self.tokenizer.eot_id])
        return end if self.template is None else end | self.template.stop_ids(self.tokenizer)

    def speeches(
        self,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        *,
        stops: Sequence[str] = (),
        seed: int,
    ) -> list[Speech]:
        """Return speeches that have not begun; each draws from a random stream of its own."""
        ends = self.stop_ids
        return [
            Speech(
                index,
                Row.begin(prompt, config, stop_ids=ends, seed=seed, index=index),
                TextStream(self.tokenizer, stops),
            )
            for index, prompt in enumerate(prompts)
        ]

    def speak(
        self, prompt: Sequence[int], config: GenerationConfig, *, stops: Sequence[str], seed: int
    ) -> Iterator[Piece]:
        """Yield the pieces of one prompt's continuation; a beam search's all at the end."""
        speech = self.speeches([prompt], config, stops=stops, seed=seed)[0]
        if config.beams > 1:
            yield from self._searched(prompt, config, speech)
            return
        talk = Talk(self.model, 1, len(prompt) + config.max_new_tokens)
        talk.join(speech)
        while not talk.room:
            yield from (piece for _, piece in talk.step())

    def _searched(
        self, prompt: Sequence[int], config: GenerationConfig, speech: Speech
    ) -> Iterator[Piece]:
        ids = generate(self.model, [prompt], config, stop_ids=self.stop_ids, seed=0)[0]
        for new_id in ids:
            speech.row.take(new_id)
            piece = speech.take(new_id)
            yield piece
            if piece.finish:
                return
        yield speech.take(None)
