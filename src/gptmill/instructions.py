"""Instructions and answers: the prompt, the batches, the answers given.

One template is used for training, for answering and, as a chat template, in the saved folder:
a model asked in another form than it was trained in does worse without any sign of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gptmill.generation import GenerationConfig, generate
from gptmill.model import GPT
from gptmill.objectives import IGNORE, Batch
from gptmill.rows import Ids, Indices, pad
from gptmill.tokenizer import Tokenizer

# The Alpaca template (https://github.com/tatsu-lab/stanford_alpaca), with one opening for rows
# with and without an input.
TEMPLATE: dict[str, str] = {
    "opening": "Below is an instruction that describes a task."
    " Write a response that appropriately completes the request.",
    "instruction": "\n\n### Instruction:\n",
    "input": "\n\n### Input:\n",
    "response": "\n\n### Response:\n",
}


def user_text(instruction: str, given: str) -> str:
    """Return what a user says: the instruction and, under its own heading, an input if any."""
    return instruction + TEMPLATE["input"] + given if given else instruction


def prompt(user: str) -> str:
    """Return the text after which the model writes its answer."""
    return TEMPLATE["opening"] + TEMPLATE["instruction"] + user + TEMPLATE["response"]


def chat_template() -> str:
    """Return the Jinja template by which Hugging Face's tools write the same prompt.

    Every turn is a document of its own, closed by `<|endoftext|>`; there is no place for
    another role.
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
class Rows:
    """Prompts and answers as token ids, without the `<|endoftext|>` that ends an answer."""

    ids: list[Ids]
    prompt_lengths: list[int]
    places: list[int]
    """Which record each row was made of."""
    n_dropped: int
    """How many rows did not fit the context with their `<|endoftext|>`, and were left out."""

    @property
    def lengths(self) -> Indices:
        """Return each row's number of ids."""
        return np.array([len(row) for row in self.ids], dtype=np.int64)


def encode_rows(
    records: Sequence[Mapping[str, str]], tokenizer: Tokenizer, context_length: int
) -> Rows:
    """Return rows of instruction, input and output as ids, those left out that do not fit.

    A row cut short would teach an answer that never ends, or an answer to half a question.
    The model reads all ids but the last, so a row of `context_length` ids and its end fits.
    """
    asked = tokenizer.encode_batch(
        [prompt(user_text(record["instruction"], record["input"])) for record in records]
    )
    answered = tokenizer.encode_batch([record["output"] for record in records])
    pairs = list(zip(asked, answered, strict=True))
    fitting = [k for k, (a, b) in enumerate(pairs) if len(a) + len(b) <= context_length]
    return Rows(
        [np.concatenate(pairs[k]) for k in fitting],
        [len(asked[k]) for k in fitting],
        fitting,
        len(records) - len(fitting),
    )


def collate(
    rows: Sequence[Sequence[int] | Ids],
    end_id: int,
    *,
    prompt_lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, both (B, T), each row followed by its end and then padding.

    The end and the padding are the same id; of these only the first is a target, the others
    are `IGNORE`. With `prompt_lengths` the prompts are no targets either.
    """
    ids = pad([[*row, end_id] for row in rows], end_id)  # (B, T + 1)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].clone()
    for index, row in enumerate(rows):
        targets[index, len(row) :] = IGNORE
        if prompt_lengths is not None:
            targets[index, : prompt_lengths[index] - 1] = IGNORE
    return inputs, targets


def batch(rows: Rows, indices: Indices, *, end_id: int, mask_prompt: bool) -> Batch:
    """Return the rows at `indices` as (inputs (B, T), targets (B, T))."""
    prompt_lengths = [rows.prompt_lengths[index] for index in indices] if mask_prompt else None
    return collate([rows.ids[index] for index in indices], end_id, prompt_lengths=prompt_lengths)


def answers(
    model: GPT,
    records: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    *,
    max_new_tokens: int,
) -> list[str]:
    """Return the model's answer to each instruction, the likeliest token at every step."""
    greedy = GenerationConfig(max_new_tokens=max_new_tokens, temperature=0.0, top_k=0, top_p=1.0)
    prompts = [
        tokenizer.encode(prompt(user_text(record["instruction"], record["input"])))
        for record in records
    ]
    new_ids = generate(model, prompts, greedy, stop_ids={tokenizer.eot_id}, seed=0)
    return [tokenizer.decode(ids).strip() for ids in new_ids]
