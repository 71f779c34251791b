"""`python -m flows COMMAND`, the entry point behind `make`.

A command is a module of `commands/` with a `main`. The environment is set before the command's
module is imported, because prefect and mlflow read environment variables at import.
"""

import importlib
import sys
import traceback

from tasks.processes.process import Terminated, die_with_make, raise_on_sigterm
from tasks.project.environment import (
    ROOT,
    check_memory,
    check_state,
    memory_shortage,
    sentence,
    set_environment,
    use_own_source,
    wrong_environment,
)


def commands() -> dict[str, str]:
    """Return the module of each command, by the command's name.

    Commands are the files of the groups below `commands/`.
    """
    files = (ROOT / "flows" / "commands").glob("*/[!_]*.py")
    return {path.stem: f"flows.commands.{path.parent.name}.{path.stem}" for path in sorted(files)}


def main(arguments: list[str]) -> int:
    """Run a command and return its exit status.

    A user's mistake prints a single sentence and returns status 2. A signal returns 128 plus the
    signal's number.
    """
    if not arguments or arguments[0] not in commands():
        print(
            f"usage: python -m flows COMMAND, one of {', '.join(sorted(commands()))}",
            file=sys.stderr,
        )
        return 2
    raise_on_sigterm()
    die_with_make()
    try:
        set_environment()
        use_own_source()
        check_memory()
        check_state()
        status: int = importlib.import_module(commands()[arguments[0]]).main(arguments[1:])
    except (ValueError, OSError) as error:
        print(sentence(error), file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        shortage = memory_shortage("".join(traceback.format_exception(error)))
        if shortage is None:
            raise
        print(shortage, file=sys.stderr)
        return 2
    except ImportError as error:
        print(wrong_environment(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "stopped; finished work is kept, run the same command again to continue",
            file=sys.stderr,
        )
        return 130
    except Terminated as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.number
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
