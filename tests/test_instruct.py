from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from gptmill.checkpoint import save_causal_lm
from gptmill.instructions import (
    answers,
    batch,
    chat_template,
    collate,
    encode_rows,
    prompt,
    user_text,
)
from gptmill.objectives import IGNORE, LANGUAGE, kept, language_loss
from tests.helpers import tiny_config, tiny_gpt, tiny_tokenizer

EOT = 50256
RECORDS = [
    {"instruction": "Give a synonym of 'lazy'.", "input": "", "output": "Idle.", "kind": "a"},
    {"instruction": "Name the category.", "input": "fox", "output": "An animal.", "kind": "b"},
    {"instruction": 'Say {{ it\'s }} \\n "so".', "input": "", "output": "So.", "kind": "a"},
]


def test_the_prompt_is_the_published_template():
    assert prompt(user_text("Do it.", "")) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nDo it.\n\n### Response:\n"
    )
    assert prompt(user_text("Do it.", "Now")).endswith(
        "### Instruction:\nDo it.\n\n### Input:\nNow\n\n### Response:\n"
    )


@pytest.mark.parametrize("record", RECORDS)
def test_the_chat_template_renders_the_same_prompt(tmp_path: Path, record: dict[str, str]):
    model = tiny_gpt(tiny_config(context_length=512))
    save_causal_lm(tmp_path, model, tiny_tokenizer(), chat_template=chat_template())
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    user = user_text(record["instruction"], record["input"])
    messages = [{"role": "user", "content": user}]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == prompt(user)
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tiny_tokenizer().encode(prompt(user))
    whole = [*messages, {"role": "assistant", "content": record["output"]}]
    trained = theirs.apply_chat_template(whole, return_dict=False)
    (row,) = encode_rows([record], tiny_tokenizer(), 512).ids
    assert trained == [*row, tiny_tokenizer().eot_id]


def test_the_books_batch():
    inputs, targets = collate([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]], EOT)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, EOT, EOT, EOT], [7, 8, 9, EOT, EOT]]
    assert targets.tolist() == [
        [1, 2, 3, 4, EOT],
        [6, EOT, -100, -100, -100],
        [8, 9, EOT, -100, -100],
    ]


def test_the_books_losses():
    logits = torch.tensor([[-1.0, 1.0], [-0.5, 1.5]])
    loss = torch.nn.functional.cross_entropy
    assert loss(logits, torch.tensor([0, 1])).item() == pytest.approx(1.1269, abs=1e-4)
    third = torch.cat([logits, torch.tensor([[-0.5, 1.5]])])
    assert loss(third, torch.tensor([0, 1, 1])).item() == pytest.approx(0.7936, abs=1e-4)
    masked = loss(third, torch.tensor([0, 1, IGNORE]), ignore_index=IGNORE)
    assert masked.item() == pytest.approx(1.1269, abs=1e-4)


def test_a_masked_prompt_leaves_the_answer_and_its_end_as_targets():
    inputs, targets = collate([[0, 1, 2, 3, 4], [5, 6, 7]], EOT, prompt_lengths=[3, 2])
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, EOT, EOT]]
    assert targets.tolist() == [[-100, -100, 3, 4, EOT], [-100, 7, EOT, -100, -100]]


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_the_loss_of_a_batch_is_that_of_its_rows_alone(mask_prompt: bool):
    model = tiny_gpt(tiny_config(context_length=512))
    rows = encode_rows(RECORDS, tiny_tokenizer(), 512)

    def one(*indices: int) -> tuple[torch.Tensor, ...]:
        return batch(rows, np.array(indices), end_id=316, mask_prompt=mask_prompt)

    with torch.no_grad():
        counts = [int((one(index)[1] != IGNORE).sum()) for index in range(3)]
        total = sum(language_loss(model, kept(one(index))).item() for index in range(3))
        together = language_loss(model, kept(one(2, 0, 1))).item()
    assert together == pytest.approx(total, rel=1e-5)
    answer_lengths = [len(tiny_tokenizer().encode(r["output"])) + 1 for r in RECORDS]
    row_lengths = [len(row) for row in rows.ids]  # the first id of a row is no target, its end is
    assert counts == (answer_lengths if mask_prompt else row_lengths)


def test_rows_that_do_not_fit_with_their_end_are_left_out_and_counted():
    tokenizer = tiny_tokenizer()
    longest = max(len(row) for row in encode_rows(RECORDS, tokenizer, 512).ids)
    assert encode_rows(RECORDS, tokenizer, longest).n_dropped == 0
    assert encode_rows(RECORDS, tokenizer, longest - 1).n_dropped == 1
    rows = encode_rows(RECORDS, tokenizer, longest)
    ids, _ = batch(rows, np.arange(3), end_id=316, mask_prompt=False)
    assert ids.shape[1] == longest


def test_a_model_that_is_taught_answers_gives_them():
    tokenizer = tiny_tokenizer()
    model = tiny_gpt(tiny_config(context_length=512))
    rows = encode_rows(RECORDS, tokenizer, 512)
    taught = kept(batch(rows, np.arange(3), end_id=tokenizer.eot_id, mask_prompt=True))
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = language_loss(model, taught) / LANGUAGE.count(taught)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
    model.eval()
    given = answers(model, RECORDS, tokenizer, max_new_tokens=20)
    assert given == [record["output"] for record in RECORDS]
