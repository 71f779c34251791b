"""Instructions and conversations of a user, as the JSON list that `split` reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gptmill.files import parse_json
from gptmill.sources.own.columns import (
    as_text,
    by_position,
    chosen,
    left_out,
    listed,
    text_columns,
    unread,
)
from gptmill.sources.own.converted import Converted
from gptmill.sources.own.tables import read_tables

FORMS = (
    {"messages": "messages"},  # OpenAI
    {"messages": "conversations"},  # ShareGPT
    {
        "instruction": "instruction",
        "input": "context",
        "output": "response",
        "kind": "category",
    },  # Dolly
    {"instruction": "instruction", "input": "input", "output": "output"},  # Alpaca
    {"instruction": "instruction", "output": "output"},
    {"instruction": "instruction", "output": "response"},
    {"instruction": "prompt", "output": "completion"},
    {"instruction": "prompt", "output": "response"},
    {"instruction": "question", "output": "answer"},
)
"""Columns of the common forms by our names; the first form whose columns are present is read."""
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
TURNS = ("all", "first")
"""Turns to keep of each conversation: all up to the last answer, or the first exchange."""

NO_EXCHANGE = "no question or no answer, or without user and assistant in turn"

Message = tuple[str, str]  # role and content


@dataclass(frozen=True)
class Exchange:
    """A question with the messages before, and the answer."""

    history: list[dict[str, str]]
    instruction: str
    output: str
    n_after: int
    """Number of messages after the answer."""


def chats(
    members: Mapping[str, bytes], *, name: str, fields: Mapping[str, str], turns: str
) -> Converted:
    """Return `NAME.json`, a list of rows with instruction, input and output.

    `fields` gives the columns of `messages`, or of instruction, output and optionally input, kind
    and key. Of a conversation, the last answer is the output, and the messages before the last
    question are the history; with `turns` "first", the first answer is the output. Rows without
    question or answer are left out and counted. Raises ValueError for unfit tables.
    """
    where = ", ".join(sorted(members)[:3])
    _check_options(fields, turns)
    table, form = read_tables(members, header=not by_position(fields))
    table = _with_instances(table)
    rows = chosen(table, fields, where)
    if "messages" not in fields and isinstance(rows["instruction"].iloc[0], list):
        rows = pd.DataFrame({"messages": _joined(rows, where)}, dtype=object)
    notes: list[str] = []
    if "messages" in rows:
        rows, notes = _from_messages(rows["messages"], where, turns)
    texts = text_columns(rows.drop(columns="history", errors="ignore"), where)
    texts.insert(1, "input", texts.pop("input") if "input" in texts else "")
    if "history" in rows:
        texts["history"] = rows["history"]
    kept = texts[(texts["instruction"].str.strip() != "") & (texts["output"].str.strip() != "")]
    if kept.empty:
        raise ValueError(f"{where} has no row with an instruction and an answer")
    notes += [unread(table, fields), left_out(len(texts) - len(kept), NO_EXCHANGE)]
    content = json.dumps(_records(kept), indent=1, ensure_ascii=False)
    return Converted({f"{name}.json": f"{content}\n".encode()}, form, *notes)


def chat_fields(members: Mapping[str, bytes]) -> dict[str, str]:
    """Return the columns of the form; raise ValueError for an unknown form."""
    table = _with_instances(read_tables(members)[0])
    for fields in FORMS:
        if set(fields.values()) <= set(table.columns):
            return fields
    forms = ", ".join("+".join(fields.values()) for fields in FORMS)
    raise ValueError(
        f"{', '.join(sorted(members)[:3])} has no columns of a known form; {listed(table)}; known "
        f"are {forms}; add "
        "FIELDS=instruction=COLUMN,output=COLUMN or FIELDS=messages=COLUMN"
    )


def _with_instances(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each instance of an instruction, as Self-Instruct's tasks have them."""
    if not {"instruction", "instances"} <= set(table.columns):
        return table
    rows = table.explode("instances", ignore_index=True)
    cells = [cell if isinstance(cell, dict) else {} for cell in rows.pop("instances")]
    rest = rows.drop(columns=["input", "output"], errors="ignore")
    return rest.join(pd.DataFrame(cells, columns=["input", "output"], dtype=object))


