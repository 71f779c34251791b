"""Questions and answers from chatterbot-corpus.

The YAML of the corpus is simple enough to parse without a library.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping

MAX_WORDS = 25  # of a question or an answer: a longer row would not fit a small context

NAMED_WORDS = 3  # a short answer is right in any sentence that names its words


def questions(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return `instructions.json` with each distinct question and the answer.

    The rows are of the kind "question". Exchanges of more than two turns, and long exchanges,
    are left out.
    """
    rows: dict[str, dict[str, str]] = {}
    for _, content in sorted(members.items()):
        for turns in conversations(content.decode("utf-8")):
            if len(turns) == 2 and all(len(turn.split()) <= MAX_WORDS for turn in turns):
                question, answer = turns
                row = {"instruction": question, "input": "", "output": answer, "kind": "question"}
                row["key"] = answer if len(answer.split()) <= NAMED_WORDS else ""
                rows.setdefault(question.casefold(), row)
    text = json.dumps(list(rows.values()), indent=1, ensure_ascii=False)
    return {"instructions.json": (text + "\n").encode()}


def conversations(text: str) -> Iterator[list[str]]:
    """Yield the turns of each conversation.

    A file is a list of lists of single-line texts under `conversations:`, with long lines
    folded, and quotes where YAML needs quotes. Raises ValueError for different YAML.
    """
    _, header, body = text.partition("conversations:\n")
    if not header:
        raise ValueError("no `conversations:` in the file")
    for conversation in re.split(r"^- ", body, flags=re.MULTILINE)[1:]:
        turns = re.split(r"^(?:  )?- ", conversation, flags=re.MULTILINE)[1:]
        yield [_scalar(" ".join(turn.split())) for turn in turns]


def _scalar(written: str) -> str:
    """Return the value of a single-line YAML text."""
    if written[:1] == "'":
        return written[1:-1].replace("''", "'")
    if written[:1] == '"':
        return str(ast.literal_eval(written))
    if written[:1] in tuple("|>&*!%@`[{"):
        raise ValueError(f"only plain and quoted texts are read, not {written[:40]!r}")
    return written
