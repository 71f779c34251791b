"""`make promote KIND=... VERSION=... WHY=...`: a version becomes champion, against the gate too."""

from flows.commands.arguments import named
from flows.registry.words import kind_of, reason_of, version_of
from tasks.processes import locks
from tasks.tracking import registry
from tasks.tracking.registry import Registered

USAGE = 'usage: make promote KIND=assistant VERSION=3 WHY="answers are shorter"'


def main(arguments: list[str]) -> int:
    """Make a version the champion; record who, when and why."""
    given = named(arguments, ("KIND", "VERSION", "WHY"), USAGE)
    kind, why = kind_of(given, USAGE), reason_of(given, USAGE)
    with locks.project("make promote"):
        print(registry.answered(lambda: promote(Registered(kind), given, why)))
    return 0


def promote(found: Registered, given: dict[str, str], why: str) -> str:
    """Move the alias of a kind; return the result in words."""
    number, before = version_of(given, found, USAGE), found.champion
    if number == before:
        raise ValueError(f"{found.kind} version {number} is the champion already")
    if not registry.has_files(found.versions[number]):
        raise ValueError(
            f"{found.kind} version {number} cannot be served: its logged model was deleted in "
            "MLflow"
        )
    found.crown(number, who=registry.user(), why=why, best=True)
    instead = f" instead of version {before}" if before else ""
    return f"{found.kind} version {number} is champion{instead}: {why}"
