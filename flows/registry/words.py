"""Arguments of `make promote` and `make rollback`, checked."""

from collections.abc import Mapping

from tasks.tracking.registry import KINDS, PREFIX, Registered

LONGEST = 1000
"""The most characters of a reason."""


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
    why = " ".join(given.get("WHY", "").split()) or default
    if not why:
        raise ValueError(f"WHY is missing: the registry keeps the reason; {usage}")
    if len(why) > LONGEST:
        raise ValueError(f"WHY has {len(why):,} characters: allowed are {LONGEST:,}")
    return why
