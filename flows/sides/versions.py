"""A side from MLflow's model registry: one version, or the champions of all kinds."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.sides.cached import ARTIFACTS
from flows.sides.runs import linked_side
from gptmill.comparing.side import Side
from tasks.tracking import registry, store
from tasks.tracking.delivery import find_run
from tasks.tracking.registry import CANDIDATE, CHAMPION, KINDS, OUT, PREFIX, Registered

URI = "models:/"


def side_of_version(letter: str, name: str, temporary: Path) -> Side | None:
    """Return the side of a registered version, None for a name of another form.

    The forms are KIND@ALIAS and models:/NAME/NUMBER or models:/NAME@ALIAS, and an alias alone for
    all kinds together.
    """
    if name in (CHAMPION, CANDIDATE):
        return registry.answered(lambda: _of_all(letter, name, temporary))
    text = name.removeprefix(URI)
    kind, at, alias = text.partition("@")
    if not at:
        kind, _, alias = text.rpartition("/")
    if (not at and text == name) or kind.removeprefix(PREFIX) not in KINDS:
        return None
    found = Registered(kind.removeprefix(PREFIX))
    number = found.aliases.get(alias) if at else _number(found, alias)
    if number is None:
        known = ", ".join([*found.aliases, *map(str, found.versions)]) or "none"
        raise ValueError(
            f"{letter}={name}: MLflow has no such version of {kind}; aliases and versions: {known}"
        )
    return of_number(letter, found, number, temporary)


def of_number(letter: str, found: Registered, number: int, temporary: Path) -> Side:
    """Return the side of a version by number; links go into a temporary folder."""
    version = found.versions[number]
    name = f"{found.kind} version {number}"
    origin = f"{found.name} version {number} in MLflow"
    runs = [run for run in (find_run(version.run_id or ""),) if run is not None]
    return linked_side(
        letter, name, temporary / letter, recorded=_recorded(version), runs=runs, origin=origin
    )


def has_champion() -> bool:
    """Return whether any kind has a champion; a store that does not exist has none."""
    if store.is_own(store.tracking_uri()) and not store.STORE.exists():
        return False
    return any(Registered(kind).champion is not None for kind in KINDS)


def registered(hashes: Mapping[str, str]) -> dict[str, str]:
    """Return the state of each registered version of outputs, by the version's URI.

    The outputs are hashes by path. Empty while MLflow is away.
    """
    if store.is_own(store.tracking_uri()) and not store.STORE.exists():
        return {}
    try:
        return registry.answered(lambda: dict(_states(hashes)))
    except store.AwayError:
        return {}


def _states(hashes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for kind, spec in KINDS.items():
        found = Registered(kind)
        number = found.find(hashes[spec.output]) if spec.output in hashes else None
        if number is not None:
            aliases = [alias for alias, at in found.aliases.items() if at == number]
            decision = found.versions[number].tags.get("gate", "not judged")
            yield f"{URI}{found.name}/{number}", ", ".join([decision, *aliases])


def _of_all(letter: str, alias: str, temporary: Path) -> Side:
    """Return the side of all kinds' versions with an alias.

    Where two versions recorded different bytes for an output, the first kind's count, and the stage
    of the other kind is left out.
    """
    recorded: dict[str, str] = {}
    absent: dict[str, str] = {}
    runs, names = [], []
    for kind, spec in KINDS.items():
        found = Registered(kind)
        number = found.aliases.get(alias)
        if number is None:
            absent[spec.stage] = f"{kind} has no {alias}"
            continue
        outputs = _recorded(found.versions[number])
        if any(recorded.get(path, digest) != digest for path, digest in outputs.items()):
            absent[spec.stage] = (
                f"this {alias} was made from other data than the {alias} before: "
                f"{letter}={kind}@{alias} compares {kind} alone"
            )
            continue
        recorded |= outputs
        names.append(f"{kind} {number}")
        runs.append(find_run(found.versions[number].run_id or ""))
    if not recorded:
        raise ValueError(
            f"{letter}={alias}: no kind has a {alias} yet; `make pipeline` registers the models"
        )
    return linked_side(
        letter,
        alias,
        temporary / letter,
        recorded=recorded,
        runs=[run for run in runs if run is not None],
        origin=f"versions in MLflow: {', '.join(names)}",
        absent=absent,
    )


def _recorded(version: Any) -> dict[str, str]:
    return dict(_outputs(version))


def _outputs(version: Any) -> Iterator[tuple[str, str]]:
    for tag, digest in version.tags.items():
        if tag.startswith(f"{OUT}{ARTIFACTS}"):
            yield tag.removeprefix(OUT), digest


def _number(found: Registered, text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) in found.versions else None
