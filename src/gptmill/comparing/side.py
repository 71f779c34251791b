"""A side of a comparison: a folder with the stages' artifacts, and the record of their making."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gptmill.comparing.section import MissingError

KINDS = ("commit", "params", "data", "code", "environment")
"""What a record of the making of artifacts may hold."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    letter: str
    name: str
    folder: Path
    origin: str = ""
    """The kind of the side and its date or commit, for a reader."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Reasons why outputs are missing, by the output's path in the folder."""
    record: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Values by name, for each known kind of KINDS."""

    def file(self, path: str) -> Path:
        """Return an artifact; raise MissingError where the side lacks the artifact."""
        if self.has(path):
            return self.folder / path
        reasons = [why for out, why in self.absent.items() if f"{path}/".startswith(f"{out}/")]
        ending = f": {reasons[0]}" if reasons else ""
        raise MissingError(f"{self.letter} ({self.name}) has no {path}{ending}")

    def has(self, path: str) -> bool:
        """Return whether the side has an artifact."""
        return (self.folder / path).exists()


@dataclass(frozen=True)
class Change:
    """A value of the record that differs; empty where a side has no such value."""

    kind: str
    name: str
    first: str
    second: str


def changes(first: Side, second: Side) -> list[Change]:
    """Return the values that differ in the records, of the kinds known of both sides.

    Where a side records fewer stages, only the values of both count.
    """
    same_stages = _sections(first) == _sections(second)
    changed = []
    for kind in KINDS:
        one, other = (side.record.get(kind, {}) for side in (first, second))
        both = kind in first.record and kind in second.record
        names = {*one, *other} if same_stages else one.keys() & other.keys()
        changed += [
            Change(kind, name, one.get(name, ""), other.get(name, ""))
            for name in sorted(names)
            if both and one.get(name) != other.get(name)
        ]
    return changed


def _sections(side: Side) -> set[str]:
    """Return the sections of params.yaml in a side's record."""
    return {name.split(".")[0] for name in side.record.get("params", {})}


def unknown(first: Side, second: Side) -> list[str]:
    """Return a sentence for each kind of record that one side lacks."""
    return [
        f"The {kind} of {side.letter} ({side.name}) "
        f"{'are' if kind in ('params', 'data') else 'is'} not recorded"
        for kind in KINDS
        for side, other in ((first, second), (second, first))
        if kind not in side.record and kind in other.record
    ]
