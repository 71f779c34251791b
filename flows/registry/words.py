"""Arguments of `make promote` and `make rollback`, checked."""

from collections.abc import Mapping

from tasks.tracking.registry import KINDS, PREFIX, Registered

LONGEST = 1000
"""The most characters of a reason."""


def named(arguments: list[str], allowed: tuple[str, ...], usage: str) -> dict[str, str]:
    """Return NAME=value arguments by name; raise ValueError for any others."""
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    if len(given) < len(arguments) or given.keys() - set(allowed):
        raise ValueError(f"{usage}; given: {' '.join(arguments)}")
    return {name: " ".join(value.split()) for name, value in given.items()}


def kind_of(given: Mapping[str, str], usage: str) -> str:
    """Return the kind of model, with or without the prefix of the registry."""
    kind = given.get("KIND", "").removeprefix(PREFIX)
    if kind not in KINDS:
        raise ValueError(f"KIND is {kind or 'missing'}: allowed are {', '.join(KINDS)}; {usage}")
    return kind


def version_of(given: Mapping[str, str], found: Registered, usage: str) -> int:
    """Return the number of a version that exists."""
    text = given.get("VERSION", "")
    if not found.versions:
        raise ValueError(
            f"no version of {found.kind} is registered yet: `make pipeline` registers the models"
        )
    number = int(text) if text.isdecimal() else 0
    if number not in found.versions:
        listed = ", ".join(map(str, found.versions))
        raise ValueError(
            f"VERSION is {text or 'missing'}: versions of {found.kind} are {listed}; {usage}"
        )
    return number


def reason_of(given: Mapping[str, str], usage: str, *, default: str = "") -> str:
    """Return the reason in one line."""
    why = given.get("WHY", "") or default
    if not why:
        raise ValueError(f"WHY is missing: the registry keeps the reason; {usage}")
    if len(why) > LONGEST:
        raise ValueError(f"WHY has {len(why):,} characters: allowed are {LONGEST:,}")
    return why
