"""Rows and batches of instruction fine-tuning, with the ids that count in the loss.

A row is a conversation of any number of turns. Rows unfit for training are left out, and kept by
reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from gptmill.data.batching import Ids, Indices, pad
from gptmill.finetuning.instructions import messages
from gptmill.model.objectives import IGNORE, Batch
from gptmill.tokenizer.chat_template import Conversation, Span, Template
from gptmill.tokenizer.tokenizer import Tokenizer

Record = Mapping[str, Any]
Spans = Sequence[tuple[int, int]]
"""Stretches of counted ids, from a start to before a stop."""
Masked = Literal[True, False, "last"]
"""True: answers count, "last": the last answer alone, False: all ids."""

TOO_LONG = "longer than the context"
NOTHING = "nothing counted"
NO_END = "an answer without a stop token"
SHARED = "a prompt of the validation or test part"


@dataclass(frozen=True)
class InstructionRows:
    """Conversations as token ids, without the end id."""

    ids: list[Ids]
    answers: list[tuple[Span, ...]]
    """Spans of each row's answers; the end id belongs to the last span."""
    places: list[int]
    """Index of each row's record."""
    unfit: Mapping[str, list[int]]
    """Indices of the records left out, by reason."""
    masked: Masked = True

    @property
    def lengths(self) -> Indices:
        """Return each row's number of ids."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)

    @property
    def n_dropped(self) -> int:
        """Return the number of records left out."""
        return sum(map(len, self.unfit.values()))

    def counted(self, row: int) -> Spans:
        """Return the counted ids of a row; the first id of a row is never predicted."""
        return counted_spans(self.answers[row], self.masked, len(self.ids[row]) + 1)


def encode_rows(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    template: Template,
    context_length: int,
    *,
    masked: Masked = True,
) -> InstructionRows:
    """Encode records as rows, without rows unfit for training.

    A row holds earlier turns, instruction, input and output. A row cut short would teach an answer
    that never ends, or an answer to half a question. The model reads all ids but the last, and
    therefore a row of `context_length` ids plus the end id fits. Raises ValueError where the
    template renders an answer that counts differently once a message follows.
    """
    ids, spans, places = [], [], []
    unfit: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        chat = conversation(record, template)
        encoded = template.encode_conversation(tokenizer, chat)
        if masked is True and len(encoded.answers) < sum(m["role"] == "assistant" for m in chat):
            raise ValueError(
                f"{template.name} renders an answer differently once a message follows, as in row "
                f"{place + 1}; allowed is `mask_prompt: last`, with the loss on the last answer"
            )
        reason = _unfitness(encoded, context_length, masked)
        if reason is not None:
            unfit.setdefault(reason, []).append(place)
            continue
        ids.append(np.array(encoded.ids[:-1], dtype=np.uint32))
        spans.append(encoded.answers)
        places.append(place)
    return InstructionRows(ids, spans, places, unfit, masked)


def conversation(record: Record, template: Template) -> list[dict[str, Any]]:
    """Return a record's messages with the answer, in roles that the template accepts."""
    return template.accepted(
        [*messages(record), {"role": "assistant", "content": record["output"]}]
    )


def counted_spans(answers: Sequence[Span], masked: Masked, size: int) -> Spans:
    """Return the counted ids of a row of `size` ids, end id included."""
    if masked is False:
        return [(1, size)]
    return [(start, stop) for start, stop, _ in (answers[-1:] if masked == "last" else answers)]


def _unfitness(encoded: Conversation, context_length: int, masked: Masked) -> str | None:
    """Return the reason to leave out a conversation, None for a fit conversation."""
    answers = encoded.answers[-1:] if masked == "last" else encoded.answers
    if not all(answer.ended for answer in answers):
        return NO_END
    if not any(stop - start > 1 for start, stop, _ in answers):
        return NOTHING
    return TOO_LONG if len(encoded.ids) - 1 > context_length else None


def without_shared(train: InstructionRows, held_out: Sequence[InstructionRows]) -> InstructionRows:
    """Return training rows without rows that teach an answer to a held-out prompt.

    The prompt of a held-out row is everything before the last answer; of a training row, everything
    before any answer.
    """
    asked = {
        row[: spans[-1].start].tobytes()
        for rows in held_out
        for row, spans in zip(rows.ids, rows.answers, strict=True)
    }
    shared = [
        any(row[: span.start].tobytes() in asked for span in spans)
        for row, spans in zip(train.ids, train.answers, strict=True)
    ]
    if not any(shared):
        return train
    fit = [k for k, is_shared in enumerate(shared) if not is_shared]
    places = [place for place, is_shared in zip(train.places, shared, strict=True) if is_shared]
    return replace(
        train,
        ids=[train.ids[k] for k in fit],
        answers=[train.answers[k] for k in fit],
        places=[train.places[k] for k in fit],
        unfit={**train.unfit, SHARED: places},
    )


def collate(
    rows: Sequence[Sequence[int] | Ids],
    end_id: int,
    *,
    counted: Sequence[Spans] | None = None,
    limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return padded inputs and targets, both (B, T).

    Each row is followed by the end id and then by padding. End and padding are the same id, but
    only the end is a target: targets at padding are `IGNORE`. With `counted`, the targets outside
    of each row's spans are `IGNORE` too. `limit`: see `pad`.
    """
    inputs = pad(rows, end_id, limit=limit)
    targets = pad([[*row[1:], end_id] for row in rows], IGNORE, limit=limit)
    for target, spans in zip(targets, counted or (), strict=counted is not None):
        kept = target.clone()
        target.fill_(IGNORE)
        for start, stop in spans:
            target[start - 1 : stop - 1] = kept[start - 1 : stop - 1]
    return inputs, targets


def batch(
    rows: InstructionRows, indices: Indices, *, end_id: int, limit: int | None = None
) -> Batch:
    """Return the rows at `indices` as a padded batch.

    The batch is (inputs (B, T), targets (B, T)). `limit`: see `pad`.
    """
    counted = [rows.counted(index) for index in indices]
    return collate([rows.ids[index] for index in indices], end_id, counted=counted, limit=limit)