def _check_options(fields: Mapping[str, str], turns: str) -> None:
    needed = {"messages"} if "messages" in fields else {"instruction", "output"}
    allowed = needed if "messages" in fields else {*needed, "input", "kind", "key"}
    if not needed <= set(fields) <= allowed:
        raise ValueError(
            f"fields are {', '.join(fields) or 'none'}; chats need messages, or instruction and "
            "output, optionally with input, kind and key"
        )
    if turns not in TURNS:
        raise ValueError(f"turns is {turns!r}; allowed are {' and '.join(TURNS)}")


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows without empty optional fields."""
    optional = ("kind", "key", "history")
    return [
        {str(name): cell for name, cell in row.items() if cell or name not in optional}
        for row in rows.to_dict("records")
    ]


def _joined(rows: pd.DataFrame, where: str) -> list[list[Any]]:
    """Return prompts and completions that are lists of messages, each pair as a single list."""
    conversations = []
    for number, (asked, answered) in enumerate(
        zip(rows["instruction"], rows["output"], strict=True), start=1
    ):
        if not (isinstance(asked, list) and isinstance(answered, list)):
            raise ValueError(
                f"{where}, row {number}: instruction and output must be lists of messages in "
                "every row, as in the first row"
            )
        conversations.append([*asked, *answered])
    return conversations


def _from_messages(column: pd.Series, where: str, turns: str) -> tuple[pd.DataFrame, list[str]]:
    """Return each conversation as history, instruction and output, and notes."""
    exchanges = [
        _exchange(_conversation(cell, f"{where}, row {number}"), turns)
        for number, cell in enumerate(column, start=1)
    ]
    rows = pd.DataFrame(
        {
            "instruction": [exchange.instruction for exchange in exchanges],
            "output": [exchange.output for exchange in exchanges],
            "history": [exchange.history for exchange in exchanges],
        },
        dtype=object,
    )
    roles = [[message["role"] for message in exchange.history] for exchange in exchanges]
    counts = {
        "conversations with a system message": sum("system" in row for row in roles),
        "conversations of several turns": sum("user" in row for row in roles),
        "conversations cut after the first answer"
        if turns == "first"
        else "conversations cut after the last answer": sum(
            exchange.n_after > 0 for exchange in exchanges
        ),
    }
    return rows, [f"{name}: {n:,}" if n else "" for name, n in counts.items()]


def _exchange(messages: Sequence[Message], turns: str) -> Exchange:
    """Return the judged question and answer, empty unless user and assistant take turns."""
    n = next((k for k, (role, _) in enumerate(messages) if role != "system"), len(messages))
    system = "\n\n".join(content for _, content in messages[:n] if content.strip())
    answers = [k for k, (role, _) in enumerate(messages) if role == "assistant"]
    last = answers[0 if turns == "first" else -1] if answers else -1
    taken = messages[n : last + 1]
    alternates = [role for role, _ in taken] == ["user", "assistant"] * (len(taken) // 2)
    if not taken or not alternates or not all(content.strip() for _, content in taken):
        return Exchange([], "", "", n_after=0)
    *before, (_, instruction), (_, output) = taken
    earlier = [("system", system)] * bool(system) + before
    history = [{"role": role, "content": content} for role, content in earlier]
    return Exchange(history, instruction, output, n_after=len(messages) - last - 1)


def _conversation(cell: Any, where: str) -> list[Message]:
    """Return a conversation's messages, from a list or from a list written as JSON."""
    if not isinstance(cell, list) and not as_text(cell, where).strip():
        return []
    messages = parse_json(cell, where) if isinstance(cell, str) else cell
    if not isinstance(messages, list):
        raise ValueError(f"{where}: messages must be a list of messages, not {str(cell)[:40]!r}")
    return [_message(message, where) for message in messages]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise ValueError(f"{where}: a message must be an object, not {str(message)[:40]!r}")
    role = message.get("role") or message.get("from")
    content = message.get("content") if "content" in message else message.get("value")
    if role not in [*ROLES]:
        raise ValueError(
            f"{where}: a message has the role {role!r}; allowed are {', '.join(ROLES)}, under "
            "`role` with `content`, or under `from` with `value`"
        )
    if isinstance(content, list):  # OpenAI's parts
        content = "".join(_part(part, where) for part in content)
    return ROLES[role], as_text(content, f"{where}: a message")


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise ValueError(f"{where}: a message has a part that is no text; remove the row")
    return as_text(part.get("text"), f"{where}: a message")
