"""A model that speaks: text out of prompts of ids, piece by piece, with the reason it ended.

The command line and the server speak through this module alone, so that both stop at the same
strings and ids and show the same text.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from gptmill.chat import Template
from gptmill.checkpoint import load_causal_lm
from gptmill.generation import GenerationConfig, stream
from gptmill.model import GPT
from gptmill.quantization import quantize
from gptmill.text_stream import TextStream
from gptmill.tokenizer import Tokenizer

Weights = Literal["float32", "bf16", "int8"]
Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What one step adds to a row: an id, the text that may be shown by now, why it ended.

    A row's text comes late where it may be the beginning of a stop string or of a character.
    A row that ends at a stop id has a last piece without an id.
    """

    row: int
    id: int | None
    text: str
    finish: Finish | None


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A model, its tokenizer, and its chat template if it has one."""

    name: str
    model: GPT
    tokenizer: Tokenizer
    template: Template | None

    @classmethod
    def open(cls, folder: Path, *, weights: Weights = "float32", device: str = "cpu") -> Self:
        """Read a checkpoint folder; dropout is off.

        Raises ValueError where the tokenizer has ids that the model does not know.
        """
        tokenizer = Tokenizer.from_folder(folder)
        model = load_causal_lm(folder).eval()
        if tokenizer.n_vocab > model.config.vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has {tokenizer.n_vocab} ids and the model knows "
                f"{model.config.vocab_size}: they do not belong together"
            )
        model = model.to(device) if weights == "float32" else quantize(model.to(device), weights)
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

    def speak(
        self,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        *,
        stops: Sequence[str] = (),
        seed: int = 0,
    ) -> Generator[list[Piece], None, None]:
        """Continue prompts; each step gives the pieces of the rows that have not ended.

        A row that has ended at a stop string is still computed until the others end.
        """
        texts = [TextStream(self.tokenizer, stops) for _ in prompts]
        going = set(range(len(prompts)))
        steps = stream(self.model, prompts, config, stop_ids=self.stop_ids, seed=seed)
        with closing(steps):  # type: ignore[type-var]
            for number, ids in enumerate(steps, start=1):
                last = number == config.max_new_tokens
                pieces = [_piece(row, ids[row], texts[row], last=last) for row in sorted(going)]
                going -= {piece.row for piece in pieces if piece.finish}
                yield pieces
                if not going:
                    return
        yield [Piece(row, None, texts[row].finish(), "stop") for row in sorted(going)]


def _piece(row: int, new_id: int | None, text: TextStream, *, last: bool) -> Piece:
    if new_id is None:
        return Piece(row, None, text.finish(), "stop")
    shown = text.feed(new_id)
    if text.stopped:
        return Piece(row, new_id, shown, "stop")
    if last:
        return Piece(row, new_id, shown + text.finish(), "length")
    return Piece(row, new_id, shown, None)
