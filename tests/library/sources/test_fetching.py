"""The table of sources, archives, and fetching: what is wrong stops, naming itself."""

import base64
import errno
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import tarfile
import threading
import tomllib
import traceback
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from gptmill.sources.address import PassingError, hidden
from gptmill.sources.archive import read_members, visible_files
from gptmill.sources.build import MAKES, Made, add_files, make_files
from gptmill.sources.fetch import fetch
from gptmill.sources.table import Place, Source, describe, parse, table_key
from gptmill.sources.text import document_name

ROOT = Path(__file__).resolve().parents[3]
GOOD: dict[str, Any] = {
    "name": "books",
    "target": "text/books",
    "licence": "mine",
    "place": [{"kind": "path", "path": "books"}],
}
HASH = "ab" * 32
FOLDER = "a folder in data/ beginning with bpe, instructions, labelled, questions, text, weights"
PIP = {"kind": "pip", "package": "a-b", "version": "1.0", "file": "a_b-1.0-py3-none-any.whl"}
PIP |= {"sha256": HASH, "bytes": 10, "members": ["*.txt"]}  # type: ignore[dict-item]
TEXTS = {"make": "texts"}
COLUMNS = {"name": "x", "fields": {"text": "a", "label": "b"}}


def source(**changes: Any) -> Source:
    """Return the one source of a table that differs from a good one by `changes`."""
    (read,) = parse({"source": [GOOD | changes]}, makers=MAKES)
    return read


def place(**fields: Any) -> Place:
    """Return one place, read as from the table."""
    return source(place=[fields]).places[0]


