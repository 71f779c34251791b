"""Command line of a single stage: `python -m tasks STAGE`.

DVC runs this command; people run `make STAGE`. Exit status: 0 success; 2 a user's mistake,
reported in one sentence; 1 a bug in this project, with a traceback; 130 or 143 ended by a signal.
"""

import os
import sys
import traceback

from tasks.frame.ranks import (
    LOST,
    RanksError,
    failed,
    is_lost,
    joined,
)
from tasks.processes.process import (
    Terminated,
    die_with_parent,
    end_after_sigterm,
    raise_on_sigterm,
)
from tasks.processes.receipt import tell
from tasks.project.environment import (
    check_memory,
    check_state,
    memory_shortage,
    sentence,
    set_environment,
    use_own_source,
    wrong_environment,
)

TERMINATE_AFTER_S = 20.0
"""Seconds a rank has to end: a rank waiting for a dead rank's answer would never end."""


def main(arguments: list[str]) -> int:
    """Run the named stage from this tree's own code."""
    raise_on_sigterm()
    die_with_parent()
    try:
        set_environment()
        use_own_source()
        check_memory()
        check_state()
        return run(arguments)
    except (ValueError, OSError) as error:
        return fail(sentence(error), 2)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except Terminated as stop:
        from tasks.tracking.runs import close_orphaned_parents

        if "RANK" not in os.environ:
            close_orphaned_parents()
        return fail(str(stop), 128 + stop.number)


def run(arguments: list[str]) -> int:
    """Check the name, execute the stage, return the exit status."""
    try:
        from tasks.project.graph import stages

        names = list(stages())
        if len(arguments) != 1 or arguments[0] not in names:
            words = " ".join(arguments) or "nothing"
            return fail(
                f"usage: python -m tasks STAGE, one of {', '.join(names)}; given: {words}", 2
            )
        from tasks.frame.stage import execute

        if joined():
            end_after_sigterm(TERMINATE_AFTER_S)
        execute(arguments[0])
    except RanksError as error:
        return fail(str(error), error.status)
    except (ValueError, OSError) as error:
        return fail(sentence(error), 2)
    except ImportError as error:
        return fail(wrong_environment(error), 2)
    except Exception as error:
        if is_lost(error):
            return fail(str(error), LOST)
        shortage = memory_shortage("".join(traceback.format_exception(error)))
        if shortage is not None:
            return fail(shortage, 2)
        traceback.print_exc()
        return fail(f"{type(error).__name__}: {error}", 1)
    return 0


def fail(message: str, status: int) -> int:
    """Report a failure on stderr and in the receipt.

    A launched rank hands the message to the launcher instead.
    """
    if failed(message):
        return status
    rank = os.environ.get("RANK", "0")
    print(message if rank == "0" else f"rank {rank}: {message}", file=sys.stderr, flush=True)
    if rank == "0":
        tell("error", message=message)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
