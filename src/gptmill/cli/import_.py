"""Import a model of any format into a checkpoint folder.

SOURCE is a Hugging Face folder or hub id (with --revision), a GGUF file, a .pth file of the book,
or OpenAI's TensorFlow checkpoint folder. Existing files are never replaced.
"""

import argparse
import os
from pathlib import Path

from gptmill.cli import folders, options
from gptmill.cli.frame import show

HELP = "import a model into a checkpoint folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the source, output folder, and details the source lacks."""
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file or a hub id")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; must be new")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="folder of the tokenizer")
    parser.add_argument("--revision", metavar="SHA", help="the commit of a hub id")
    parser.add_argument(
        "--n-heads", type=options.at_least_1, metavar="N", help="heads of a .pth file"
    )
    parser.add_argument(
        "--dtype",
        choices=options.DTYPES,
        default="float32",
        help="dtype of the saved weights (float32)",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Import the model and print a summary."""
    folders.check_free(arguments.out)
    # the hub client reads both variables on import; a failure is reported in a single sentence at
    # the end, without the client's own messages
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")

    import torch

    from gptmill.formats.importing import import_model

    imported = import_model(
        arguments.source,
        arguments.out,
        tokenizer=arguments.tokenizer,
        revision=arguments.revision,
        n_heads=arguments.n_heads,
        dtype=getattr(torch, arguments.dtype),
    )
    if arguments.json:
        show(
            {
                "source": arguments.source,
                "revision": imported.revision,
                "form": imported.form,
                "out": str(arguments.out),
                "parameters": imported.n_parameters,
                "tensors": imported.n_tensors,
                "files": dict(imported.files),
            }
        )
    else:
        print(f"{arguments.out}: {imported.n_parameters:,} parameters from {imported.form}")
