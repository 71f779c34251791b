"""Chat templates to choose from in instruction fine-tuning.

A special token after an answer is needed to end the answer: ChatML's and Phi-3's own where the
tokenizer has the token, else the end of text.
"""

from dataclasses import replace
from pathlib import Path

from gptmill.finetuning.instructions import default_template, read_template
from gptmill.tokenizer.chat_template import Template
from gptmill.tokenizer.tokenizer import Tokenizer

BASE = "base"
ALPACA = "alpaca"
# opening of a message, opening of an answer, end of a message
FORMS = {
    "chatml": ("<|im_start|>' + message['role'] + '\\n", "<|im_start|>assistant\\n", "<|im_end|>"),
    "phi-3": ("<|' + message['role'] + '|>\\n", "<|assistant|>\\n", "<|end|>"),
}
NAMES = (BASE, ALPACA, *FORMS)


def check_template(template: str) -> str:
    """Return a name of a template or Jinja text; raise ValueError for other texts."""
    if template not in NAMES and "{%" not in template and "{{" not in template:
        raise ValueError(f"allowed are {', '.join(NAMES)}, and the text of a Jinja template")
    return template


def choose_template(template: str, folder: Path, tokenizer: Tokenizer) -> Template:
    """Return a template by name, or from Jinja text, for the base in a folder.

    `base` is the template of the folder, or Alpaca's for a folder without a template. The first
    special token after an answer becomes a stop id.
    """
    if template == BASE:
        return read_template(folder, tokenizer)
    if template == ALPACA:
        return default_template(tokenizer)
    source = _form(template, tokenizer) if template in FORMS else template
    roles = {"eos_token": tokenizer.decode([tokenizer.eos_id])}
    if tokenizer.bos_id is not None:
        roles["bos_token"] = tokenizer.decode([tokenizer.bos_id])
    found = Template(source, roles, name=f"params.yaml, instruct.template: {template[:20]!r}")
    return replace(found, stops=_stops(found, tokenizer))


def _form(name: str, tokenizer: Tokenizer) -> str:
    opening, answer, end = FORMS[name]
    end = f"'{end}'" if end in tokenizer.special_ids else "eos_token"
    message = f"'{opening}' + message['content'] + {end} + '\\n'"
    return (
        f"{{%- for message in messages -%}}{{{{- {message} -}}}}{{%- endfor -%}}"
        f"{{%- if add_generation_prompt -%}}{{{{- '{answer}' -}}}}{{%- endif -%}}"
    )


def _stops(template: Template, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the first special id that the template writes after an answer, if any.

    Raises ValueError for a template that does not open an answer.
    """
    sample = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    prompt, whole = template.render(sample[:1]), template.render(sample, False)
    if not whole.startswith(f"{prompt}b"):
        raise ValueError(
            f"{template.name} does not open an answer; `add_generation_prompt` must add everything "
            "before the answer's content"
        )
    start = template.encode_conversation(tokenizer, sample).answers[0].start
    ids = template.encode(tokenizer, sample, add_generation_prompt=False)[start:]
    special = set(tokenizer.special_ids.values())
    return frozenset([index for index in ids if index in special][:1])
