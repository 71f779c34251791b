"""What data.dvc pins, what lies in data/, and the DVC commands that bring the two together.

data.dvc holds one hash for all of data/. Its `meta`, which DVC leaves alone, tells an edit
of the source table from bytes that changed by themselves: the table's hash, a hash for what
each source became, and one for each of the user's own files.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

from gptmill.files import md5, sha256
from gptmill.origins import MANIFEST, read_manifest
from gptmill.records import content_hash
from gptmill.sources.archive import visible_files

META = "made_from"


@dataclass(frozen=True)
class MadeFrom:
    """What data was made from: hashes of the table, of each source's files, of own files."""

    table: str
    sources: Mapping[str, str]
    own: Mapping[str, str]

    def edited_since(self, pinned: "MadeFrom") -> bool:
        """Tell whether the table or a user's own file changed; one that is not here did not."""
        own = {path: digest for path, digest in self.own.items() if path in pinned.own}
        return self.table != pinned.table or any(
            digest != pinned.own[path] for path, digest in own.items()
        )


@dataclass(frozen=True)
class Pin:
    """data.dvc: the hash of data/, and what it was made from where that is known."""

    md5: str
    origin: MadeFrom | None


def read_pin(root: Path) -> Pin | None:
    """Read data.dvc; None where there is none yet."""
    path = root / "data.dvc"
    if not path.exists():
        return None
    content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    meta = (content.get("meta") or {}).get(META)
    return Pin(content["outs"][0]["md5"], MadeFrom(**meta) if meta else None)


def write_pin(root: Path, origin: MadeFrom) -> None:
    """Have DVC take in data/ as it is and pin it, with what it was made from."""
    dvc(root, "add", "data")
    yaml, path = YAML(), root / "data.dvc"
    content = yaml.load(path.read_text(encoding="utf-8"))
    meta = {
        "table": origin.table,
        "sources": dict(sorted(origin.sources.items())),
        "own": dict(sorted(origin.own.items())),
    }
    if (content.get("meta") or {}).get(META) != meta:
        content.setdefault("meta", {})[META] = meta
        with path.with_name(".data.dvc.partial").open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
        path.with_name(".data.dvc.partial").replace(path)


def matches(root: Path, pin: Pin) -> bool:
    """Tell whether data/ is, byte for byte, what data.dvc pins."""
    return (root / "data").is_dir() and content_hash(root / "data") == pin.md5


def altered(root: Path) -> list[str]:
    """Name the files of data/ that are not what data/manifest/ says."""
    made = made_here(root)
    found = {name: sha256(path) for name, path in raw_files(root).items()}
    return sorted(name for name in {*made, *found} if made.get(name) != found.get(name))


def unsaved(root: Path) -> list[str]:
    """Name the files of data/ whose bytes DVC's cache does not hold: to replace is to lose them."""
    made = made_here(root)
    unknown = [path for name, path in raw_files(root).items() if made.get(name) != sha256(path)]
    return [
        path.relative_to(root).as_posix()
        for path in unknown
        if not _cached(_cache(root), md5(path)).exists()
    ]


def made_here(root: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of data/ as its own manifest tells; empty without one."""
    files = read_manifest(root / "data")["files"]
    return {name: entry["sha256"] for name, entry in files.items()}


def raw_files(root: Path) -> dict[str, Path]:
    """Return the files of data/ by their paths below it, short of its manifest."""
    paths = visible_files(root / "data")
    files = {path.relative_to(root / "data").as_posix(): path for path in paths}
    return {name: path for name, path in files.items() if not name.startswith(f"{MANIFEST}/")}


def restore(root: Path, pin: Pin) -> str:
    """Bring data/ back from DVC's cache or remote; say from where, "" if neither has it."""
    if _cached(_cache(root), pin.md5).exists() and _try(root, pin, "checkout"):
        return "DVC's cache"
    remotes = dvc(root, "remote", "list").split()
    if remotes and _try(root, pin, "pull"):
        return f"the DVC remote {remotes[0]}"
    if remotes:
        print(f"the DVC remote {remotes[0]} does not have this data, or cannot be reached")
    return ""


def dvc(root: Path, *arguments: str) -> str:
    """Run DVC and return what it prints; raise ValueError with its last line when it fails."""
    done = _run(root, *arguments)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = (lines or done.stderr.splitlines() or ["no message"])[-1]
        raise ValueError(f"`dvc {' '.join(arguments)}` failed: {why}")
    return done.stdout


def _try(root: Path, pin: Pin, command: str) -> bool:
    done = _run(root, command, "--quiet", "--force", "data.dvc")
    return done.returncode == 0 and matches(root, pin)


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(
        command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@cache
def _cache(root: Path) -> Path:
    return Path(dvc(root, "cache", "dir").strip()) / "files" / "md5"


def _cached(folder: Path, digest: str) -> Path:
    return folder / digest[:2] / digest[2:]


def listing_hash(hashes: Mapping[str, str]) -> str:
    """Return one hash for several files' names and hashes, short enough for a line of YAML."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:32]


def own_hash(path: Path) -> str:
    """Return one hash for a user's own file, or for all files of a folder."""
    files: Iterable[Path] = visible_files(path) if path.is_dir() else [path]
    return listing_hash({file.relative_to(path).as_posix(): sha256(file) for file in files})