def test_the_projects_own_table_needs_pip_alone_by_default() -> None:
    table = tomllib.loads((ROOT / "sources.toml").read_text(encoding="utf-8"))
    sources = parse(table, makers=MAKES)
    assert {one.places[0].kind for one in sources} == {"pip", "path"}
    assert [one.name for one in sources if one.places[0].kind == "path"] == [
        "replies",
        "general",
    ]
    assert {one.target.split("/")[0] for one in sources} == {
        "bpe",
        "text",
        "labelled",
        "instructions",
        "questions",
        "weights",
    }
    everything = parse(
        {"source": [row | {"enabled": True} for row in table["source"]]}, makers=MAKES
    )
    assert {at.kind for one in everything for at in one.places} == {"pip", "npm", "apt", "path"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "Books!"},
            "source Books!: name must be lower-case letters, digits and dashes, not 'Books!'",
        ),
        ({"target": "artifacts/x"}, f"target must be {FOLDER}, not 'artifacts/x'"),
        ({"target": "text/../../x"}, f"target must be {FOLDER}, not 'text/../../x'"),
        ({"licence": 3}, "licence must be a line of text, not 3"),
        ({"weight": 0}, "source books: weight must be a number above 0, not 0"),
        ({"weight": 2, "target": "bpe"}, "source books: weight is of texts, and the target is bpe"),
        ({"colour": "red"}, "source books has the unknown field colour; allowed are name, target"),
        ({"enabled": "no"}, "enabled must be true or false, not 'no'"),
        ({"files": {"a": "12"}}, "files, a: sha256 must be 64 hexadecimal digits, not '12'"),
        ({"place": []}, "source books has no place to fetch from"),
        (
            {"place": [{"kind": "ftp"}]},
            "place 1: kind must be one of pip, npm, apt, http, path, hub, not 'ftp'",
        ),
        ({"place": [{"kind": "path"}]}, "place 1 has no path; required are kind, path"),
        ({"place": [PIP | {"bytes": "10"}]}, "bytes must be a whole number, not '10'"),
        (
            {"place": [PIP | {"members": []}]},
            "has no members; name the files to take from the archive",
        ),
        (
            {"place": [PIP | {"package": "--index-url"}]},
            "package must be a package's name, not '--index-url'",
        ),
        ({"place": [PIP | {"version": ">=1"}]}, "version must be an exact version, not '>=1'"),
        (
            {"place": [PIP | {"make": "soup"}]},
            f"make must be one of {', '.join(MAKES)}, not 'soup'",
        ),
        ({"place": [PIP | {"options": {"seed": 1}}]}, "options are seed; copy needs none"),
        *(
            ({"place": [PIP | {"make": "labels", "options": {**COLUMNS, **wrong}}]}, message)
            for wrong, message in (
                ({"fields": "text"}, "options, fields must be a table, not 'text'"),
                ({"fields": {"text": 1}}, "options, fields must be text, not 1"),
                ({"name": "../x"}, "options: name must be lower-case letters, digits and dashes"),
            )
        ),
        *(
            (
                {
                    "place": [
                        PIP | {"make": "texts", "options": {"fields": {}, "near_duplicates": v}}
                    ]
                },
                "options, near_duplicates must be a similarity from 0.5 to 1, not ",
            )
            for v in (0.4, 1.1, True, "0.8", float("nan"))
        ),
        (
            {"place": [PIP | TEXTS | {"options": {"near": 1}}]},
            "options are near; texts needs fields and allows near_duplicates",
        ),
        ({"place": [PIP | {"make": "exercises"}]}, "options are none; exercises needs seed, rows"),
        (
            {"place": [{"kind": "hub", "repo": "a/b", "revision": "main"}]},
            "revision must be a commit's 40 hexadecimal digits (no branch), not 'main'",
        ),
        (
            {"place": [{"kind": "http", "url": "file:///x", "sha256": HASH}]},
            "url must be an http(s) address ending in a file name, not 'file:///x'",
        ),
        (
            {"place": [{"kind": "http", "url": "https://h/x", "sha256": HASH, "header": "A: abc"}]},
            "header must be the name of a header and of an environment variable",
        ),
        ({"place": [{"kind": "path", "path": "x", "header": "A: $B"}]}, "unknown field header"),
    ],
)
def test_a_wrong_table_names_source_field_and_remedy(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        source(**changes)


@pytest.mark.parametrize("table", [{}, {"source": []}, {"source": {}}, {"sources": [GOOD]}])
def test_a_table_without_sources_is_refused(table: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a list of \[\[source\]\] entries"):
        parse(table, makers=MAKES)


def test_missing_fields_and_equal_names_are_refused() -> None:
    with pytest.raises(ValueError, match="source books has no licence; required are name, target"):
        parse({"source": [{key: GOOD[key] for key in ("name", "target", "place")}]}, makers=MAKES)
    with pytest.raises(ValueError, match="source books: two sources have this name"):
        parse({"source": [GOOD, GOOD]}, makers=MAKES)


def test_the_tables_key_changes_with_what_it_says_only() -> None:
    other = dict(reversed(GOOD.items()))
    off = GOOD | {"name": "more", "enabled": False}
    key = table_key(parse({"source": [GOOD]}, makers=MAKES))
    assert table_key(parse({"source": [other, off]}, makers=MAKES)) == key
    assert table_key([source(target="text/x")]) != key
    assert table_key([source(weight=2.0)]) != key
    assert table_key(parse({"source": [GOOD], "temperature": 2.0}, makers=MAKES)) != key
    with pytest.raises(ValueError, match="the table: temperature must be a number above 0, not -1"):
        parse({"source": [GOOD], "temperature": -1}, makers=MAKES)


def tar_of(path: Path, members: dict[str, bytes], *, link: str = "") -> Path:
    """Write a .tar.gz with these members and perhaps a symbolic link out of it."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("package/link.txt")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return path


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    """Write a zip file, which a wheel is."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def deb_of(path: Path, members: dict[str, bytes]) -> Path:
    """Build a Debian package with the tool that Debian builds them with."""
    folder = path.parent / "deb"
    (folder / "DEBIAN").mkdir(parents=True)
    control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    (folder / "DEBIAN" / "control").write_text(control, encoding="utf-8")
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    subprocess.run(["dpkg-deb", "--build", str(folder), str(path)], check=True, capture_output=True)
    return path


MEMBERS = {"package/a.txt": b"one", "package/b.txt": b"two", "package/c.md": b"three"}


def test_members_come_from_every_kind_of_archive(tmp_path: Path) -> None:
    archives = [tar_of(tmp_path / "x.tgz", MEMBERS), zip_of(tmp_path / "x.whl", MEMBERS)]
    if shutil.which("dpkg-deb"):
        archives.append(deb_of(tmp_path / "x.deb", MEMBERS))
    folder = tmp_path / "folder"
    for name, content in MEMBERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for archive in [*archives, folder]:
        read = read_members(archive, ["package/*.txt"])
        assert read == {"package/a.txt": b"one", "package/b.txt": b"two"}
        with pytest.raises(ValueError, match=r"has no member package/d\.txt"):
            read_members(archive, ["package/*.txt", "package/d.txt"])


def test_no_member_is_written_outside_the_data_folder(tmp_path: Path) -> None:
    bad = {"../../escaped.txt": b"bad", "/abs/escaped2.txt": b"bad"}
    secret = tmp_path / "secret.txt"
    secret.write_text("secret", encoding="utf-8")
    for archive in (
        tar_of(tmp_path / "bad.tgz", bad, link=str(secret)),
        zip_of(tmp_path / "bad.zip", bad),
    ):
        at = place(**PIP | {"members": ["*escaped*.txt"]})
        made = make_files(source(), at, archive)
        assert set(made) == {"escaped.txt", "escaped2.txt"}
        with pytest.raises(ValueError, match="has no member"):
            read_members(archive, ["package/link.txt"])
    add_files(tmp_path / "data", "text", made)
    found = {path.name for path in (tmp_path / "data" / "text").iterdir()}
    assert found == {"escaped.txt", "escaped2.txt"}
    assert not (tmp_path.parent / "escaped.txt").exists()


def test_links_are_followed_and_what_is_no_file_is_named(tmp_path: Path) -> None:
    books, shelf = tmp_path / "books", tmp_path / "shelf"
    for folder in (books, shelf):
        folder.mkdir()
        (folder / f"{folder.name}.txt").write_bytes(b"one")
    (books / "linked").symlink_to(shelf)
    (books / "also.txt").symlink_to(shelf / "shelf.txt")
    (books / ".DS_Store").write_bytes(b"x")
    expected = dict.fromkeys(("also.txt", "books.txt", "linked/shelf.txt"), b"one")
    assert read_members(books, ["*.txt"]) == expected

    def named(message: str, *, patterns: tuple[str, ...] = ("*",)) -> None:
        with pytest.raises(ValueError, match=message):
            visible_files(books, patterns)

    odd = books / "odd"
    odd.symlink_to("nowhere")
    named(r"books/odd is a link to nowhere, which does not exist")
    assert read_members(books, ["*.txt"]) == expected, "other files do not count"
    odd.unlink()
    odd.symlink_to("odd")
    named(r"books/odd is a link to odd, which does not exist")
    odd.unlink()
    os.mkfifo(odd)
    named(r"books/odd is a pipe, socket or device, not a file")
    odd.unlink()
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(odd))
        named(r"books/odd is a pipe, socket or device, not a file")
    odd.unlink()
    odd.symlink_to(books)
    named(r"books/odd is a link to the folder .*books; remove the link")
    for path, message in (("/dev/zero", "is a pipe, socket"), ("gone", "gone does not exist")):
        with pytest.raises(ValueError, match=message):
            fetch(place(kind="path", path=path), tmp_path, root=tmp_path)


def test_an_archives_common_folder_is_left_out_of_names(tmp_path: Path) -> None:
    at = place(**PIP | {"make": "documents", "members": ["package/*.txt"]})
    archive = tar_of(tmp_path / "x.tgz", MEMBERS | {"package/sub/a.txt": b"four"})
    names = set(make_files(source(), at, archive))
    assert names == {"a.txt", "b.txt", document_name("sub/a.txt")}
    assert set(make_files(source(), at, tar_of(tmp_path / "y.tgz", {"package/a.txt": b""}))) == {
        "a.txt"
    }


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"x\.tgz is not a zip, tar or Debian archive"):
        read_members(tmp_path / "x.tgz", ["*"])


