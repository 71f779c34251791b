"""`make rollback KIND=...`: the champion before the present one becomes champion again."""

from flows.commands.arguments import named
from flows.registry.words import kind_of, reason_of
from tasks.processes import locks
from tasks.tracking import registry
from tasks.tracking.registry import Registered

USAGE = "usage: make rollback KIND=assistant, with WHY=... to record a reason"


def main(arguments: list[str]) -> int:
    """Move the alias back; record who, when and why."""
    given = named(arguments, ("KIND", "WHY"), USAGE)
    kind, why = kind_of(given, USAGE), reason_of(given, USAGE, default="rollback")
    with locks.project("make rollback"):
        print(registry.answered(lambda: roll_back(Registered(kind), why)))
    return 0


def roll_back(found: Registered, why: str) -> str:
    """Move the alias of a kind back; return the result in words."""
    if found.champion is None:
        raise ValueError(f"{found.kind} has no champion: there is nothing to roll back")
    earlier = found.earlier
    if earlier is None:
        raise ValueError(
            f"{found.kind} version {found.champion} is the first champion that exists: there is no "
            "earlier one to roll back to"
        )
    if not registry.has_files(found.versions[earlier]):
        raise ValueError(
            f"{found.kind} version {earlier} cannot be served: its logged model was deleted in "
            "MLflow; `make promote` takes another version"
        )
    left, number = found.step_back(who=registry.user(), why=why)
    return f"{found.kind} version {number} is champion again instead of version {left}: {why}"
