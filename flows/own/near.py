"""Near-duplicate documents in words, with examples."""

from pathlib import Path

from gptmill.data.documents import read_document
from gptmill.sources.build import Near

SHOWN = 3  # groups


def near_lines(folder: Path, near: Near) -> list[str]:
    """Return lines on the near-duplicates of data/: the count, and the most similar pairs."""
    if not near:
        return []
    closest: dict[str, str] = {}
    for name in sorted(near, key=lambda name: (-near[name]["similarity"], name)):
        closest.setdefault(near[name]["group"], name)
    return [
        f"near-duplicates: {len(near):,} documents in {_groups(len(closest))}; a group stays in "
        'one part (`near_duplicates = 0.8` in the options of a source with `make = "texts"` leaves '
        "later ones out)",
        *(line for name in list(closest.values())[:SHOWN] for line in _pair(folder, near, name)),
    ]


def _groups(n: int) -> str:
    return f"{n:,} group{'' if n == 1 else 's'}"


def _pair(folder: Path, near: Near, name: str) -> list[str]:
    first, second = sorted((name, near[name]["twin"]))
    return [
        f"  {near[name]['similarity']:.2f}  {first}: {read_document(folder / first).beginning}",
        f"        {second}: {read_document(folder / second).beginning}",
    ]
