"""Arguments of `make` commands: words of the form NAME=value."""

from collections.abc import Collection, Sequence


def named(arguments: Sequence[str], allowed: Collection[str], usage: str) -> dict[str, str]:
    """Return the values by name, without empty values.

    make gives an unset variable as an empty value. Raises ValueError, with `usage`, for other words
    and other names.
    """
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    if not all("=" in word for word in arguments) or given.keys() - set(allowed):
        raise ValueError(f"{usage}; given: {' '.join(arguments)}")
    return {name: value for name, value in given.items() if value}
