"""Instruction fine-tuning: prompts and generated answers.

The base's chat template (`gptmill.tokenizer.chat_template`) formats training rows, prompts for
answers and server requests alike, and is saved with the fine-tuned model: a model prompted in a
different format from training does worse without any sign of the mistake. A base without a
template gets the template below.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptmill.device import release_freed_memory
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.generation.quantization import WeightFormat, quantize
from gptmill.model.gpt import GPT
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


def messages(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a chat that asks for the record's output: earlier turns and the instruction."""
    asked = user_text(record["instruction"], record["input"])
    return [*record.get("history", ()), {"role": "user", "content": asked}]


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


class Reply(NamedTuple):
    """A generated answer."""

    text: str
    stopped: bool
    """Whether the model ended the answer before the limit."""


def answers(
    model: GPT,
    records: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: Template,
    *,
    max_new_tokens: int,
    weights: WeightFormat = "fp32",
    consumed: bool = False,
) -> list[Reply]:
    """Generate the model's answer to each instruction, decoded with `weights`.

    Decoding is greedy: the likeliest token at every step. If `consumed`, the model gives up its
    memory to the decoding copy, and computes nothing afterwards.
    """
    greedy = GenerationConfig(max_new_tokens=max_new_tokens, temperature=0.0, top_k=0, top_p=1.0)
    prompts = [
        template.encode(tokenizer, template.accepted(messages(record))) for record in records
    ]
    stops = template.stop_ids(tokenizer)
    release_freed_memory()  # of the training, before two formats of the weights are in memory
    decoding = quantize(model, weights, consumed=consumed)
    release_freed_memory()
    new_ids = generate(decoding, prompts, greedy, stop_ids=stops, seed=0)
    del decoding
    release_freed_memory()  # of the weights in another format, and of the cache
    return [
        Reply(tokenizer.decode(ids).strip(), stopped=len(ids) < max_new_tokens) for ids in new_ids
    ]
