"""Frame of all verbs: parser, error reports, JSON, exit status.

Exit status: 0 for success; 2 for a mistake the user can correct, reported in a single sentence on
standard error; 1 for a failure the user did not cause; 130 after Ctrl-C. If the reader of the
output closes the pipe (`| head`), the command ends at once, silently and with status 0.

A verb is a module of this folder, or `command` in a package, with `HELP`, `add_arguments(parser)`
and `run(arguments)`. Torch and the library are imported inside `run` to keep `gptmill --help` fast.
"""

import argparse
import importlib
import json
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from gptmill import memory

# The spins of a waiting thread of torch's OpenMP before it sleeps; stages have the same value, and
# tasks/project/environment.py the reason.
SPINNING = {"GOMP_SPINCOUNT": "10000"}
# modules of this folder that are not verbs
SHARED = ("frame", "folders", "options", "registered", "texts")


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in a single sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError, reported by `main` as a user's mistake."""
        raise ValueError(f"{message} (`{self.prog} --help` lists the allowed arguments)")


def verbs() -> dict[str, str]:
    """Return the module name of each verb.

    The module of `import` is import_.py: a Python keyword cannot name a module.
    """
    found = {
        module.name: f"gptmill.cli.{module.name}" + (".command" if module.ispkg else "")
        for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    }
    return {name.rstrip("_"): path for name, path in sorted(found.items()) if name not in SHARED}


def main(words: Sequence[str] | None = None) -> int:
    """Run the verb in `words` and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    if "OMP_WAIT_POLICY" not in os.environ:  # torch's OpenMP reads the environment once, at import
        for variable, value in SPINNING.items():
            os.environ.setdefault(variable, value)
    words = list(sys.argv[1:] if words is None else words)
    name = f"gptmill {words[0]}" if words and words[0] in verbs() else "gptmill"
    try:
        arguments = _parser(words).parse_args(words)
        memory.check_limit()
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
    """Print a message, not a result, on standard error."""
    print(message, file=sys.stderr, flush=True)


def _parser(words: Sequence[str]) -> Parser:
    """Return the parser.

    If `words` begin with a verb, only the module of the named verb is imported.
    """
    parser = Parser(prog="gptmill", description="Make, measure and talk to language models.")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    selected = words[0] if words and words[0] in verbs() else None
    if selected is None:
        parser.add_argument(
            "--version", action="version", version=f"gptmill {metadata.version('gptmill')}"
        )
    for verb, path in verbs().items():
        if selected in (None, verb):
            module = importlib.import_module(path)
            child = subparsers.add_parser(verb, help=module.HELP, description=module.__doc__)
            child.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_arguments(child)
            child.set_defaults(module=module)
    return parser


def _fail(name: str, error: BaseException) -> int:
    """Report an error on standard error; return the exit status."""
    if isinstance(error, KeyboardInterrupt):
        message, status = "interrupted", 130
    elif _is_user_error(error):
        message, status = _sentence(error), 2
    elif isinstance(error, MemoryError) or "out of memory" in str(error):
        message, status = "the machine does not have enough memory for the command", 1
    elif lack := memory.shortage("".join(traceback.format_exception(error))):
        message, status = lack, 1
    else:
        traceback.print_exception(error)
        message, status = f"{type(error).__name__}: {error}", 1
    _drop_output()
    note(f"{name}: {message}")
    return status


def _is_user_error(error: BaseException) -> bool:
    # safetensors reports a full disk or a truncated file with an exception class of its own
    return isinstance(error, ValueError | OSError) or type(error).__name__ == "SafetensorError"


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'standard output'}: {error.strerror}"
    return " ".join(str(error).split())


def _drop_output() -> None:
    """Redirect a closed or full standard output to /dev/null.

    Otherwise the interpreter's flush at exit would fail.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
