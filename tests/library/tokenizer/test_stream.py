import random

import pytest

from gptmill.tokenizer.stream import TextStream
from tests.support.tiny import tiny_tokenizer

TEXT = "Caf\u00e9 na\u00efve \u2603 \U0001f600\U0001f3fd END of it. User: ENDING, enDEND!"


class Pieces:
    """A tokenizer whose ids are any bytes."""

    def __init__(self, pieces: list[bytes]):
        self.pieces = pieces

    def token_bytes(self, index: int) -> bytes:
        return self.pieces[index]


def cut(whole: bytes, chance: random.Random) -> list[bytes]:
    """Cut bytes anywhere, inside characters too."""
    places = sorted(chance.sample(range(1, len(whole)), chance.randrange(1, len(whole) - 1)))
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]


def shown(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    text = TextStream(Pieces(pieces), stops)
    parts = [text.feed(index) for index in range(len(pieces))]
    return [*parts, text.finish()], text.stopped


def before_the_first(text: str, stops: list[str]) -> str:
    """Return the text before the stop string that is complete earliest."""
    for end in range(len(text) + 1):
        begun = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begun:
            return text[: min(begun)]
    return text


@pytest.mark.parametrize(
    "stops",
    [[], ["END"], ["ENDING", "END of"], ["DEND"], ["\U0001f3fd"], ["never"], ["f it", "of it."]],
)
def test_what_is_shown_is_the_text_up_to_its_first_stop_string(stops: list[str]) -> None:
    expected = before_the_first(TEXT, stops)
    for seed in range(200):
        parts, stopped = shown(cut(TEXT.encode(), random.Random(seed)), stops)
        assert "".join(parts) == expected
        assert "\ufffd" not in "".join(parts)
        assert stopped == (expected != TEXT)
    one_byte_each = [bytes([byte]) for byte in TEXT.encode()]
    assert "".join(shown(one_byte_each, stops)[0]) == expected


def test_nothing_is_held_back_that_begins_no_stop_string() -> None:
    parts, _ = shown([b"a", b"b", b"E", b"N", b"x", b"E"], ["END"])
    assert parts == ["a", "b", "", "", "ENx", "", "E"]


def test_bytes_that_are_not_utf8_are_shown_as_when_decoded_at_once() -> None:
    chance = random.Random(5)
    for _ in range(200):
        whole = bytes(chance.randrange(256) for _ in range(40))
        parts, _ = shown(cut(whole, chance), [])
        assert "".join(parts) == whole.decode("utf-8", "replace")


def test_text_of_a_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(TEXT)
    text = TextStream(tokenizer)
    assert "".join([*map(text.feed, ids), text.finish()]) == tokenizer.decode(ids)


def test_an_empty_stop_string_is_an_error() -> None:
    with pytest.raises(ValueError, match="a stop string is empty"):
        TextStream(Pieces([]), ["END", ""])
