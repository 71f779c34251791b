"""Members of archives, read in memory: nothing is unpacked, so no name can lead elsewhere."""

import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

DEBIAN = b"!<arch>\ndebian-binary"


def read_members(path: Path, patterns: Sequence[str]) -> dict[str, bytes]:
    """Return the files of a zip, tar, Debian package or folder whose names match a pattern.

    Links and devices are never read. Raises ValueError where a pattern matches no file and
    where the archive is broken; the caller has checked its hash.
    """
    if path.is_dir():
        members = _from_folder(path, patterns)
    elif zipfile.is_zipfile(path):
        members = _from_zip(path, patterns)
    elif is_debian(path):
        members = _from_tar(io.BytesIO(_debian_files(path)), patterns)
    elif tarfile.is_tarfile(path):
        members = _from_tar(path.open("rb"), patterns)
    else:
        raise ValueError(f"{path.name} is no zip, tar or Debian archive")
    check_found(members, patterns, path.name)
    return dict(sorted(members.items()))


def check_found(names: Iterable[str], patterns: Sequence[str], where: str) -> None:
    """Raise ValueError where a pattern matches none of the names."""
    found = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(f"{where} has no member {pattern}")


def wanted(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a member's name is matched by one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_debian(path: Path) -> bool:
    """Tell whether a file is a Debian package, by how it begins."""
    with path.open("rb") as file:
        return file.read(len(DEBIAN)) == DEBIAN


def visible_files(folder: Path) -> list[Path]:
    """Return the files below a folder in a fixed order; what begins with a dot is left out."""
    found = []
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(top, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _from_folder(path: Path, patterns: Sequence[str]) -> dict[str, bytes]:
    names = {file.relative_to(path).as_posix(): file for file in visible_files(path)}
    return {name: file.read_bytes() for name, file in names.items() if wanted(name, patterns)}


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
    """Return the tar file within a Debian package; only dpkg reads each compression of them."""
    command = ["dpkg-deb", "--fsys-tarfile", str(path.resolve())]
    return subprocess.run(command, check=True, capture_output=True).stdout
