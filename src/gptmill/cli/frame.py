"""What all verbs of the command line share: their list, errors, JSON, how they end.

Exit status: 0 done; 2 a mistake that the user can mend, told in one sentence on standard
error; 1 a fault that is not the user's; 130 ended by Ctrl-C. Where whoever reads the output
has gone (`| head`), the command ends at once, in silence and with status 0.

A verb is a module of this folder with `HELP`, `add_arguments(parser)` and `run(arguments)`.
It imports torch and the library inside `run`, so that `gptmill --help` is quick.
"""

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

SHARED = ("frame", "folders", "options")  # modules of this folder that are no verbs


class Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise what the frame tells as a user's mistake."""
        raise ValueError(f"{message} (`{self.prog} --help` tells what is allowed)")


def verbs() -> dict[str, str]:
    """Return each verb with its module: `import` is no name that a module can have."""
    files = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    names = [name for name in files if name not in SHARED and not name.startswith("__")]
    return {name.rstrip("_"): f"gptmill.cli.{name}" for name in names}


def main(words: Sequence[str] | None = None) -> int:
    """Run the verb that is named and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    given = list(sys.argv[1:] if words is None else words)
    name = f"gptmill {given[0]}" if given and given[0] in verbs() else "gptmill"
    try:
        arguments = _parser(given).parse_args(given)
        arguments.module.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    except (Exception, KeyboardInterrupt) as error:
        return _fail(name, error)
    return 0


def show(content: Any) -> None:
    """Print a result as JSON, in one line."""
    print(json.dumps(content, ensure_ascii=False, allow_nan=False), flush=True)


def note(message: str) -> None:
    """Tell a person something that is no result."""
    print(message, file=sys.stderr, flush=True)


def _parser(given: Sequence[str]) -> Parser:
    """Return the parser; of the verbs only the one that is named is imported, if one is."""
    parser = Parser(prog="gptmill", description="Make, measure and talk to language models.")
    found = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    named = given[0] if given and given[0] in verbs() else None
    for verb, path in verbs().items():
        if named in (None, verb):
            module = importlib.import_module(path)
            child = found.add_parser(verb, help=module.HELP, description=module.__doc__)
            child.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_arguments(child)
            child.set_defaults(module=module)
    return parser


def _fail(name: str, error: BaseException) -> int:
    """Tell what went wrong and return the exit status."""
    if isinstance(error, KeyboardInterrupt):
        message, status = "interrupted", 130
    elif _is_the_users(error):
        message, status = _sentence(error), 2
    elif isinstance(error, MemoryError) or "out of memory" in str(error):
        message, status = "the machine has not enough memory for this", 1
    else:
        traceback.print_exception(error)
        message, status = f"{type(error).__name__}: {error}", 1
    _drop_output()
    note(f"{name}: {message}")
    return status


def _is_the_users(error: BaseException) -> bool:
    # safetensors reports a full disk or a torn file by a class of its own
    return isinstance(error, ValueError | OSError) or type(error).__name__ == "SafetensorError"


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'standard output'}: {error.strerror}"
    return " ".join(str(error).split())


def _drop_output() -> None:
    """Let nothing be written at the interpreter's end to an output that takes nothing more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
