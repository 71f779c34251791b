"""Measure how well a model predicts a text file (UTF-8, read as training text is read).

A window of N tokens slides over the text by STRIDE tokens. Every token but the first is predicted
exactly once: a window counts only predictions not made by an earlier window. Prints the loss
(mean nats per predicted token), the perplexity, the bits per byte, and the number of predicted
tokens.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from gptmill.cli import folders, options, registered
from gptmill.cli.frame import show
from gptmill.cli.texts import read_file

HELP = "how well a model predicts a text file: loss, perplexity, bits per byte"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the file and the sliding window."""
    registered.add_model(parser, "a checkpoint folder")
    parser.add_argument("file", type=Path, metavar="FILE", help="a text file, UTF-8")
    parser.add_argument(
        "--context-length", type=int, metavar="N", help="tokens of the window (the model's context)"
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="step of the window (the window's length)"
    )
    options.add_running(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read the file, measure the model and print the metrics."""
    folders.check_model(arguments.model, "language model")
    text = read_file(arguments.file)

    from gptmill.evaluation import perplexity

    generator = options.generator(arguments)
    length = arguments.context_length
    length = generator.context_length if length is None else length
    stride = length if arguments.stride is None else arguments.stride
    metrics = asdict(
        perplexity.measure(
            generator.model, generator.tokenizer, text, context_length=length, stride=stride
        )
    )
    if arguments.json:
        show(metrics)
    else:
        for name, value in metrics.items():
            print(f"{name.replace('_', ' '):14} {value}")