def test_a_file_with_another_hash_than_the_table_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one")
    at = place(kind="path", path=str(tmp_path / "a.txt"))
    right = hashlib.sha256(b"one").hexdigest()
    assert make_files(source(files={"a.txt": right}), at, tmp_path / "a.txt")
    with pytest.raises(ValueError, match=rf"gives a\.txt with SHA-256 {right}, the table says ab"):
        make_files(source(files={"a.txt": HASH}), at, tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"gives b\.txt with SHA-256 \(file missing\)"):
        make_files(source(files={"b.txt": HASH}), at, tmp_path / "a.txt")


def test_two_sources_join_json_lists_and_nothing_else(tmp_path: Path) -> None:
    first: Made = {"a.json": b'[{"x": 1}]', "a.txt": b"one"}
    add_files(tmp_path, "instructions", first)
    add_files(tmp_path, "instructions", {"a.json": b'[{"x": 2}]'})
    joined = (tmp_path / "instructions" / "a.json").read_text(encoding="utf-8")
    assert joined == '[\n {\n  "x": 1\n },\n {\n  "x": 2\n }\n]\n'
    with pytest.raises(ValueError, match=r"two sources make instructions/a\.txt"):
        add_files(tmp_path, "instructions", {"a.txt": b"two"})


CONTENT = b"0123456789" * 1000


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT: whole, cut short, or from a byte on."""

    cut = 0
    ranges: list[str]
    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.ranges.append(self.headers.get("Range", ""))
        host, _, port = self.headers["Host"].partition(":")
        self.asked.append((f"{host}{self.path}", self.headers.get("Authorization", "")))
        if self.path.startswith("/moved"):
            other = f"http://localhost:{port}" if "away" in self.path else ""
            self.send_response(302)
            self.send_header("Location", f"{other}/books.txt?signed=hidden-4")
            self.end_headers()
            return
        self.path = self.path.partition("?")[0]
        if self.path != "/books.txt":
            status = int(self.path.partition("-")[2] or 404)
            if status:  # 0: the connection ends without an answer
                self.send_error(status)
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : self.cut or None])

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.cut, Handler.ranges, Handler.asked = 0, [], []
    with HTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def http_place(server: str, name: str = "books.txt", content: bytes = CONTENT) -> Place:
    return place(kind="http", url=f"{server}/{name}", sha256=hashlib.sha256(content).hexdigest())


def test_a_download_is_kept_under_its_hash(server: str, tmp_path: Path) -> None:
    at = http_place(server)
    first = fetch(at, tmp_path, root=tmp_path)
    assert first.read_bytes() == CONTENT
    assert first.name == at.at["sha256"]
    assert fetch(at, tmp_path, root=tmp_path) == first
    assert len(Handler.ranges) == 1, "the second time nothing is asked for"
    first.write_bytes(b"broken by hand")
    assert fetch(at, tmp_path, root=tmp_path).read_bytes() == CONTENT


def test_a_download_killed_after_its_last_byte_is_complete(server: str, tmp_path: Path) -> None:
    at = http_place(server)
    partial = tmp_path / f"{at.at['sha256']}.partial"
    for left, asked in ((CONTENT, []), (bytes(len(CONTENT)), ["bytes=10000-", "bytes=0-"])):
        Handler.ranges = []
        partial.write_bytes(left)
        fetched = fetch(at, tmp_path, root=tmp_path)
        assert fetched.read_bytes() == CONTENT
        assert Handler.ranges == asked
        assert list(tmp_path.iterdir()) == [fetched]
        fetched.unlink()


def test_a_download_that_ended_early_goes_on(server: str, tmp_path: Path) -> None:
    Handler.cut = 4000
    with pytest.raises(PassingError, match="ended after 4000 of 10000 bytes"):
        fetch(http_place(server), tmp_path, root=tmp_path)
    assert [path.name[-8:] for path in tmp_path.iterdir()] == [".partial"]
    Handler.cut = 0
    assert fetch(http_place(server), tmp_path, root=tmp_path).read_bytes() == CONTENT
    assert Handler.ranges[-1] == "bytes=4000-"


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        *((f"status-{status}", True) for status in (0, 429, 500, 503)),
        *((f"status-{status}", False) for status in (401, 403, 404, 501)),
    ],
)
def test_an_error_says_whether_it_may_pass_by_itself(
    name: str, passes: bool, server: str, tmp_path: Path
) -> None:
    with pytest.raises(OSError) as failed:  # noqa: PT011
        fetch(http_place(server, name), tmp_path, root=tmp_path)
    assert isinstance(failed.value, PassingError) == passes


def test_wrong_bytes_are_not_kept(server: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has the wrong bytes: SHA-256 .* the file was deleted"):
        fetch(http_place(server, content=b"other"), tmp_path, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_server_and_no_file_are_errors(server: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="404"):
        fetch(http_place(server, "other.txt"), tmp_path, root=tmp_path)
    with pytest.raises(PassingError, match="refused"):
        fetch(http_place("http://127.0.0.1:9"), tmp_path, root=tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        fetch(place(kind="path", path="nowhere"), tmp_path, root=tmp_path)


def test_credentials_are_sent_to_their_server_alone(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.rpartition(":")[2]
    monkeypatch.setenv("BOOKS_TOKEN", "hidden-1")
    digest = hashlib.sha256(CONTENT).hexdigest()
    basic = f"Basic {base64.b64encode(b'me:hidden/2').decode()}"
    at = {"kind": "http", "sha256": digest}
    header = at | {"url": f"{server}/moved.txt", "header": "Authorization: Bearer $BOOKS_TOKEN"}
    away = header | {"url": f"{server}/moved-away.txt"}
    user = at | {"url": f"http://me:hidden%2F2@127.0.0.1:{port}/books.txt?token=hidden-3"}
    for fields, expected in (
        (header, ["127.0.0.1/moved.txt Bearer hidden-1", "127.0.0.1/books.txt Bearer hidden-1"]),
        (away, ["127.0.0.1/moved-away.txt Bearer hidden-1", "localhost/books.txt "]),
        (user, [f"127.0.0.1/books.txt {basic}"]),
    ):
        Handler.asked.clear()
        fetched = fetch(place(**fields), tmp_path, root=tmp_path)
        fetched.unlink()
        asked = [f"{url.partition('?')[0]} {authorization}" for url, authorization in Handler.asked]
        assert asked == expected
    assert Handler.asked[0][0].endswith("?token=hidden-3")
    (tmp_path / "download").write_bytes(CONTENT)
    assert set(make_files(source(), place(**user), tmp_path / "download")) == {"books.txt"}


def test_no_secret_is_shown_or_recorded(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOKS_TOKEN", "s3cret")
    http = {"kind": "http", "sha256": HASH, "header": "Authorization: Bearer $BOOKS_TOKEN"}
    bad = f"{server.replace('//', '//me:s3cret@')}/gone.txt?token=s3cret#s3cret"
    at = place(**http | {"url": bad})
    written = [str(at), json.dumps(describe(source(place=[http | {"url": bad}])))]
    assert f"http {server}/gone.txt" in written[0]
    assert table_key([source(place=[http | {"url": bad}])]) == table_key(
        [source(place=[http | {"url": f"{server}/gone.txt?token=other"}])]
    )
    for url in (bad, bad.replace("gone", "moved"), "http://me:s3cret@127.0.0.1:9/x?s3cret"):
        with pytest.raises((OSError, ValueError)) as failed:
            fetch(place(**http | {"url": url}), tmp_path, root=tmp_path)
        chain = traceback.format_exception(failed.value)
        written += [line for part in chain for line in part.splitlines() if "Error" in line]
    for wrong in (
        *({"url": url} for url in ("//me:s3cret@h/x", "me:s3cret@h/x", "http://me:s3c/ret@h/x?a")),
        *({"url": "https://h/x", "header": f"{words} s3cret"} for words in ("A:", "A: B $C")),
        {"url": "https://h/x", "options": "https://me:s3cret@h"},
        {"url": "https://h/x?s3cret", "kind": "https://me:s3cret@h"},
    ):
        with pytest.raises(ValueError, match="source books, place 1") as refused:
            place(**http | wrong)
        written.append(str(refused.value))
    monkeypatch.setenv("BOOKS_TOKEN", "s3cret\nX: y")
    with pytest.raises(ValueError, match="variable BOOKS_TOKEN may hold printable ASCII") as odd:
        fetch(at, tmp_path, root=tmp_path)
    monkeypatch.delenv("BOOKS_TOKEN")
    with pytest.raises(ValueError, match="needs the environment variable BOOKS_TOKEN; set"):
        fetch(at, tmp_path, root=tmp_path)
    assert not [text for text in [*written, str(odd.value)] if re.search("s3c|ret@", text)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<https://me:pw@h:1/a/b?c=d#e>: no", "<https://h:1/a/b>: no"),
        ("git+ssh://git@h/x, https://h/y", "git+ssh://h/x, https://h/y"),
        ("https://me:p/w@h/x https://me:p?w@h/x", "https://(hidden) https://(hidden)"),
        ("no address? a@b", "no address? a@b"),
    ],
)
def test_secrets_of_addresses_are_hidden_in_any_text(text: str, shown: str) -> None:
    assert hidden(text) == shown


SETUP = "import pathlib; pathlib.Path({mark!r}).touch()\nfrom setuptools import setup; setup()\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def pip_place(archive: Path, **changes: Any) -> Place:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    fields = PIP | {"file": archive.name, "sha256": digest, "bytes": archive.stat().st_size}
    return place(**fields | changes)


def test_pip_fetches_an_sdist_and_runs_none_of_it(index: Path, tmp_path: Path) -> None:
    mark = tmp_path / "setup.py was run"
    members = {"setup.py": SETUP.format(mark=str(mark)).encode(), "PKG-INFO": b"Name: a-b\n"}
    members |= {"data/a.txt": b"one"}
    archive = tar_of(
        index / "a_b-1.0.tar.gz", {f"a_b-1.0/{name}": text for name, text in members.items()}
    )
    fetched = fetch(pip_place(archive), tmp_path / "downloads", root=tmp_path)
    assert read_members(fetched, ["*.txt"]) == {"a_b-1.0/data/a.txt": b"one"}
    assert not mark.exists()
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [fetched.name]


def test_pip_fetches_a_wheel_or_says_why_not(index: Path, tmp_path: Path) -> None:
    metadata = b"Metadata-Version: 2.1\nName: a-b\nVersion: 1.0\n"
    wheel = {"a_b/a.txt": b"one", "a_b-1.0.dist-info/METADATA": metadata}
    wheel |= {"a_b-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n"}
    archive = zip_of(index / "a_b-1.0-py3-none-any.whl", wheel)
    downloads = tmp_path / "downloads"
    assert read_members(fetch(pip_place(archive), downloads, root=tmp_path), ["*.txt"])
    with pytest.raises(ValueError, match=r"pip a-b==1.0 has the wrong bytes"):
        fetch(pip_place(archive, sha256=HASH), downloads, root=tmp_path)
    with pytest.raises(ValueError, match=r"pip a-b==2.0 could not be fetched: ERROR: .*a-b==2.0"):
        fetch(pip_place(archive, sha256=HASH, version="2.0"), downloads, root=tmp_path)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder on PATH: what is written there is npm or apt-get."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def tool(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("npm", "npm", "--ignore-scripts --pack-destination FOLDER @x/y@1.0"),
        ("apt", "apt-get", "download --quiet @x/y=1.0"),
    ],
)
def test_npm_and_apt_are_asked_for_one_archive(
    kind: str,
    name: str,
    expected: str,
    tools: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A relative folder of downloads is below the present folder, not below the client's."""
    archive = tar_of(tmp_path / "x.tgz", MEMBERS)
    at = place(
        kind=kind,
        package="@x/y",
        version="1.0",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        bytes=archive.stat().st_size,
        members=["*"],
    )
    with pytest.raises(ValueError, match=f"needs {name}, but the command is not on this machine"):
        fetch(at, tmp_path / "downloads", root=tmp_path)
    tool(tools / name, "echo 'npm error code ENOTFOUND' >&2; echo 'E: cannot' >&2; exit 1")
    with pytest.raises(ValueError, match=r"could not be fetched: .*\(is the network down\?\)"):
        fetch(at, tmp_path / "downloads", root=tmp_path)
    for passing in ("npm error code E503", "npm error network timed out", "E: Connection refused"):
        tool(tools / name, f"echo '{passing}' >&2; exit 1")
        with pytest.raises(PassingError, match="could not be fetched: "):
            fetch(at, tmp_path / "downloads", root=tmp_path)
    tool(tools / name, "echo 'OSError: [Errno 28] No space left on device' >&2; exit 1")
    with pytest.raises(OSError, match="No space left on device") as full:
        fetch(at, tmp_path / "downloads", root=tmp_path)
    assert full.value.errno == errno.ENOSPC
    assert list((tmp_path / "downloads").iterdir()) == []
    tool(tools / name, f'echo "$@" > {tmp_path}/asked; /bin/cp {archive} "$PWD/x.tgz"')
    monkeypatch.chdir(tmp_path)
    fetched = fetch(at, Path("downloads"), root=tmp_path)
    assert set(read_members(fetched, ["*"])) == set(MEMBERS)
    asked = (tmp_path / "asked").read_text(encoding="utf-8").strip()
    assert asked.endswith(
        expected.replace("FOLDER", f"{tmp_path}/downloads/{fetched.name}.partial")
    )


HUB = """
from pathlib import Path
def snapshot_download(repo, *, repo_type, revision, local_dir, allow_patterns):
    assert not __import__("os").environ.get("HF_HUB_OFFLINE") == "1"
    text = f"{repo_type} {repo} {revision} {allow_patterns}"
    Path(local_dir, "config.json").write_text(text)
"""


def test_a_hub_repository_comes_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "huggingface_hub.py").write_text(HUB, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    at = place(kind="hub", repo="datasets/x/y", revision="a" * 40, members=["*.json"])
    for _ in range(2):
        fetched = fetch(at, tmp_path / "downloads", root=tmp_path)
    (made,) = make_files(source(), at, fetched).values()
    assert isinstance(made, Path)
    assert made.read_text(encoding="utf-8") == f"dataset x/y {'a' * 40} ['*.json']"
