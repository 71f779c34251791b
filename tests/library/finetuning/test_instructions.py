from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from gptmill.checkpoint.checkpoint import save_causal_lm
from gptmill.finetuning.instruction_rows import batch, collate, encode_rows
from gptmill.finetuning.instructions import (
    answers,
    default_template,
    messages,
    read_template,
    user_text,
)
from gptmill.model.objectives import (
    IGNORE,
    LANGUAGE,
    drop_ignored,
    language_loss,
)
from gptmill.tokenizer.tokenizer import Tokenizer
from tests.support.tiny import (
    chatty_folder,
    tiny_config,
    tiny_gpt,
    tiny_tokenizer,
)

EOT = 50256
RECORDS = [
    {"instruction": "Give a synonym of 'lazy'.", "input": "", "output": "Idle.", "kind": "a"},
    {"instruction": "Name the category.", "input": "fox", "output": "An animal.", "kind": "b"},
    {"instruction": 'Say {{ it\'s }} \\n "so".', "input": "", "output": "So.", "kind": "a"},
]


TEMPLATE = default_template(tiny_tokenizer())


def prompt(instruction: str, given: str) -> str:
    return TEMPLATE.render(messages({"instruction": instruction, "input": given}))


def test_the_prompt_is_the_published_template():
    assert prompt("Do it.", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nDo it.\n\n### Response:\n"
    )
    assert prompt("Do it.", "Now").endswith(
        "### Instruction:\nDo it.\n\n### Input:\nNow\n\n### Response:\n"
    )


@pytest.mark.parametrize("record", RECORDS)
def test_the_chat_template_renders_the_same_prompt(tmp_path: Path, record: dict[str, str]):
    model = tiny_gpt(tiny_config(context_length=512))
    save_causal_lm(tmp_path, model, tiny_tokenizer(), chat_template=TEMPLATE.source)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    user = user_text(record["instruction"], record["input"])
    chat = [{"role": "user", "content": user}]
    text = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == prompt(record["instruction"], record["input"])
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == tiny_tokenizer().encode(text) == TEMPLATE.encode(tiny_tokenizer(), chat)
    whole = [*chat, {"role": "assistant", "content": record["output"]}]
    trained = theirs.apply_chat_template(whole, return_dict=False)
    (row,) = encode_rows([record], tiny_tokenizer(), TEMPLATE, 512).ids
    assert trained == [*row, tiny_tokenizer().eot_id]
    read = read_template(tmp_path, tiny_tokenizer())
    assert read.source == TEMPLATE.source
    assert read.stop_ids(tiny_tokenizer()) == TEMPLATE.stop_ids(tiny_tokenizer()) == {316}


def test_rows_of_a_base_with_its_own_template_are_written_by_it(tmp_path: Path):
    chatty_folder(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    template = read_template(tmp_path, ours)
    rows = encode_rows(RECORDS, ours, template, 512)
    end = template.end_id(ours)
    assert theirs.convert_ids_to_tokens(end) == "<|im_end|>"
    for record, row, ((length, stop, _),) in zip(RECORDS, rows.ids, rows.answers, strict=True):
        assert stop == len(row) + 1
        asked = messages(record)
        ids = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert template.encode(ours, asked) == ids == row[:length].tolist()
        whole = [*asked, {"role": "assistant", "content": record["output"]}]
        trained = theirs.apply_chat_template(whole, return_dict=False)
        assert trained == [*row, end, *ours.encode("\n")]
    model = tiny_gpt(tiny_config(context_length=512, vocab_size=ours.n_vocab))
    assert len(answers(model, RECORDS, ours, template, max_new_tokens=3)) == len(RECORDS)


def test_the_books_batch():
    inputs, targets = collate([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]], EOT)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, EOT, EOT, EOT], [7, 8, 9, EOT, EOT]]
    assert targets.tolist() == [
        [1, 2, 3, 4, EOT],
        [6, EOT, -100, -100, -100],
        [8, 9, EOT, -100, -100],
    ]


