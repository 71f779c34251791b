"""`make gc`: list garbage on the disk; FREE=1 frees the garbage.

The present artifacts, the runs of the last nights, everything behind an alias or a registered
version, and the user's branches and tags are kept.
"""

from rich.console import Console
from rich.table import Table

from flows.commands.arguments import named
from flows.garbage import cache, history
from flows.garbage.plan import Row, plan
from tasks.processes import locks
from tasks.project.cache import cache_folder
from tasks.project.environment import ROOT
from tasks.tracking import registry
from tasks.tracking.outbox import finish_runs

NIGHTS = 30
USAGE = (
    "usage: make gc, with NIGHTS=30 to keep the runs of the last 30 nights, REFUSED=3 to keep only "
    "the newest 3 refused versions of each kind, and FREE=1 to free the listed garbage"
)


def main(arguments: list[str]) -> int:
    """Print the garbage, and free the garbage with FREE=1."""
    given = named(arguments, ("NIGHTS", "REFUSED", "FREE"), USAGE)
    nights, refused = _number(given, "NIGHTS"), _number(given, "REFUSED")
    if given.get("FREE", "1") != "1":
        raise ValueError(f"FREE={given['FREE']}: allowed is FREE=1; {USAGE}")

    def rows() -> list[Row]:
        nights_kept = NIGHTS if nights is None else nights
        return registry.answered(lambda: list(plan(nights=nights_kept, refused=refused)))

    if "FREE" not in given:
        _print(rows())
        print("nothing is freed yet: add FREE=1 to free the garbage above")
        return 0
    with locks.project("make gc"):
        finish_runs()  # a run that waits for MLflow is recent
        found = rows()
        _print(found)
        _free(found)
    print(f"freed {shown(sum(row.size for row in found))}")
    return 0


def _number(given: dict[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is not None and not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{name}={text} is not a whole number from 0; {USAGE}")
    return None if text is None else int(text)


def _free(rows: list[Row]) -> None:
    for row in rows:
        for free in row.frees:
            free()
    history.shrink()


def _print(rows: list[Row]) -> None:
    table = Table(show_footer=True)
    table.add_column("not needed", footer="total")
    table.add_column("count", justify="right", footer=str(sum(len(row.frees) for row in rows)))
    table.add_column("size", justify="right", footer=shown(sum(row.size for row in rows)))
    for row in rows:
        table.add_row(row.kind, str(len(row.frees)), shown(row.size))
    Console().print(table)
    if not cache.is_own():
        print(
            f"DVC's cache, {cache_folder(ROOT)}, lies outside the project and may serve "
            "other projects: nothing in the cache is freed"
        )


def shown(size: int) -> str:
    """Format a number of bytes in MB."""
    return f"{size / 1e6:,.1f} MB"
