"""Label texts with a classifier.

Prints a line per text: the label, the probability of each class, and the text, separated by tabs;
labels and texts with tabs or ends of lines are quoted as JSON. With --json, prints a list with an
object {"text", "label", "probabilities"} per text, in the order given. If TEXT is -, each line of
standard input is a text; --file reads lines, the column `text` of a .csv, or the field `text` of
each line of a .jsonl.
"""

import argparse
from pathlib import Path

from gptmill.cli import folders, options, registered
from gptmill.cli.frame import note, show
from gptmill.cli.texts import one_line, read_texts

HELP = "label texts with a classifier"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and the texts."""
    registered.add_model(parser, "a classifier's folder")
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text to label; -: the lines of standard input"
    )
    parser.add_argument("--file", type=Path, help="texts: lines, .csv with `text`, or .jsonl")
    parser.add_argument(
        "--device", choices=options.DEVICES, default="cpu", help="device to run on (cpu)"
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Load the classifier, label the texts and print the labels."""
    texts = read_texts(arguments.texts, arguments.file)
    folders.check_model(arguments.model, "classifier")

    from gptmill.checkpoint.checkpoint import load_classifier
    from gptmill.device import device_name
    from gptmill.finetuning.classification import encode, predict
    from gptmill.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(arguments.model)
    model, names = load_classifier(arguments.model, mapped=True)
    rows, n_cut = encode(texts, tokenizer, model.config.context_length)
    if n_cut:
        note(f"{n_cut} of {len(texts)} texts are longer than the context and were truncated")
    device = device_name(arguments.device)
    probabilities = predict(
        model.to(device), rows, batch_size=32, pad_id=tokenizer.pad_id, device=device
    )  # (N, K)
    results = [
        {
            "text": text,
            "label": names[row.argmax()],
            "probabilities": dict(zip(names, row.tolist(), strict=True)),
        }
        for text, row in zip(texts, probabilities, strict=True)
    ]
    if arguments.json:
        show(results)
        return
    for text, row in zip(texts, probabilities, strict=True):
        cells = [one_line(name) for name in names]
        listed = "  ".join(f"{cell} {p:.4f}" for cell, p in zip(cells, row, strict=True))
        print(f"{cells[row.argmax()]}\t{listed}\t{options.printable(one_line(text))}")
