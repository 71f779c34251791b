"""Archive members, read in memory, and files of folders, read when asked for.

Nothing is unpacked to disk, so no member name can lead outside a folder.
"""

import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from gptmill.records import is_ignored

DEBIAN = b"!<arch>\ndebian-binary"


class LazyFiles(Mapping[str, bytes]):
    """Files by name, each given as its content or as a function that returns the content.

    A folder of documents then takes the memory of its longest document.
    """

    def __init__(self, files: Mapping[str, bytes | Callable[[], bytes]]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> bytes:
        """Return the content of a file."""
        content = self._files[name]
        return content if isinstance(content, bytes) else content()

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._files)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._files)


def read_members(path: Path, patterns: Sequence[str]) -> Mapping[str, bytes]:
    """Return files with matching names from an archive or folder.

    Archives are zip files, tar files and Debian packages. Links and devices are never read.
    Raises ValueError if a pattern matches no file and if the archive is broken; the caller
    has checked the hash.
    """
    if path.is_dir():
        files = _in_folder(path, patterns)
        check_found(files, patterns, path.name)
        return files
    if zipfile.is_zipfile(path):
        members = _from_zip(path, patterns)
    elif is_debian(path):
        members = _from_tar(io.BytesIO(_debian_files(path)), patterns)
    elif tarfile.is_tarfile(path):
        members = _from_tar(path.open("rb"), patterns)
    else:
        raise ValueError(f"{path.name} is not a zip, tar or Debian archive")
    check_found(members, patterns, path.name)
    return dict(sorted(members.items()))


def check_found(names: Iterable[str], patterns: Sequence[str], where: str) -> None:
    """Raise ValueError if a pattern matches none of the names."""
    candidates = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in candidates):
            raise ValueError(f"{where} has no member {pattern}")


def wanted(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a member's name matches a pattern."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_debian(path: Path) -> bool:
    """Return whether a file starts like a Debian package."""
    with path.open("rb") as file:
        return file.read(len(DEBIAN)) == DEBIAN


def visible_files(folder: Path, patterns: Sequence[str] = ("*",)) -> list[Path]:
    """Return the files below a folder with matching names, in sorted order.

    Files and folders with a leading dot, and ignored names (records.py), are left out. Links are
    followed. Raises ValueError naming a link without a target, a folder that links reach twice,
    and a pipe, socket or device, which could be read for ever; raises OSError for an unreadable
    folder.
    """
    paths = []
    folders: dict[tuple[int, int], Path] = {}
    for top, names, files in os.walk(folder, onerror=_raise, followlinks=True):
        status = Path(top).stat()
        first = folders.setdefault((status.st_dev, status.st_ino), Path(top))
        if first != Path(top):
            raise ValueError(f"{top} is a link to the folder {first}; remove the link")
        names[:] = sorted(filter(_is_visible, names))
        paths += [Path(top, name) for name in filter(_is_visible, files)]
    matching = [path for path in paths if wanted(path.relative_to(folder).as_posix(), patterns)]
    for path in matching:
        check_readable(path)
    return sorted(matching)


def check_readable(path: Path) -> None:
    """Raise ValueError unless a path leads to a file or folder."""
    if path.is_file() or path.is_dir():
        return
    if path.exists():
        raise ValueError(f"{path} is a pipe, socket or device, not a file; remove it")
    if path.is_symlink():
        target = path.readlink()
        raise ValueError(f"{path} is a link to {target}, which does not exist; remove the link")
    raise ValueError(f"{path} does not exist")


def _raise(error: OSError) -> None:
    raise error


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and not is_ignored(name)


def _in_folder(path: Path, patterns: Sequence[str]) -> Mapping[str, bytes]:
    files = {file.relative_to(path).as_posix(): file for file in visible_files(path, patterns)}
    return LazyFiles({name: files[name].read_bytes for name in sorted(files)})


def _from_zip(path: Path, patterns: Sequence[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if wanted(name, patterns)]
        return {name: archive.read(name) for name in names}


def _from_tar(file: io.BufferedIOBase, patterns: Sequence[str]) -> dict[str, bytes]:
    members = {}
    with file, tarfile.open(fileobj=file, mode="r:*") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isfile() and wanted(name, patterns):
                content = archive.extractfile(member)
                assert content is not None
                members[name] = content.read()
    return members


def _debian_files(path: Path) -> bytes:
    """Return the tar file within a Debian package.

    Only dpkg reads every compression used in packages.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(path.resolve())]
    return subprocess.run(command, check=True, capture_output=True).stdout
