"""`python -m flows COMMAND`: what `make` calls. Each command is a module here with a `main`.

The environment is set before the command's module is imported: prefect and mlflow read
it when they load.
"""

import importlib
import sys

from tasks._environment import ROOT, set_environment, use_own_source, wrong_environment
from tasks._process import Terminated, raise_on_sigterm


def commands() -> list[str]:
    """Return the commands: the modules of this folder that have no underscore before them."""
    found = (path.stem for path in (ROOT / "flows").glob("*.py"))
    return sorted(name for name in found if not name.startswith("_"))


def main(arguments: list[str]) -> int:
    """Run a command; a user's mistake is one sentence and status 2, a signal 128 and its number."""
    if not arguments or arguments[0] not in commands():
        print(f"usage: python -m flows COMMAND, one of {', '.join(commands())}", file=sys.stderr)
        return 2
    raise_on_sigterm()
    set_environment()
    use_own_source()
    try:
        status: int = importlib.import_module(f"flows.{arguments[0]}").main(arguments[1:])
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
