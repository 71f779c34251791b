"""Documents of a user, from text files and from a column of tables."""

from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd

from gptmill.data.documents import BYTE_ORDER_MARK
from gptmill.data.near_documents import later_twins
from gptmill.sources.archive import LazyFiles
from gptmill.sources.own.columns import as_text, by_position, chosen, guessed, left_out
from gptmill.sources.own.converted import Converted
from gptmill.sources.own.decoding import UTF_8, decoded, decompressed
from gptmill.sources.own.tables import READERS, form_of, read_table, stem_of
from gptmill.sources.text import document_name

PLAIN = (".txt", ".md")
ENDINGS = (*PLAIN, *READERS)
ROLES = ("text",)


def texts(
    members: Mapping[str, bytes],
    *,
    fields: Mapping[str, str],
    near_duplicates: float | None = None,
) -> Converted:
    """Return each text file, and each row of a table, as a document in UTF-8.

    `fields` gives the column of the text in tables. Empty documents, files of other forms, and
    documents with a similarity of `near_duplicates` or more to an earlier document are left out
    and counted. Raises ValueError for unfit files.
    """
    if set(fields) != set(ROLES):
        raise ValueError(f"fields are {', '.join(fields) or 'none'}; texts need text")
    documents: dict[str, Callable[[], bytes] | bytes] = {}
    forms: dict[str, list[str]] = {}
    empty = 0
    for name in sorted(members):
        if form_of(name) in PLAIN:
            text, form = _plain(members, name)
            added: dict[str, Callable[[], bytes] | bytes] = {}
            if text.strip():
                added = {document_name(name): partial(_plain_bytes, members, name)}
            empty += not added
        elif form_of(name) in READERS:
            rows, form = _rows(members[name], name, fields)
            added = {row: text.encode() for row, text in rows.items() if text.strip()}
            empty += len(rows) - len(added)
        else:
            added, form = {}, "another form, left out"
        repeated = sorted(set(added) & set(documents))
        if repeated:
            raise ValueError(f"{name} and another file make {repeated[0]}; rename one of them")
        documents |= added
        forms.setdefault(form, []).append(name)
    if not documents:
        raise ValueError(
            f"{', '.join(sorted(members)[:3])}: no text; allowed endings are {', '.join(ENDINGS)}, "
            "each also with .gz or .zst"
        )
    notes = [f"{form}: {_some(names)}" for form, names in forms.items() if form not in ("", UTF_8)]
    notes.append(left_out(empty, "no text"))
    if near_duplicates is not None:
        notes.append(_drop_twins(documents, near_duplicates))
    return Converted(documents, *notes)


def _drop_twins(documents: dict[str, Callable[[], bytes] | bytes], near_duplicates: float) -> str:
    """Remove near-duplicates of earlier documents; return a note with examples."""
    names, files = list(documents), LazyFiles(documents)
    twins = later_twins([partial(_pieces, files, name) for name in names], near_duplicates)
    for twin in twins:
        del documents[names[twin.second]]
    pairs = [f"{names[t.second]} ({t.similarity:.2f} of {names[t.first]})" for t in twins]
    return f"near-duplicates left out: {len(twins):,}: {_some(pairs)}" if twins else ""


def _pieces(files: Mapping[str, bytes], name: str) -> list[str]:
    return [files[name].decode()]


def _plain(members: Mapping[str, bytes], name: str) -> tuple[str, str]:
    return decoded(decompressed(members[name], name), name)


def _plain_bytes(members: Mapping[str, bytes], name: str) -> bytes:
    return _plain(members, name)[0].encode()


def text_fields(members: Mapping[str, bytes]) -> dict[str, str]:
    """Return the likely column of the text in the first table, none without tables."""
    names = [name for name in sorted(members) if form_of(name) in READERS]
    if not names:
        return {}
    table = read_table(members[names[0]], names[0]).rows
    return guessed(table, ROLES, names[0])


def _rows(content: bytes, name: str, fields: Mapping[str, str]) -> tuple[dict[str, str], str]:
    table = read_table(content, name, header=not by_position(fields))
    column: pd.Series = chosen(table.rows, fields, name)["text"]
    stem = stem_of(name)
    rows = {
        document_name(f"{stem}_{number:06d}.txt"): as_text(cell, f"{name}, row {number}")
        for number, cell in enumerate(column, start=1)
    }
    return {row: text.removeprefix(BYTE_ORDER_MARK) for row, text in rows.items()}, table.form


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
