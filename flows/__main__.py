"""`python -m flows COMMAND`: what `make` calls. A command is a module of `commands/` with a `main`.

The environment is set before the command's module is imported: prefect and mlflow read
it when they load.
"""

import importlib
import sys

from tasks.processes.process import Terminated, raise_on_sigterm
from tasks.project.environment import (
    ROOT,
    set_environment,
    use_own_source,
    wrong_environment,
)


def commands() -> dict[str, str]:
    """Return the module of each command: the files of the groups below `commands/`."""
    files = (ROOT / "flows" / "commands").glob("*/[!_]*.py")
    return {path.stem: f"flows.commands.{path.parent.name}.{path.stem}" for path in sorted(files)}


def main(arguments: list[str]) -> int:
    """Run a command; a user's mistake is one sentence and status 2, a signal 128 and its number."""
    if not arguments or arguments[0] not in commands():
        print(
            f"usage: python -m flows COMMAND, one of {', '.join(sorted(commands()))}",
            file=sys.stderr,
        )
        return 2
    raise_on_sigterm()
    set_environment()
    use_own_source()
    try:
        status: int = importlib.import_module(commands()[arguments[0]]).main(arguments[1:])
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except ImportError as error:
        print(wrong_environment(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; whatever was finished is kept, the same command goes on", file=sys.stderr)
        return 130
    except Terminated as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.number
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
