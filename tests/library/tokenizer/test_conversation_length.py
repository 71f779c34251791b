import pytest

from gptmill.tokenizer.chat_template import Template, fit_conversation
from tests.support.tiny import tiny_tokenizer

PLAIN = Template("{%- for m in messages -%}{{ m['role'][0] + m['content'] }}{%- endfor -%}")


def talk(*said: str) -> list[dict[str, str]]:
    return [
        {"role": ("user", "assistant")[place % 2], "content": text}
        for place, text in enumerate(said)
    ]


def kept(messages: list[dict[str, str]], longest: int) -> tuple[str, int]:
    tokenizer = tiny_tokenizer()
    ids, left_out = fit_conversation(messages, PLAIN, tokenizer, longest=longest)
    assert len(ids) <= longest
    return tokenizer.decode(ids), left_out


def test_whole_turns_are_left_out_the_oldest_first() -> None:
    messages = talk("11", "22", "33", "44", "55")
    assert kept(messages, 15) == ("u11a22u33a44u55", 0)
    assert kept(messages, 14) == ("u33a44u55", 1)
    assert kept(messages, 9) == ("u33a44u55", 1)
    assert kept(messages, 8) == ("u55", 2)


def test_a_system_message_stays() -> None:
    messages = [{"role": "system", "content": "0"}, *talk("11", "22", "33")]
    assert kept(messages, 11) == ("s0u11a22u33", 0)
    assert kept(messages, 10) == ("s0u33", 1)


def test_a_message_that_alone_is_too_long_is_an_error() -> None:
    with pytest.raises(ValueError, match="a prompt of 3 tokens: at most 2 fit"):
        kept(talk("11", "22", "33"), 2)
