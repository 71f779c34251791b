"""Per-file hashes of a folder, and what differs between two.

`python -m tests.support.hashes artifacts` lists them as `sha256sum` does; with a second folder, or
a list of one, it names what was added, removed, moved or changed, and counts what is equal.
"""

import sys
from pathlib import Path

from gptmill.files import sha256


def hashes(place: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder, or as a list of this module's has them."""
    if place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.is_file())
        return {path.relative_to(place).as_posix(): sha256(path) for path in files}
    lines = (line.split("  ", 1) for line in place.read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, name in lines}


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Say what became of each file that is not where it was with the bytes that it had."""
    gone = {name: digest for name, digest in before.items() if name not in after}
    new = {name: digest for name, digest in after.items() if name not in before}
    lines = [f"changed  {name}" for name in before if after.get(name, before[name]) != before[name]]
    for name, digest in gone.items():
        moved = next((other for other in new if new[other] == digest), None)
        lines.append(f"moved    {name} -> {moved}" if moved else f"removed  {name}")
        new.pop(moved or "", None)
    return [*lines, *(f"added    {name}" for name in new)]


def main(arguments: list[str]) -> int:
    """Print the hashes of one folder, or the differences of two; status 1 where bytes differ."""
    if len(arguments) not in (1, 2):
        print("usage: python -m tests.support.hashes FOLDER [FOLDER or list]", file=sys.stderr)
        return 2
    first, *others = map(hashes, map(Path, arguments))
    if not others:
        print("\n".join(f"{digest}  {name}" for name, digest in first.items()))
        return 0
    lines = differences(first, others[0])
    equal = sum(others[0].get(name) == digest for name, digest in first.items())
    print("\n".join([*lines, f"{equal} of {len(first)} files equal, {len(lines)} not"]))
    return int(any(not line.startswith("moved") for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
