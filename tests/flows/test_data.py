"""`make data` in a small project of its own: pinned, brought back, changed, refused, resumed."""

import errno
import hashlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from flows.commands.data import data
from flows.commands.data.data import make_data, read_table
from flows.dvc import pins
from flows.dvc.command import dvc
from flows.own.data import Entry
from flows.own.training import ahead
from flows.trees import here
from gptmill.records import content_hash
from gptmill.sources import build
from gptmill.sources.fetch import fetch
from gptmill.sources.table import Source, parse
from tasks.project import graph
from tests.support.project import OWN_SOURCE, source_entry
from tests.support.tiny import tiny_bpe

ROOT = Path(__file__).resolve().parents[2]
TABLE = OWN_SOURCE + source_entry("bpe", "bpe")
LABELLED = source_entry("mail", "labelled", path="mail.csv")


@pytest.fixture(scope="module")
def empty_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which DVC was started, to copy: `dvc init` takes its time."""
    folder = tmp_path_factory.mktemp("repository")
    command = [sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@pytest.fixture
def root(empty_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with two books, a vocabulary and a table that names them."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    root = tmp_path / "project"
    shutil.copytree(empty_repository, root)
    (root / "books").mkdir()
    (root / "books" / "one.txt").write_text("One.\r\n", encoding="utf-8")
    (root / "books" / "two.txt").write_text("Two.\n", encoding="utf-8")
    tiny_bpe(root / "bpe")
    (root / "sources.toml").write_text(TABLE, encoding="utf-8")
    return root


def make(root: Path) -> None:
    make_data(root, read_table(root / "sources.toml"))


def contents(root: Path) -> dict[str, bytes]:
    files = sorted(path for path in (root / "data").rglob("*") if path.is_file())
    return {path.relative_to(root / "data").as_posix(): path.read_bytes() for path in files}


def read_pin(root: Path) -> pins.Pin:
    pin = pins.read_pin(root)
    assert pin is not None
    return pin


def test_data_is_made_pinned_and_left_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(root)
    said = capsys.readouterr().out
    made, pin = contents(root), read_pin(root)
    assert (made["text/books/one.txt"], made["text/books/two.txt"]) == (b"One.\n", b"Two.\n")
    assert "books: path books, 0.0 MB" in said
    assert "added    text/books/one.txt, 5 bytes" in said
    assert f"data.dvc pins {pin.md5}" in said
    entry = json.loads(made["manifest/text.json"])["files"]["text/books/one.txt"]
    digest = hashlib.sha256(b"One.\n").hexdigest()
    assert entry == {"bytes": 5, "sha256": digest, "sources": ["books"]}
    make(root)
    assert capsys.readouterr().out == "data/ matches data.dvc: 4 files, 0.0 MB\n"
    make_again = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--quiet"], cwd=root, check=False
    )
    assert make_again.returncode == 0, "DVC agrees"


def test_lost_data_comes_back_from_cache_remote_or_sources(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(root)
    made, pinned = contents(root), (root / "data.dvc").read_bytes()
    (root / "data" / "text" / "books" / "one.txt").unlink()
    make(root)
    assert "data/ is restored from DVC's cache: 4 files" in capsys.readouterr().out
    assert contents(root) == made

    dvc(root, "remote", "add", "--default", "store", str(tmp_path / "store"))
    dvc(root, "push", "data.dvc")
    shutil.rmtree(root / ".dvc" / "cache")
    shutil.rmtree(root / "data")
    make(root)
    assert "data/ is restored from the DVC remote store: 4 files" in capsys.readouterr().out
    assert contents(root) == made

    for gone in (root / ".dvc" / "cache", tmp_path / "store", root / "data"):
        shutil.rmtree(gone)
    make(root)
    said = capsys.readouterr().out
    assert "the DVC remote store does not have this data, or cannot be reached" in said
    assert "data/ is built: 4 files" in said
    assert contents(root) == made
    assert (root / "data.dvc").read_bytes() == pinned


@pytest.mark.parametrize("has_listing", [True, False])
def test_a_cached_file_damaged_by_an_edit_in_place_never_comes_back(
    root: Path, capsys: pytest.CaptureFixture[str], *, has_listing: bool
) -> None:
    dvc(root, "config", "cache.type", "hardlink,copy")
    make(root)
    made, pinned = contents(root), (root / "data.dvc").read_bytes()
    file = root / "data" / "text" / "books" / "one.txt"
    assert file.stat().st_nlink == 2, "a link to the cached file"
    file.chmod(0o644)
    file.write_bytes(b"ONE.\n")
    with pytest.raises(ValueError, match=r"text/books/one\.txt"):
        make(root)
    file.rename(root / "mine.txt")
    if not has_listing:
        pins.cached_file(root, read_pin(root).md5).unlink()
    make(root)
    assert "data/ is built: 4 files" in capsys.readouterr().out
    assert contents(root) == made
    assert (root / "data.dvc").read_bytes() == pinned
    assert (root / "mine.txt").read_bytes() == b"ONE.\n"


def test_an_edit_of_the_table_is_pinned_and_told_file_by_file(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(root)
    before = read_pin(root)
    (root / "mail.csv").write_text("label,text\nham,hi\nspam,FREE\n", encoding="utf-8")
    (root / "books" / "one.txt").unlink()
    (root / "books" / "two.txt").write_text("Two!\n", encoding="utf-8")
    (root / "sources.toml").write_text(TABLE + LABELLED, encoding="utf-8")
    capsys.readouterr()
    make(root)
    said, after = capsys.readouterr().out, read_pin(root)
    assert "removed  text/books/one.txt" in said
    assert "added    labelled/mail.csv, 28 bytes" in said
    old, new = (hashlib.sha256(text).hexdigest()[:12] for text in (b"Two.\n", b"Two!\n"))
    assert f"changed  text/books/two.txt, {old} -> {new}, 5 bytes" in said
    assert f"data.dvc pins {after.md5}, before {before.md5}" in said


def test_a_changed_file_of_ones_own_is_pinned_and_a_missing_one_is_not_missed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(root)
    (root / "books" / "two.txt").write_text("Two!\n", encoding="utf-8")
    make(root)
    assert "changed  text/books/two.txt" in capsys.readouterr().out
    made = contents(root)
    shutil.rmtree(root / "books")
    shutil.rmtree(root / "data")
    make(root)
    assert "data/ is restored from DVC's cache" in capsys.readouterr().out
    assert contents(root) == made


@pytest.mark.parametrize(
    ("table", "own", "edited"),
    [
        ("t", {"a": "1"}, False),
        ("u", {"a": "1"}, True),
        ("t", {"a": "2"}, True),
        ("t", {}, False),
    ],
)
def test_an_edit_is_of_the_table_or_of_an_own_file_that_is_here(
    table: str, own: dict[str, str], edited: bool
) -> None:
    pinned = pins.MadeFrom("t", {"x": "1"}, {"a": "1"})
    assert pins.MadeFrom(table, {}, own).edited_since(pinned) is edited


def test_other_bytes_without_an_edit_are_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root)
    pinned = (root / "data.dvc").read_bytes()
    shutil.rmtree(root / ".dvc" / "cache")
    shutil.rmtree(root / "data")
    shout = {**build.MAKERS, "documents": lambda members: {"one.txt": b"ONE"}}
    monkeypatch.setattr(build, "MAKERS", shout)
    with pytest.raises(ValueError, match=r"bytes differ from data\.dvc.*text/books/one\.txt") as it:
        make(root)
    assert "(from books)" in str(it.value)
    assert "bpe" not in str(it.value)
    assert not (root / "data").exists()
    assert (root / "data.dvc").read_bytes() == pinned


def test_work_in_data_is_not_lost(root: Path) -> None:
    make(root)
    (root / "data" / "text" / "own.txt").write_text("My only copy.", encoding="utf-8")
    (root / "data" / "text" / "books" / "one.txt").write_text("Changed.", encoding="utf-8")
    message = (
        r"holds files unknown to .* and to DVC: "
        r"data/text/books/one\.txt, data/text/own\.txt\. Move"
    )
    with pytest.raises(ValueError, match=message):
        make(root)
    assert (root / "data" / "text" / "own.txt").read_text(encoding="utf-8") == "My only copy."


def test_what_dvc_alone_took_in_is_noticed(root: Path) -> None:
    make(root)
    (root / "data" / "text" / "books" / "one.txt").write_text("Changed.", encoding="utf-8")
    dvc(root, "add", "data")
    message = r"data/text/books/one\.txt: content differs from data/manifest/"
    with pytest.raises(ValueError, match=message):
        make(root)


BAD = {
    "empty.txt": ("text", b" \n", "is empty; add text or remove the file"),
    "binary.txt": ("text", b"a\0b", "is not plain text: NUL byte at offset 1"),
    "latin.txt": ("text", b"one\ncaf\xe9", r"is not UTF-8 text \(line 2\)"),
    "page.html": ("text", b"<p>", r"is not a \.txt file"),
    "columns.csv": ("labelled", b"text,class\na,b\n", "has no column label"),
    "one.csv": ("labelled", b"label,text\nham,a\nham,b\n", r"has one label \(ham\)"),
    "none.csv": ("labelled", b"label,text\nham,\n", "row 1 has an empty text"),
    "rows.json": ("instructions", b'[{"instruction": "Do."}]', "row 1 has no output"),
    "broken.json": ("instructions", b"[", "is not UTF-8 JSON"),
    "config.json": ("weights/x", b"{}", "vocab_size|model_type|n_embd|config"),
    "model.safetensors": ("weights/x", b"", r"config\.json is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_no_stage_could_use_is_not_pinned(root: Path, name: str) -> None:
    target, content, message = BAD[name]
    (root / name).write_bytes(content)
    entry = LABELLED.replace("labelled", target).replace("mail.csv", name)
    (root / "sources.toml").write_text(TABLE + entry, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        make(root)
    assert "data/" in str(caught.value)
    assert str(caught.value).endswith(f" (from source mail, path {name})")
    assert ".state" not in str(caught.value)
    assert not (root / "data").exists()
    assert not (root / "data.dvc").exists()


def alternatives(root: Path) -> tuple[Source, ...]:
    """Read a table whose first place lacks the file, whose second has other bytes."""
    right = hashlib.sha256((root / "bpe" / "vocab.bpe").read_bytes()).hexdigest()
    shutil.copytree(root / "bpe", root / "wrong")
    (root / "wrong" / "vocab.bpe").write_bytes(b"#version: 0.2\n")
    head, _, tail = TABLE.rpartition("[[source.place]]")
    files = f'[source.files]\n"vocab.bpe" = "{right}"\n'
    places = "".join(f'[[source.place]]\nkind = "path"\npath = "{at}"\n' for at in ("no", "wrong"))
    (root / "sources.toml").write_text(f"{head}{files}{places}[[source.place]]{tail}", "utf-8")
    return read_table(root / "sources.toml")


def test_the_first_place_with_the_right_bytes_wins(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(root, alternatives(root))
    assert "bpe: path bpe, 0.0 MB" in capsys.readouterr().out
    assert contents(root)["bpe/vocab.bpe"] == (root / "bpe" / "vocab.bpe").read_bytes()


def test_where_no_place_has_them_each_reason_is_given(root: Path) -> None:
    sources = alternatives(root)
    shutil.rmtree(root / "bpe")
    message = r"source bpe: path no: .*no does not exist; path wrong gives vocab\.bpe with SHA-256"
    with pytest.raises(ValueError, match=message):
        make_data(root, sources)
    assert not (root / "data").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "the disk is full: free some space, then",
        ),
        (
            ConnectionResetError("reset by peer"),
            "source books: path books: reset by peer. Run `make",
        ),
        (http.client.IncompleteRead(b""), "source books: path books: IncompleteRead"),
    ],
)
def test_a_failure_is_one_sentence_and_the_next_run_goes_on(
    error: Exception,
    said: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: Any, **options: Any) -> Path:
        raise error

    monkeypatch.setattr(data, "ROOT", root)
    with monkeypatch.context() as failing:
        failing.setattr(data, "fetch", fail)
        assert data.main([]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"make data: {said}")
    assert printed.count("\n") == 1
    assert not (root / "data").exists()
    assert data.main([]) == 0


def test_a_wrong_table_stops_before_any_work(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "ROOT", root)
    (root / "sources.toml").write_text("[[source]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"sources\.toml: .*line 1"):
        data.main([])
    (root / "sources.toml").unlink()
    with pytest.raises(ValueError, match=r"sources\.toml is missing"):
        data.main([])
    with pytest.raises(ValueError, match="takes no arguments"):
        data.main(["--force"])


def test_files_that_change_while_they_are_read_are_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(members: dict[str, bytes]) -> dict[str, bytes]:
        with (root / "books" / "one.txt").open("a", encoding="utf-8") as file:
            file.write("More.")
        return dict(members)

    with monkeypatch.context() as writing:
        writing.setattr(build, "MAKERS", {**build.MAKERS, "documents": write})
        with pytest.raises(ValueError, match=r"^books changed while `make data` read the files"):
            make(root)
    assert not (root / "data").exists()
    make(root)
    assert contents(root)["text/books/one.txt"] == b"One.\nMore."


def test_a_pipe_among_the_users_files_is_named(root: Path) -> None:
    os.mkfifo(root / "books" / "pipe")
    with pytest.raises(ValueError, match="books/pipe is a pipe, socket or device, not a file"):
        make(root)


WAIT = """
import sys, time
from pathlib import Path
from flows.commands.data import data
from gptmill.sources import build

