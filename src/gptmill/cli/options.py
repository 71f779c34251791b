"""Arguments that several verbs have, and the checks of what a person types."""

import argparse
import math
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptmill.generation.completion import TextGenerator
    from gptmill.generation.decoder import GenerationConfig
    from gptmill.generation.quantization import WeightFormat

DTYPES = ("float32", "bfloat16", "float16")
"""The types in which weights are saved."""

# What --weights calls the layouts of quantization.py.
WEIGHTS: "dict[str, WeightFormat]" = {"float32": "fp32", "bf16": "bf16", "int8": "int8"}
DEVICES = ("auto", "cpu", "cuda", "mps")


def finite(text: str) -> float:
    """Read a number that is no infinity and no NaN."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


finite.__name__ = "number"  # what argparse calls it in its message


def at_least_1(text: str) -> int:
    """Read a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


at_least_1.__name__ = "whole number"


def utf8(text: str, name: str) -> str:
    """Return a text from the command line; raise ValueError where its bytes are no UTF-8."""
    if text != text.encode("utf-8", "replace").decode("utf-8"):
        raise ValueError(f"{name} is not UTF-8")
    return text


def read_stdin(name: str) -> str:
    """Return all of standard input, which must be UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, read from standard input, is not UTF-8: {error}") from None


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add where and in what precision the model runs."""
    parser.add_argument(
        "--weights",
        choices=list(WEIGHTS),
        default="float32",
        help="precision of the weights: fewer bits, faster (float32)",
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where to run (cpu)")


def add_sampling(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Add how the next token is chosen."""
    add = parser.add_argument
    add(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"tokens to write at most ({max_new_tokens})",
    )
    add("--temperature", type=finite, default=0.0, help="0: the likeliest token; 1: as drawn (0)")
    add("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest; 0: all (0)")
    add("--top-p", type=finite, default=1.0, metavar="P", help="draw from the likeliest share (1)")
    add("--min-p", type=finite, default=0.0, metavar="P", help="no token below P times the best")
    add("--repetition-penalty", type=finite, default=1.0, metavar="R", help="above 1: repeat less")
    add("--seed", type=int, default=0, help="equal seeds give equal texts (0)")


def sampling(arguments: argparse.Namespace) -> "GenerationConfig":
    """Return the config of the arguments of `add_sampling`; the class checks the numbers."""
    from gptmill.generation.decoder import GenerationConfig

    return GenerationConfig(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        beams=getattr(arguments, "beams", 1),
    )


def generator(arguments: argparse.Namespace) -> "TextGenerator":
    """Open the model of the arguments `model`, `--weights` and `--device`."""
    from gptmill.device import device_name
    from gptmill.generation.completion import TextGenerator

    device = device_name(arguments.device)
    return TextGenerator.open(arguments.model, weights=WEIGHTS[arguments.weights], device=device)


def printable(text: str) -> str:
    """Return text that is safe to print: on a terminal, control characters would command it."""
    if not sys.stdout.isatty():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


def secret(environment: str | None, file: str | None) -> str | None:
    """Return the key from an environment variable or a file: a process's arguments are public."""
    if environment is not None:
        where, found = f"the environment variable {environment}", os.environ.get(environment, "")
    elif file is not None:
        with open(file, encoding="utf-8") as opened:  # noqa: PTH123
            where, found = file, opened.read()
    else:
        return None
    key = found.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{where} holds no key: it must be printable ASCII without spaces")
    return key
