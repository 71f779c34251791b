"""Instruction fine-tuning: prompts, batches and generated answers.

The base's chat template (`gptmill.tokenizer.chat_template`) formats training rows, prompts for
answers and server requests alike, and is saved with the fine-tuned model: a model prompted in a
different format from training does worse without any sign of the mistake. A base without a
template gets the template below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from gptmill.data.batching import Ids, Indices, pad
from gptmill.device import release_freed_memory
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.generation.quantization import WeightFormat, quantize
from gptmill.model.gpt import GPT
from gptmill.model.objectives import IGNORE, Batch
from gptmill.tokenizer.chat_template import Template
from gptmill.tokenizer.tokenizer import Tokenizer

# The Alpaca template (https://github.com/tatsu-lab/stanford_alpaca), with the same opening for rows
# with and without an input.
TEMPLATE: dict[str, str] = {
    "opening": "Below is an instruction that describes a task."
    " Write a response that appropriately completes the request.",
    "instruction": "\n\n### Instruction:\n",
    "input": "\n\n### Input:\n",
    "response": "\n\n### Response:\n",
}


def user_text(instruction: str, input_text: str) -> str:
    """Return a user's message: the instruction and an optional input.

    An input that is not empty follows under a separate heading.
    """
    return instruction + TEMPLATE["input"] + input_text if input_text else instruction


def messages(record: Mapping[str, str]) -> list[dict[str, str]]:
    """Return a chat that asks for the record's output."""
    return [{"role": "user", "content": user_text(record["instruction"], record["input"])}]


def read_template(folder: Path, tokenizer: Tokenizer) -> Template:
    """Load the folder's chat template, or return the default template."""
    return Template.read(folder) or default_template(tokenizer)


def default_template(tokenizer: Tokenizer) -> Template:
    """Return the Alpaca template, with EOS after each answer.

    Every turn is a separate document; roles apart from user and assistant are not allowed.
    """
    return Template(chat_template(), {"eos_token": tokenizer.decode([tokenizer.eos_id])})


def chat_template() -> str:
    """Return the Alpaca template as Jinja text.

    A checkpoint folder holds the same text.
    """
    asked = _jinja(TEMPLATE["opening"] + TEMPLATE["instruction"])
    answered = _jinja(TEMPLATE["response"])
    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{{{- {asked} + message['content'] -}}}}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{{{- {answered} + message['content'] + eos_token -}}}}"
        "{%- else -%}"
        "{{- raise_exception('allowed roles are user and assistant') -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {answered} -}}}}{{%- endif -%}}"
    )


def _jinja(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


@dataclass(frozen=True)
class InstructionRows:
    """Prompts and answers as token ids, without the end id."""

    ids: list[Ids]
    prompt_lengths: list[int]
    places: list[int]
    """Index of each row's record."""
    n_dropped: int
    """Number of rows left out because row and end id do not fit the context."""

    @property
    def lengths(self) -> Indices:
        """Return each row's number of ids."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)


def encode_rows(
    records: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    template: Template,
    context_length: int,
) -> InstructionRows:
    """Encode records as rows, without rows longer than the context.

    A row holds instruction, input and output. A row cut short would teach an answer that never
    ends, or an answer to half a question. The model reads all ids but the last, and therefore a
    row of `context_length` ids plus the end id fits.
    """
    pairs = [
        template.encode_exchange(
            tokenizer, [*messages(record), {"role": "assistant", "content": record["output"]}]
        )
        for record in records
    ]
    fitting = [k for k, (a, b) in enumerate(pairs) if len(a) + len(b) - 1 <= context_length]
    return InstructionRows(
        [np.array([*pairs[k][0], *pairs[k][1][:-1]], dtype=np.uint32) for k in fitting],
        [len(pairs[k][0]) for k in fitting],
        fitting,
        len(records) - len(fitting),
    )


def collate(
    rows: Sequence[Sequence[int] | Ids],
    end_id: int,
    *,
    prompt_lengths: Sequence[int] | None = None,
    limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return padded inputs and targets, both (B, T).

    Each row is followed by the end id and then by padding. End and padding are the same id, but
    only the end is a target: targets at padding are `IGNORE`. With `prompt_lengths`, the targets
    of the prompts are `IGNORE` too. `limit`: see `pad`.
    """
    inputs = pad(rows, end_id, limit=limit)
    targets = pad([[*row[1:], end_id] for row in rows], IGNORE, limit=limit)
    for index, length in enumerate(prompt_lengths or ()):
        targets[index, : length - 1] = IGNORE
    return inputs, targets


def batch(
    rows: InstructionRows,
    indices: Indices,
    *,
    end_id: int,
    mask_prompt: bool,
    limit: int | None = None,
) -> Batch:
    """Return the rows at `indices` as a padded batch.

    The batch is (inputs (B, T), targets (B, T)). `limit`: see `pad`.
    """
    prompt_lengths = [rows.prompt_lengths[index] for index in indices] if mask_prompt else None
    chosen = [rows.ids[index] for index in indices]
    return collate(chosen, end_id, prompt_lengths=prompt_lengths, limit=limit)


def answers(
    model: GPT,
    records: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    template: Template,
    *,
    max_new_tokens: int,
    weights: WeightFormat = "fp32",
) -> list[str]:
    """Generate the model's answer to each instruction, decoded with `weights`.

    Decoding is greedy: the likeliest token at every step.
    """
    greedy = GenerationConfig(max_new_tokens=max_new_tokens, temperature=0.0, top_k=0, top_p=1.0)
    prompts = [template.encode(tokenizer, messages(record)) for record in records]
    stops = template.stop_ids(tokenizer)
    new_ids = generate(quantize(model, weights), prompts, greedy, stop_ids=stops, seed=0)
    release_freed_memory()  # of the weights in another format, and of the cache
    return [tokenizer.decode(ids).strip() for ids in new_ids]