def slow(members):
    Path("waiting").touch()
    time.sleep(60)

build.MAKERS = {**build.MAKERS, "documents": slow}
data.make_data(Path.cwd(), data.read_table(Path("sources.toml")))
"""


def test_a_killed_run_leaves_nothing_half(root: Path) -> None:
    make(root)
    made = contents(root)
    (root / "books" / "two.txt").write_text("Two!\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with subprocess.Popen([sys.executable, "-c", WAIT], cwd=root, env=environment) as process:
        while not (root / "waiting").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert contents(root) == made
    make(root)
    assert contents(root)["text/books/two.txt"] == b"Two!\n"


@pytest.mark.slow
def test_the_projects_own_data_comes_from_its_sources_byte_for_byte(tmp_path: Path) -> None:
    """Needs the network; every alternative and option whose client is here is fetched too."""
    table = read_table(ROOT / "sources.toml")
    hashes = data.build(tmp_path, table, tmp_path / "new")
    pin = read_pin(ROOT)
    assert pin.origin is not None
    assert hashes == pin.origin.sources
    assert content_hash(tmp_path / "new") == pin.md5
    rows = tomllib.loads((ROOT / "sources.toml").read_text(encoding="utf-8"))["source"]
    everything = parse({"source": [row | {"enabled": True} for row in rows]}, makers=build.MAKES)
    tried = {source.name: source.places[0] for source in table}
    for source in everything:
        for at in source.places:
            client = {"npm": "npm", "apt": "apt-get"}.get(at.kind, "python")
            if at != tried.get(source.name) and (client == "python" or shutil.which(client)):
                fetched = fetch(at, tmp_path / ".state" / "downloads", root=tmp_path)
                assert build.make_files(source, at, fetched)


def test_a_night_reads_the_sources_and_names_one_that_is_away(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here, "ROOT", root)
    assert here.Here().read_sources() is None
    (root / "books" / "three.txt").write_text("Three.\n", encoding="utf-8")
    assert here.Here().read_sources() is None
    assert contents(root)["text/books/three.txt"] == b"Three.\n"
    made = contents(root)
    (root / "books").rename(root / "away")
    (root / "data.dvc").unlink()
    obstacle = here.Here().read_sources()
    assert obstacle is not None
    assert obstacle.reason.startswith("data: source books: path books")
    assert obstacle.reason.endswith("no stage ran")
    assert not obstacle.may_pass
    assert contents(root) == made


@pytest.fixture
def user(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with the params of this one, in which the command works."""
    for module in (data, graph):
        monkeypatch.setattr(module, "ROOT", root)
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    params = text.replace("weights: data/weights/smollm2", "weights: artifacts/pretrain")
    (root / "params.yaml").write_text(params, encoding="utf-8")
    (root / "sources.toml").write_text(TABLE + "# mine\n", encoding="utf-8")
    return root