def test_with_a_limit_the_width_is_a_multiple_of_16_and_the_targets_stay():
    rows = [list(range(n)) for n in (5, 18)]
    inputs, targets = collate(rows, EOT, limit=40)
    plain_inputs, plain_targets = collate(rows, EOT)
    assert inputs.shape == targets.shape == (2, 32)
    assert torch.equal(inputs[:, :18], plain_inputs)
    assert torch.equal(targets[:, :18], plain_targets)
    assert bool((targets[:, 18:] == IGNORE).all())
    assert collate(rows, EOT, limit=20)[0].shape == (2, 20)


def test_the_books_losses():
    logits = torch.tensor([[-1.0, 1.0], [-0.5, 1.5]])
    loss = torch.nn.functional.cross_entropy
    assert loss(logits, torch.tensor([0, 1])).item() == pytest.approx(1.1269, abs=1e-4)
    third = torch.cat([logits, torch.tensor([[-0.5, 1.5]])])
    assert loss(third, torch.tensor([0, 1, 1])).item() == pytest.approx(0.7936, abs=1e-4)
    masked = loss(third, torch.tensor([0, 1, IGNORE]), ignore_index=IGNORE)
    assert masked.item() == pytest.approx(1.1269, abs=1e-4)


def test_a_masked_prompt_leaves_the_answer_and_its_end_as_targets():
    inputs, targets = collate([[0, 1, 2, 3, 4], [5, 6, 7]], EOT, counted=[[(3, 6)], [(2, 4)]])
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, EOT, EOT]]
    assert targets.tolist() == [[-100, -100, 3, 4, EOT], [-100, 7, EOT, -100, -100]]


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_the_loss_of_a_batch_is_that_of_its_rows_alone(mask_prompt: bool):
    model = tiny_gpt(tiny_config(context_length=512))
    rows = encode_rows(RECORDS, tiny_tokenizer(), TEMPLATE, 512, masked=mask_prompt)

    def one(*indices: int) -> tuple[torch.Tensor, ...]:
        return batch(rows, np.array(indices), end_id=316)

    with torch.no_grad():
        counts = [int((one(index)[1] != IGNORE).sum()) for index in range(3)]
        total = sum(language_loss(model, drop_ignored(one(index))).item() for index in range(3))
        together = language_loss(model, drop_ignored(one(2, 0, 1))).item()
    assert together == pytest.approx(total, rel=1e-5)
    answer_lengths = [len(tiny_tokenizer().encode(r["output"])) + 1 for r in RECORDS]
    row_lengths = [len(row) for row in rows.ids]  # the first id of a row is no target, its end is
    assert counts == (answer_lengths if mask_prompt else row_lengths)


def test_rows_that_do_not_fit_with_their_end_are_left_out_and_counted():
    tokenizer = tiny_tokenizer()
    longest = max(len(row) for row in encode_rows(RECORDS, tokenizer, TEMPLATE, 512).ids)
    assert encode_rows(RECORDS, tokenizer, TEMPLATE, longest).n_dropped == 0
    assert encode_rows(RECORDS, tokenizer, TEMPLATE, longest - 1).n_dropped == 1
    rows = encode_rows(RECORDS, tokenizer, TEMPLATE, longest)
    ids, _ = batch(rows, np.arange(3), end_id=316)
    assert ids.shape[1] == longest


def test_a_model_that_is_taught_answers_gives_them():
    tokenizer = tiny_tokenizer()
    model = tiny_gpt(tiny_config(context_length=512))
    rows = encode_rows(RECORDS, tokenizer, TEMPLATE, 512)
    taught = drop_ignored(batch(rows, np.arange(3), end_id=tokenizer.eot_id))
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = language_loss(model, taught) / LANGUAGE.count(taught)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
    model.eval()
    given = answers(model, RECORDS, tokenizer, TEMPLATE, max_new_tokens=20)
    assert given == [(record["output"], True) for record in RECORDS]
    (cut,) = answers(model, RECORDS[:1], tokenizer, TEMPLATE, max_new_tokens=1)
    assert not cut.stopped
