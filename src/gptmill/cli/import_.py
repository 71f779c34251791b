"""Make a checkpoint folder of a model in any form that it is found in.

SOURCE is a Hugging Face folder or hub id (with --revision), a GGUF file, a .pth of the book, or
OpenAI's TensorFlow checkpoint folder. Nothing that exists is replaced.
"""

import argparse
import os
from pathlib import Path

from gptmill.cli import folders, options
from gptmill.cli.frame import show

HELP = "make a checkpoint folder of a model in another form"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add from where, to where, and what the source does not say."""
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file or a hub id")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; must be new")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="where its tokenizer is")
    parser.add_argument("--revision", metavar="SHA", help="the commit of a hub id")
    parser.add_argument("--n-heads", type=options.at_least_1, metavar="N", help="heads of a .pth")
    parser.add_argument(
        "--dtype", choices=options.DTYPES, default="float32", help="as saved (float32)"
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Import and tell where."""
    folders.check_free(arguments.out)
    # the hub's client reads these when it is imported; what went wrong is one sentence in the end
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")

    import torch

    from gptmill.formats.importing import import_model

    found = import_model(
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
                "revision": found.revision,
                "form": found.form,
                "out": str(arguments.out),
                "parameters": found.n_parameters,
                "tensors": found.n_tensors,
                "files": dict(found.files),
            }
        )
    else:
        print(f"{arguments.out}: {found.n_parameters:,} parameters from {found.form}")