def test_own_data_is_entered_built_and_reported_by_one_command(
    user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{k};Hello {k};{'yes' if k % 2 else 'no'}\r\n" for k in range(9))
    (user / "My Mail.csv").write_text(f"id;Message;Class\r\n{rows}", encoding="utf-8-sig")
    (user / "chat.json").write_text('[{"prompt": "Q?", "completion": "A."}]', encoding="utf-8")
    before = (user / "params.yaml").read_text(encoding="utf-8")
    assert data.main(["LABELLED=My Mail.csv"]) == 0
    said = capsys.readouterr().out
    for line in (
        "  My Mail.csv: UTF-8 with a byte order mark, columns separated by semicolons",
        "makes data/labelled/my-mail.csv (label from Class, text from Message)",
        "params.yaml: split.labelled is data/labelled/my-mail.csv",
        "  9 rows in 2 classes: no 5, yes 4",
        "  words per text: median 2, longest 2",
        "  texts cut at the context of 128 tokens: 0",
        "  lora trains about 6 rows, epochs: 10, updates: 10; lora.epochs was 1, 1 updates",
        "next: make pipeline",
    ):
        assert line in said
    (user / "novels").mkdir()
    (user / "novels" / "a.md").write_text("Once.", encoding="utf-8")
    assert data.main(["CHATS=chat.json"]) == data.main(["TEXT=novels"]) == 0
    said = capsys.readouterr().out
    assert "  1 conversation; kinds: other 1" in said
    assert "  conversations left out, longer than the context of 128 tokens: " in said
    assert "  1 document; words per document: median 1, longest 1" in said
    assert "training reads all of data/text, also books: `enabled = false`" in said
    assert "  pretrain takes 1 steps of 1,024 tokens and reads about 3 tokens" in said
    table = (user / "sources.toml").read_text(encoding="utf-8")
    assert table.startswith(f'{TABLE}# mine\n\n[[source]]\nname = "my-mail"')
    params = (user / "params.yaml").read_text(encoding="utf-8")
    changed = {*params.splitlines()} - {*before.splitlines()}
    assert changed == {
        "  labelled: data/labelled/my-mail.csv",
        "  instructions: data/instructions/chat.json",
        "  epochs: 10",
        "  steps: 1",
    }
    assert data.main(["LABELLED=My Mail.csv", "FIELDS=text=Class,label=Message"]) == 0
    renamed = table.replace(
        'label = "Class", text = "Message"', 'text = "Class", label = "Message"'
    )
    assert (user / "sources.toml").read_text(encoding="utf-8") == renamed


def test_near_duplicate_documents_are_shown_and_recorded_as_a_group(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story = " ".join(f"word{number}" for number in range(40))
    (root / "books" / "draft.txt").write_text(f"{story} the end", encoding="utf-8")
    (root / "books" / "novel.txt").write_text(f"{story.upper()}.", encoding="utf-8")
    make(root)
    said = capsys.readouterr().out
    assert "near-duplicates: 2 documents in 1 group; a group stays in one part" in said
    assert "  0.95  text/books/draft.txt: word0 word1 word2" in said
    assert "        text/books/novel.txt: WORD0 WORD1 WORD2" in said
    files = json.loads(contents(root)["manifest/text.json"])["files"]
    near = {name: file["near"] for name, file in files.items() if "near" in file}
    assert {name: record["twin"] for name, record in near.items()} == {
        "text/books/draft.txt": "text/books/novel.txt",
        "text/books/novel.txt": "text/books/draft.txt",
    }
    (group,) = {record["group"] for record in near.values()}
    assert group in near
    (root / "books" / "novel.txt").unlink()
    make(root)
    assert "near-duplicates" not in capsys.readouterr().out
    assert b"near" not in contents(root)["manifest/text.json"]


@pytest.mark.parametrize(
    ("rows", "changes", "updates"),
    [(268, {"lora.epochs": 5, "classify.epochs": 5}, 60), (3611, {}, 158)],
)
def test_epochs_are_of_the_rows(
    user: Path, rows: int, changes: dict[str, int], updates: int
) -> None:
    (user / "data").mkdir()
    table = "".join(f"{'yes' if k % 2 else 'no'},text {k}\n" for k in range(rows))
    (user / "data" / "mail.csv").write_text(f"label,text\n{table}", encoding="utf-8")
    found, lines = ahead(user, Entry("mail", "LABELLED", "data/mail.csv", ""))
    assert found == changes
    assert f", updates: {updates}" in lines[0]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["LABELLED=gone.csv"], "gone.csv does not exist"),
        (["LABELLED=mail.csv", "FIELDS=text=b,label=x"], "mail.csv has no column x for label"),
        (["LABELLED=mail.csv"], "mail.csv has no single column for label and text; the columns"),
        (["LABELLED=mail.csv", "FIELDS=text=b,label=a"], "has the labels 'no' and 'No', which dif"),
        (["TEXT=books"], "sources.toml has a different source books; rename your file or folder"),
        (["CHATS=mail.csv", "FIELDS=instruction=a,output=b", "TURNS=one"], "turns is 'one'; allow"),
    ],
)
def test_own_data_that_cannot_be_used_changes_nothing(
    user: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (user / "mail.csv").write_text("a,b\nno,hi\nNo,ho\n", encoding="utf-8")
    before = {name: (user / name).read_bytes() for name in ("sources.toml", "params.yaml")}
    assert data.main(arguments) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert before == {name: (user / name).read_bytes() for name in before}
    assert not (user / "data").exists()


@pytest.mark.parametrize(
    "arguments",
    [["LABELLED=a.csv", "TEXT=b"], ["FIELDS=text=a"], ["LABELLED=a.csv", "COLOUR=red"]],
)
def test_other_arguments_are_named_with_the_allowed_ones(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=f"TURNS=first .*; given: {' '.join(arguments)}"):
        data.main(arguments)
    with pytest.raises(ValueError, match="FIELDS must be like text=COLUMN,label=COLUMN, not x"):
        data.main(["TEXT=a", "FIELDS=x"])
