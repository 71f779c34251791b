"""The section `gate` of params.yaml: the rule of each kind of model."""

from gptmill.comparing.rule import PRIMARY, Rule
from tasks.project.params import checked

SECTION = "gate"


def rules() -> dict[str, Rule]:
    """Return the rule of each kind; raise ValueError with one line per mistake."""
    found = checked(dict[str, Rule], SECTION)
    unknown, missing = found.keys() - PRIMARY.keys(), PRIMARY.keys() - found.keys()
    mistakes = [
        *(f"{kind} is unknown: allowed are {', '.join(PRIMARY)}" for kind in sorted(unknown)),
        *(f"{kind} is missing" for kind in sorted(missing)),
        *(
            f"{kind}.primary is {found[kind].primary}: allowed are {', '.join(figures)}"
            for kind, figures in PRIMARY.items()
            if kind in found and found[kind].primary not in figures
        ),
    ]
    if mistakes:
        raise ValueError("\n".join(f"params.yaml: {SECTION}.{mistake}" for mistake in mistakes))
    return found


def mistake() -> str | None:
    """Return the mistakes of the section, None without a mistake."""
    try:
        rules()
    except ValueError as error:
        return str(error)
    return None
