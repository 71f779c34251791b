"""Render Jinja chat templates under limits: a program, started by template_process.py.

A template comes from a model's folder and is foreign code: a loop or a padded string can ask for
endless time and memory, and no Jinja sandbox bounds either. Limits of the operating system do: this
program renders in a process of its own, and the kernel ends the process at a limit. The arguments
are the seconds of processor time for a rendering and the bytes of memory.

Each line of standard input is a JSON object with the template's `source` and `variables`; each
line of standard output is a JSON object with the `text`, or the `error` and the template's `line`.
"""

import json
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from traceback import walk_tb
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SPARE_CHARACTERS = 2**20
"""A text may be four times as long as the variables, and this number of characters longer."""
ERROR_CHARACTERS = 300


def main(cpu_seconds: float, memory_bytes: int) -> None:
    """Answer each line of standard input until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody reads the answer of a killed parent
    if sys.platform != "darwin":  # macOS has no such limit: the processor time alone is bounded
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        # at the limit SIGPROF ends the process, even inside a single long operation
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        answer = _answer(line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def _answer(line: bytes) -> bytes:
    most = SPARE_CHARACTERS + 4 * len(line)
    try:
        return json.dumps(_reply(**json.loads(line), most=most)).encode()
    except MemoryError as error:
        return json.dumps(_error(_too_large(), _line(error))).encode()


def _reply(source: str, variables: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Return the rendered text, or the error of the template.

    Only the template's own operations run inside `try`, so any exception is the template's.
    """
    try:
        text = "".join(_within(_compile(source).generate(**variables), most))
        text.encode("utf-8")  # fails for half a surrogate pair
        return {"text": text}
    except jinja2.TemplateSyntaxError as error:
        return _error(f"is not valid Jinja: {error.message}", error.lineno)
    except jinja2.TemplateError as error:
        return _error(f"refuses these messages: {error}", _line(error))
    except MemoryError:
        raise
    except Exception as error:
        name = type(error).__name__
        return _error(f"refuses these messages: {name}: {error}", _line(error))


def _within(chunks: Iterator[str], most: int) -> Iterator[str]:
    n_characters = 0
    for chunk in chunks:
        n_characters += len(chunk)
        if n_characters > most:
            raise jinja2.TemplateError(f"the text becomes longer than {most:,} characters")
        yield chunk


def _too_large() -> str:
    memory_bytes, _ = resource.getrlimit(resource.RLIMIT_AS)
    return f"needs more than {memory_bytes // 2**20} MB of memory for these messages"


def _error(message: str, line: int | None) -> dict[str, Any]:
    short = " ".join(message[:ERROR_CHARACTERS].split())
    return {"error": short, "line": line}


def _line(error: Exception) -> int | None:
    """Return the template's line where the error arose."""
    steps = walk_tb(error.__traceback__)
    lines = [line for frame, line in steps if frame.f_code.co_filename == "<template>"]
    return lines[-1] if lines else None


# ---- Jinja, as Hugging Face's templates expect it


class _Generation(Extension):
    """Parses `{% generation %}`, the mark of an answer in a template, as the plain body."""

    tags = {"generation"}  # noqa: RUF012 (required by jinja2)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@cache
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    # strftime_now stays undefined: templates test for the function and work without. A template
    # that needs the date is refused, because equal messages would give a new prompt every day.
    return environment.from_string(source)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, **settings: Any
) -> str:
    """Return plain JSON; jinja2's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **settings)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
