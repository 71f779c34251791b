"""Conversations of several turns: ids and counted ids, beside transformers' assistant masks."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gptmill.finetuning.instruction_rows import (
    NO_END,
    NOTHING,
    SHARED,
    TOO_LONG,
    encode_rows,
    without_shared,
)
from gptmill.finetuning.instructions import chat_template
from gptmill.finetuning.marking import bracketed, coloured, marked
from gptmill.finetuning.templates import check_template, choose_template
from gptmill.tokenizer.chat_template import Template
from gptmill.tokenizer.tokenizer import Tokenizer
from tests.support.tiny import CHATTY, chatty_folder

Chat = list[dict[str, str]]
WORDS = ["the fox", "over", "12", "\n\n", "  ", "na\u00efve", "\U0001f600", "<|im_end|", "a.", "{{"]
ANSWER = "message['content'] + '<|im_end|>'"
CHATML = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}"
    f"{{{{- {ANSWER} -}}}}{{%- endgeneration -%}}"
    f"{{%- else -%}}{{{{- {ANSWER} -}}}}{{%- endif -%}}{{{{- '\\n' -}}}}{{%- endfor -%}}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
HEADING = "\\n\\n### Response:\\n' + "
TEMPLATES = {
    "SmolLM2": CHATTY.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
        f"{{% generation %}}{{{{ {ANSWER} }}}}{{% endgeneration %}}{{% else %}}{{{{ {ANSWER} }}}}"
        "{% endif %}{{ '\n' }}",
    ),
    "Qwen": CHATML,
    "Alpaca": chat_template().replace(
        f"{{{{- '{HEADING}message['content'] + eos_token -}}}}",
        f"{{{{- '{HEADING}'' -}}}}{{%- generation -%}}"
        "{{- message['content'] + eos_token -}}{%- endgeneration -%}",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatty_folder(tmp_path_factory.mktemp("chatty"))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


def conversations(n: int, *, system: bool) -> Iterator[Chat]:
    """Yield random conversations of one to five turns; a text starts and ends with letters."""
    draw = random.Random(1)
    for _ in range(n):
        texts = ["".join(draw.choices(WORDS, k=draw.randrange(6))) for _ in range(10)]
        texts = [f"I{text}." for text in texts[: 2 * draw.randint(1, 5)]]
        chat = [
            {"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts)
        ]
        has_system = system and draw.random() < 0.5
        yield [{"role": "system", "content": "Be  brief."}] * has_system + chat


def record(chat: Chat) -> dict[str, Any]:
    """Return a conversation as a row of the instruction data."""
    *history, asked, answer = chat
    texts = {"instruction": asked["content"], "input": "", "output": answer["content"]}
    return texts | ({"history": history} if history else {})


@pytest.mark.parametrize("n", [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TEMPLATES)
def test_masks_are_those_of_transformers_and_prompts_those_of_the_server(
    folder: Path, ours: Tokenizer, name: str, n: int
) -> None:
    assert "{% generation" in TEMPLATES[name] or "{%- generation" in TEMPLATES[name]
    theirs = AutoTokenizer.from_pretrained(folder)
    template = Template(TEMPLATES[name], {"eos_token": "<|im_end|>"})
    chats = list(conversations(n, system=name != "Alpaca"))
    rows = encode_rows([record(chat) for chat in chats], ours, template, 10_000)
    last = encode_rows([record(chat) for chat in chats], ours, template, 10_000, masked="last")
    every = encode_rows([record(chat) for chat in chats], ours, template, 10_000, masked=False)
    assert rows.places == list(range(n))
    for k, chat in enumerate(chats):
        expected = theirs.apply_chat_template(
            chat,
            chat_template=TEMPLATES[name],
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        row = [*rows.ids[k].tolist(), ours.eos_id]
        assert row == expected["input_ids"][: len(row)]
        counted = {i for start, stop in rows.counted(k) for i in range(start, stop)}
        assert [int(i in counted) for i in range(len(row))] == expected["assistant_masks"][
            : len(row)
        ]
        assert not any(expected["assistant_masks"][len(row) :])
        assert last.counted(k) == rows.counted(k)[-1:]
        assert every.counted(k) == [(1, len(row))]
        asked = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
        prompts = [template.encode(ours, chat[:index]) for index in asked]  # as the server does
        assert [row[: span.start] for span in rows.answers[k]] == prompts


def test_prompts_are_the_server_s_where_an_answer_starts_with_spaces(ours: Tokenizer) -> None:
    template = Template(CHATML)
    texts = ["a", "\n\n b", "\n c", "  \n", " d"]
    chat = [{"role": ("user", "assistant")[k % 2], "content": t} for k, t in enumerate(texts)]
    (row,) = encode_rows([record(chat[:4])], ours, template, 1000).ids
    first, second = template.encode(ours, chat[:1]), template.encode(ours, chat[:3])
    assert row.tolist()[: len(second)] == second
    assert second[: len(first)] == first
    assert template.encode(ours, chat)[: len(row)] == row.tolist()


def test_a_system_message_opens_the_first_message_where_the_template_has_no_system_role(
    ours: Tokenizer,
) -> None:
    template = Template(TEMPLATES["Alpaca"], {"eos_token": "<|im_end|>"})
    chat = [{"role": "system", "content": "S"}, *next(conversations(1, system=False))]
    merged = [{**chat[1], "content": f"S\n\n{chat[1]['content']}"}, *chat[2:]]
    rows = encode_rows([record(chat), record(merged)], ours, template, 1000)
    assert rows.ids[0].tolist() == rows.ids[1].tolist()


def test_rows_unfit_for_training_are_left_out_by_reason(ours: Tokenizer) -> None:
    strips = "message['content'].split('</think>')[-1]"
    ends = "('' if 'endless' in message['content'] else '<|im_end|>')"
    source = CHATML.replace("message['content'] + '<|im_end|>'", f"{strips} + {ends}")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "endless"}]
    fit = record([*turns[:1], {"role": "assistant", "content": "b"}])
    texts = {"instruction": "c", "input": ""}
    records = [
        fit,
        {**texts, "output": "endless"},
        {**texts, "output": "thought</think>"},
        {**texts, "output": "long" * 99},
        {**texts, "output": "d", "history": turns},
    ]
    rows = encode_rows(records, ours, Template(source), 120)
    assert rows.places == [0]
    assert rows.unfit == {NO_END: [1, 4], NOTHING: [2], TOO_LONG: [3]}
    assert encode_rows(records, ours, Template(source), 120, masked="last").places == [0, 4]


def test_a_training_row_that_answers_a_held_out_prompt_is_left_out(ours: Tokenizer) -> None:
    template = Template(CHATML)
    long = next(chat for chat in conversations(50, system=False) if len(chat) == 6)
    other = [{**long[0], "content": "else"}, *long[1:]]
    train = encode_rows([record(other), record(long)], ours, template, 1000)
    for size, is_shared in [(2, True), (4, True), (6, True)]:
        test = encode_rows([record(long[:size])], ours, template, 1000)
        left = without_shared(train, [test])
        assert left.places == [0] if is_shared else left is train
        assert left.unfit == {SHARED: [1]}
    test = encode_rows([record(other[:2] + long[2:])], ours, template, 1000)
    assert without_shared(test, [encode_rows([record(long)], ours, template, 1000)]) is test


OWN = "{% for m in messages %}<file>{{ m.content }}<filename>{% endfor %}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatml", "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"),
        ("phi-3", "<|user|>\nq<|im_end|>\n<|assistant|>\na<|im_end|>\n"),
        (f"{OWN}{{% if add_generation_prompt %}}<file>{{% endif %}}", "<file>q<filename>"),
    ],
)
def test_a_template_is_chosen_by_name_or_given(
    folder: Path, ours: Tokenizer, name: str, text: str
) -> None:
    template = choose_template(check_template(name), folder, ours)
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert template.render(chat, add_generation_prompt=False).startswith(text)
    assert ours.decode([template.end_id(ours)]) == ("<filename>" if "{" in name else "<|im_end|>")
    assert choose_template("base", folder, ours) == Template.read(folder)


def test_a_template_without_a_name_or_an_opening_is_refused(folder: Path, ours: Tokenizer) -> None:
    with pytest.raises(
        ValueError, match=r"instruct\.template: .* does not open an answer; `add_gen"
    ):
        choose_template(OWN, folder, ours)
    with pytest.raises(ValueError, match="allowed are base, alpaca, chatml, phi-3, and the text"):
        check_template("llama")


def test_tokens_are_shown_with_the_counted_marked(ours: Tokenizer) -> None:
    chat = [{"role": "user", "content": "a\x1b"}, {"role": "assistant", "content": "b\n"}]
    tokens = marked(record(chat), ours, Template(CHATML), masked=True)
    text = bracketed(tokens)
    assert text.endswith("\u23ce\n[[b|\u23ce\n|<|im_end|>]]")
    assert "\x1b" not in text
    assert "\x1b[32;4m" in coloured(tokens) or "\x1b[7;32;4m" in coloured(tokens)


def test_an_answer_rendered_differently_later_needs_the_loss_on_the_last(
    ours: Tokenizer,
) -> None:
    source = CHATML.replace(
        "{{- '<|im_start|>' + message['role'] + '\\n' -}}",
        "{{- '<|im_start|>' + message['role'] + ('\\n' if loop.last or loop.index > 3 "
        "or message['role'] != 'assistant' else '!') -}}",
    )
    chat = next(chat for chat in conversations(50, system=False) if len(chat) == 4)
    with pytest.raises(ValueError, match="in row 1; allowed is `mask_prompt: last`"):
        encode_rows([record(chat)], ours, Template(source), 1000)
    assert len(encode_rows([record(chat)], ours, Template(source), 1000, masked="last").ids) == 1
