"""Arguments shared by several verbs, and checks of user input."""

import argparse
import math
import os
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from gptmill.generation.completion import TextGenerator
    from gptmill.generation.decoder import GenerationConfig
    from gptmill.generation.quantization import WeightFormat

DTYPES = ("float32", "bfloat16", "float16")
"""The dtypes for saving weights."""

# The values of --weights, mapped to the formats of quantization.py.
WEIGHTS: "dict[str, WeightFormat]" = {"float32": "fp32", "bf16": "bf16", "int8": "int8"}
DEVICES = ("auto", "cpu", "cuda", "mps")


def finite(text: str) -> float:
    """Parse a number and refuse infinities and NaN."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


finite.__name__ = "number"  # the name of the type in argparse's error message


def at_least_1(text: str) -> int:
    """Parse a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


at_least_1.__name__ = "whole number"


def origin(text: str) -> str:
    """Parse the origin of a site as browsers send it: scheme, host, and port unless the default."""
    try:
        url = urlsplit(text.lower())
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if f"{url.scheme}://{url.netloc}" != text.lower() or not url.hostname or "*" in text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an origin; allowed are scheme, host and port without a path, "
            "such as https://app.example.org"
        )
    is_default = port is not None and port == {"http": 80, "https": 443}.get(url.scheme)
    return text.lower().removesuffix(f":{port}") if is_default else text.lower()


def utf8(text: str, name: str) -> str:
    """Return a text from the command line.

    Raises ValueError where the text's bytes are not UTF-8.
    """
    if text != text.encode("utf-8", "replace").decode("utf-8"):
        raise ValueError(f"{name} is not UTF-8")
    return text


def read_stdin(name: str) -> str:
    """Read all of standard input.

    Raises ValueError where the input is not UTF-8.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, read from standard input, is not UTF-8: {error}") from None


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print the result as a single line of JSON"
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the device and the precision of the model's weights."""
    parser.add_argument(
        "--weights",
        choices=list(WEIGHTS),
        default="float32",
        help="precision of the weights: fewer bits, faster (float32)",
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="device to run on (cpu)")


def add_sampling(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Add the options for choosing the next token."""
    add = parser.add_argument
    add(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"maximum number of new tokens ({max_new_tokens})",
    )
    add(
        "--temperature",
        type=finite,
        default=0.0,
        help="0: the likeliest token; 1: sample from the model's own distribution (0)",
    )
    add(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="sample from the K likeliest tokens; 0: from all (0)",
    )
    add(
        "--top-p",
        type=finite,
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens of total probability P (1)",
    )
    add(
        "--min-p",
        type=finite,
        default=0.0,
        metavar="P",
        help="drop tokens below P times the highest probability (0)",
    )
    add(
        "--repetition-penalty",
        type=finite,
        default=1.0,
        metavar="R",
        help="above 1: fewer repetitions (1)",
    )
    add("--seed", type=int, default=0, help="equal seeds give equal texts (0)")


def sampling(arguments: argparse.Namespace) -> "GenerationConfig":
    """Return the config from the arguments of `add_sampling`.

    GenerationConfig validates the numbers.
    """
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
    """Load the model of the arguments `model`, `--weights` and `--device`."""
    from gptmill.device import device_name
    from gptmill.generation.completion import TextGenerator

    device = device_name(arguments.device)
    return TextGenerator.open(arguments.model, weights=WEIGHTS[arguments.weights], device=device)


def printable(text: str) -> str:
    """Return text that is safe to print.

    On a terminal, control characters would act as commands: each is replaced by U+FFFD.
    """
    if not sys.stdout.isatty():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)


def secret(environment: str | None, file: str | None) -> str | None:
    """Read the key from an environment variable or a file.

    The key is never an argument: a process's arguments are public.
    """
    if environment is not None:
        source, content = f"the environment variable {environment}", os.environ.get(environment, "")
    elif file is not None:
        with open(file, encoding="utf-8") as opened:  # noqa: PTH123
            source, content = file, opened.read()
    else:
        return None
    key = content.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{source} holds no key: a key must be printable ASCII without spaces")
    return key
