"""Hashes that are computed once: when one stands, and for which files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gptmill.files import md5
from tasks.project import hashes
from tasks.project.hashes import LARGE, Hashes


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files that are read, as they are read."""
    names: list[str] = []

    def noted(algorithm: str) -> Callable[[Path], str]:
        def hasher(path: Path) -> str:
            names.append(f"{algorithm} {path.name}")
            return before[algorithm](path)

        return hasher

    before = dict(hashes.HASHERS)
    monkeypatch.setattr(hashes, "HASHERS", {name: noted(name) for name in before})
    return names


def test_a_large_file_is_hashed_once_by_all_processes_and_under_all_names(
    tmp_path: Path, hashed: list[str]
) -> None:
    file, small, store = tmp_path / "file", tmp_path / "small", tmp_path / ".state" / "hashes"
    file.write_bytes(bytes(LARGE))
    small.write_bytes(bytes(LARGE - 1))
    (tmp_path / "link").hardlink_to(file)
    first, second = Hashes(store), Hashes(store)
    expected = md5(file)
    for known in (first, second, first, Hashes(store)):
        assert known.md5(file) == known.md5(tmp_path / "link") == expected
    assert hashed == ["md5 file"]
    assert second.sha256(file) == first.sha256(file)
    assert hashed == ["md5 file", "sha256 file"]
    assert first.md5(small) == first.md5(small)
    assert hashed[2:] == ["md5 small", "md5 small"]


def test_an_edit_in_place_is_noticed_also_when_the_size_stays(
    tmp_path: Path, hashed: list[str]
) -> None:
    file, known = tmp_path / "file", Hashes(tmp_path / ".state" / "hashes")
    file.write_bytes(bytes(LARGE))
    file.chmod(0o444)
    os.utime(file, ns=(0, 0))
    before = known.md5(file)
    file.chmod(0o644)  # root needs no such thing
    with file.open("r+b") as opened:
        opened.write(b"1")
    assert known.md5(file) == md5(file) != before
    assert len(hashed) == 2


def test_a_damaged_store_costs_time_and_nothing_else(tmp_path: Path, hashed: list[str]) -> None:
    file, store = tmp_path / "file", tmp_path / ".state" / "hashes"
    file.write_bytes(bytes(LARGE))
    expected = Hashes(store).md5(file)
    line = store.read_bytes()
    for damaged in (line[:-9] + line, b"\xff\n" + line[:-9], b"md5 x y z\n\n", b""):
        store.write_bytes(damaged)
        assert Hashes(store).md5(file) == expected
    store.unlink()
    store.mkdir()  # a disk that takes no file
    assert Hashes(store).md5(file) == expected


def test_the_store_stays_small(tmp_path: Path, hashed: list[str]) -> None:
    file, store = tmp_path / "file", tmp_path / "hashes"
    file.write_bytes(bytes(LARGE))
    Hashes(store).md5(file)
    line = store.read_text()
    old = "".join(f"md5 0 {number} 0 0 {'0' * 32}\n" for number in range(hashes.MOST))
    store.write_text(old + line)
    known = Hashes(store)
    assert known.md5(file) == known.md5(file)
    assert hashed == ["md5 file"]
    assert store.read_text().endswith(line)
    assert len(store.read_text().splitlines()) == hashes.MOST // 2
