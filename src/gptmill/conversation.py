"""What of a conversation a model still reads: whole turns, the oldest given up first."""

from collections.abc import Mapping, Sequence

from gptmill.chat import Template
from gptmill.tokenizer import Tokenizer

Message = Mapping[str, str]


def fit(
    messages: Sequence[Message], template: Template, tokenizer: Tokenizer, *, longest: int
) -> tuple[list[int], int]:
    """Return the ids of a conversation's end, and how many turns were left out before it.

    A turn is a user's message and the answer to it. The oldest are left out until the prompt
    has at most `longest` ids; a system message at the beginning always stays. Raises
    ValueError where the last message alone is too long.
    """
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    said = list(messages[len(system) :])
    starts = [place for place, message in enumerate(said) if message["role"] == "user"]
    for left_out, start in enumerate(starts):
        ids = template.encode(tokenizer, [*system, *said[start:]])
        if len(ids) <= longest:
            return ids, left_out
    raise ValueError(
        f"the message makes a prompt of {len(ids)} tokens: at most {longest} fit the model"
    )
