"""The place of DVC's cached files."""

import configparser
from functools import cache
from pathlib import Path


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


def cached_runs(root: Path, key: str) -> Path:
    """Return the folder of the run cache with the records of a key; it may be missing."""
    return cache_folder(root) / "runs" / key[:2] / key
