"""Prefect's database and the note of its server, in every state."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows import prefect_server


def database(folder: Path, revision: str) -> None:
    with closing(sqlite3.connect(folder / "prefect.db")) as store:
        store.execute("create table alembic_version (version_num text)")
        store.execute("insert into alembic_version values (?)", (revision,))
        store.commit()


@pytest.mark.parametrize("kind", ["newer", "older", "present", "damaged", "empty"])
def test_a_database_is_checked_before_prefect_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    known = prefect_server._revisions()
    path = tmp_path / "prefect.db"
    if kind in ("damaged", "empty"):
        path.write_text("no database" * 100 if kind == "damaged" else "", encoding="utf-8")
    else:
        database(tmp_path, {"newer": "f" * 12, "older": known[-2], "present": known[-1]}[kind])
    content = path.read_bytes()
    if kind in ("newer", "damaged"):
        words = "unknown to" if kind == "newer" else "is not a database"
        with pytest.raises(ValueError, match=f"prefect.db .*{words}.*`mv "):
            prefect_server.check_database()
    else:
        prefect_server.check_database()
    assert path.read_bytes() == content
    copies = [file.name for file in tmp_path.iterdir() if file != path]
    assert copies == ([f"prefect.db.{known[-2]}"] if kind == "older" else [])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"prefect": 3}', "null", "\x00"])
def test_an_unreadable_note_of_the_servers_counts_as_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str,
) -> None:
    monkeypatch.setattr(prefect_server, "ROOT", tmp_path)
    monkeypatch.setattr(prefect_server, "NOTE", tmp_path / "servers.json")
    (tmp_path / "servers.json").write_text(content, encoding="utf-8")
    assert prefect_server.running_prefect() is None
    assert capsys.readouterr().err == "servers.json is unreadable and counts as none\n"
