"""Measure how well a model predicts a text file (UTF-8).

A window of N tokens slides over the text by STRIDE, and every token but the first is predicted
once: a window counts those of its N predictions that none before it has made. Prints the loss
(mean nats a predicted token), the perplexity, the bits a byte, and how many were predicted.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from gptmill.cli import folders, options
from gptmill.cli.frame import show

HELP = "how well a model predicts a text file: loss, perplexity, bits a byte"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the file, and how the window slides."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint folder")
    parser.add_argument("file", type=Path, metavar="FILE", help="a text file, UTF-8")
    parser.add_argument("--context-length", type=int, metavar="N", help="window (the model's)")
    parser.add_argument("--stride", type=int, metavar="N", help="step of the window (its length)")
    options.add_running(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read, measure, print."""
    folders.check_model(arguments.model, "language model")
    text = _read(arguments.file)

    from gptmill.evaluation import perplexity

    generator = options.generator(arguments)
    length = arguments.context_length
    length = generator.context_length if length is None else length
    stride = length if arguments.stride is None else arguments.stride
    found = asdict(
        perplexity.measure(
            generator.model, generator.tokenizer, text, context_length=length, stride=stride
        )
    )
    if arguments.json:
        show(found)
    else:
        for name, value in found.items():
            print(f"{name.replace('_', ' '):14} {value}")


def _read(path: Path) -> str:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a text file is needed")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
