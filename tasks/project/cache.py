"""DVC's cached files: their places, links to them, and removal of damaged ones."""

import configparser
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from gptmill.files import md5
from gptmill.records import files_below
from tasks.project.hashes import LARGE, known


@cache
def cache_folder(root: Path) -> Path:
    """Return DVC's cache folder, which any of DVC's config files may set.

    The files are read here, since asking DVC itself takes half a second.
    """
    from dvc.dirs import global_config_dir, system_config_dir

    folder, own = root / ".dvc" / "cache", root / ".dvc"
    shared = [Path(place) / "config" for place in (system_config_dir(), global_config_dir())]
    for file in (*shared, own / "config", own / "config.local"):
        settings = configparser.ConfigParser(interpolation=None, strict=False)
        settings.read(file, encoding="utf-8")
        if settings.has_option("cache", "dir"):
            text = settings.get("cache", "dir").strip("\"'")
            folder = file.parent / Path(text).expanduser()
    return folder.resolve()


def cached_file(root: Path, digest: str) -> Path:
    """Return the path of the cached file with an MD5; the file may be missing."""
    return cache_folder(root) / "files" / "md5" / digest[:2] / digest[2:]


def cached_digest(path: Path) -> str:
    """Return the hash in the name of a cached file."""
    return path.parent.name + path.name


def cached_runs(root: Path, key: str) -> Path:
    """Return the folder of the run cache with the records of a key; it may be missing."""
    return cache_folder(root) / "runs" / key[:2] / key


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """Make a hard link, or a copy where the file system has no link between the two places."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def drop_damaged(root: Path, digests: Iterable[str]) -> list[Path]:
    """Remove cached files whose content differs from the hash in the name; return their paths.

    DVC trusts its cache: it would take a damaged file for the file that a stage has just made.
    """
    paths = {cached_file(root, digest): digest.removesuffix(".dir") for digest in digests}
    damaged = [path for path, digest in paths.items() if _is_damaged(path, digest)]
    for path in damaged:
        path.unlink()
    return damaged


def _is_damaged(path: Path, digest: str) -> bool:
    return path.exists() and known().md5(path) != digest and md5(path) != digest


def share(folder: Path, root: Path) -> None:
    """Prepare an output folder for DVC's commit: large files become links to equal cached files.

    DVC itself links files that are new to its cache, and leaves a copy of a known file as it is.
    """
    for path in files_below(folder):
        digest = known().md5(path)
        drop_damaged(root, [digest])
        cached = cached_file(root, digest)
        if path.stat().st_size >= LARGE and cached.exists() and not cached.samefile(path):
            partial = path.with_name(f".{path.name}.partial")
            partial.unlink(missing_ok=True)
            with suppress(OSError):  # the cache may be on a different disk
                partial.hardlink_to(cached)
                partial.replace(path)
