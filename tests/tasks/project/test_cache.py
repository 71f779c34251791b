"""Links between outputs and DVC's cache."""

from pathlib import Path

import pytest

from gptmill.files import md5
from tasks.project.cache import cached_file, drop_damaged, share
from tasks.project.hashes import LARGE


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a project with outputs `large` and `small`, and equal files in the cache."""
    out = tmp_path / "out"
    out.mkdir()
    for name, size in (("large", LARGE), ("small", 3)):
        (out / name).write_bytes(bytes(size))
        cached = cached_file(tmp_path, md5(out / name))
        cached.parent.mkdir(parents=True)
        cached.write_bytes(bytes(size))
        cached.chmod(0o444)
    return tmp_path


def cached(root: Path, name: str) -> Path:
    return cached_file(root, md5(root / "out" / name))


def test_a_large_output_becomes_a_link_to_the_equal_cached_file(root: Path) -> None:
    share(root / "out", root)
    assert (root / "out" / "large").samefile(cached(root, "large"))
    assert not (root / "out" / "small").samefile(cached(root, "small"))
    assert sorted(path.name for path in (root / "out").iterdir()) == ["large", "small"]


@pytest.mark.parametrize("name", ["large", "small"])
def test_a_damaged_cached_file_is_removed_and_never_becomes_an_output(
    root: Path, name: str
) -> None:
    file = cached(root, name)
    file.chmod(0o644)
    with file.open("r+b") as opened:
        opened.write(b"1")
    content = (root / "out" / name).read_bytes()
    share(root / "out", root)
    assert not file.exists()
    assert (root / "out" / name).read_bytes() == content
    assert drop_damaged(root, [md5(root / "out" / name)]) == []
