"""The model on the chat page: kind, size and examples; and its answers as HTML."""

from typing import Any

import torch
from markdown_it import MarkdownIt

from gptmill.finetuning.classification import count_parameters
from gptmill.generation.completion import TextGenerator
from gptmill.model.gpt import GPT
from gptmill.serving.messages import Checked
from gptmill.serving.requests import Limits

EXAMPLES = {
    "assistant": (
        "What is the capital of Italy?",
        "Write a short note that thanks a neighbour for soup.",
        "Name three fruits, as a list.",
    ),
    "generator": ("Once upon a time", "In the beginning", "The old man said to"),
}
"""Questions for a model with a chat template, beginnings for a model without."""

# raw HTML is escaped, and links may not run scripts; a model's lines end where it ends them
MARKDOWN = (
    MarkdownIt("commonmark", {"html": False, "breaks": True})
    .enable(["table", "strikethrough"])
    .disable("image")
)


class MarkdownRequest(Checked):
    """The body of `/v1/markdown`."""

    text: str


def about(generator: TextGenerator, limits: Limits) -> dict[str, Any]:
    """Return kind, number of parameters, limits and examples of a model."""
    kind = "generator" if generator.template is None else "assistant"
    with torch.device("meta"):  # the served weights may be quantized
        _, parameters = count_parameters(GPT(generator.model.config))
    return {
        "kind": kind,
        "parameters": parameters,
        "context_length": limits.context_length,
        "max_new_tokens": limits.max_new_tokens,
        "examples": EXAMPLES[kind],
    }


def as_html(markdown: str) -> str:
    """Return Markdown as HTML: without the text's own HTML, images and scripts."""
    return str(MARKDOWN.render(markdown))
