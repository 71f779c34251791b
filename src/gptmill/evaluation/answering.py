"""Answers of a model to questions, and the likelihood of the reference answers.

Letters: B rows, T positions, N counted targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.data.batching import by_length
from gptmill.data.questions import Question
from gptmill.finetuning.instruction_rows import collate
from gptmill.finetuning.instructions import read_template
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.generation.quantization import WeightFormat, quantize
from gptmill.model.gpt import GPT
from gptmill.model.objectives import IGNORE
from gptmill.tokenizer.chat_template import Template
from gptmill.tokenizer.tokenizer import Tokenizer

Floats = npt.NDArray[np.float64]

ROWS = 16  # references in a forward pass

Chat = list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question, and the loss of the reference answer."""

    text: str
    stopped: bool
    """Whether the model ended the answer before the limit."""
    nats: float
    """-ln p of the reference and the end of the turn after it."""
    tokens: int
    """Number of predicted ids of the reference, the end included."""


def answer_questions(
    folder: Path,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    device: str,
    weights: WeightFormat = "fp32",
) -> list[Answer]:
    """Answer every question greedily, and score every reference, with the model in a folder.

    Answers are decoded with `weights`, and references scored in float32. A folder without a chat
    template gets the default template of instruction fine-tuning.
    """
    model, tokenizer = load_causal_lm(folder).to(device).eval(), Tokenizer.from_folder(folder)
    template = read_template(folder, tokenizer)
    chats = [template.accepted(question.chat) for question in questions]
    greedy = GenerationConfig(max_new_tokens=max_new_tokens, temperature=0.0, top_k=0, top_p=1.0)
    prompts = [template.encode(tokenizer, chat) for chat in chats]
    stops = template.stop_ids(tokenizer)
    new_ids = generate(quantize(model, weights), prompts, greedy, stop_ids=stops, seed=0)
    rows = [
        _exchange(tokenizer, template, chat, question.reference)
        for chat, question in zip(chats, questions, strict=True)
    ]
    losses = reference_nats(quantize(model, "fp32"), rows)
    return [
        Answer(tokenizer.decode(ids).strip(), len(ids) < max_new_tokens, nats, tokens)
        for ids, (nats, tokens) in zip(new_ids, losses, strict=True)
    ]


def _exchange(
    tokenizer: Tokenizer, template: Template, chat: Chat, reference: str
) -> tuple[list[int], int]:
    """Return the ids of prompt and reference, and the number of ids in the prompt."""
    prompt, answer = template.encode_exchange(
        tokenizer, [*chat, {"role": "assistant", "content": reference}]
    )
    return [*prompt, *answer], len(prompt)


@torch.inference_mode()
def reference_nats(model: GPT, rows: Sequence[tuple[list[int], int]]) -> list[tuple[float, int]]:
    """Return -ln p and the number of the ids after each prompt.

    A row is (ids, length of the prompt); all rows have the same last id, the end of an answer. Of
    a row longer than the context, the last ids are read. Computed in float32 on every device.
    """
    longest = model.config.context_length + 1
    cut = [(ids[-longest:], max(1, prompt - max(0, len(ids) - longest))) for ids, prompt in rows]
    results: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for chosen in by_length([len(ids) for ids, _ in cut], ROWS):
        batch = [cut[index] for index in chosen]
        end_id = batch[0][0][-1]
        assert all(ids[-1] == end_id for ids, _ in batch), "the rows end in different ids"
        inputs, targets = collate(
            [ids[:-1] for ids, _ in batch],
            end_id,
            counted=[[(prompt, len(ids))] for ids, prompt in batch],
        )  # (B, T), (B, T)
        counts = (targets != IGNORE).sum(dim=1).tolist()
        parts = np.split(_nats(model, inputs, targets), np.cumsum(counts)[:-1])
        for index, part in zip(chosen, parts, strict=True):
            results[index] = (float(part.sum()), len(part))
    return results


def _nats(model: GPT, inputs: torch.Tensor, targets: torch.Tensor) -> Floats:
    """Return -ln p of the targets that are not IGNORE: (B, T), (B, T) -> (N,)."""
    device = model.transformer.wte.weight.device
    counted = (targets.flatten() != IGNORE).nonzero().squeeze(1).to(device)
    hidden = model.hidden(inputs.to(device)).flatten(0, 1).index_select(0, counted)  # (N, C)
    wanted = targets.flatten().to(device).index_select(0, counted)
    nats = F.cross_entropy(model.logits(hidden).float(), wanted, reduction="none")
    values: Floats = nats.double().cpu().numpy()
    return values
