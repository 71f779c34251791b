"""Export a model in a format of other tools.

hf: a Hugging Face folder; if dvc.lock at HEAD records the model, the model card names the commit
that reproduces the model. gguf: a single file for llama.cpp and compatible tools. book: the state
dict of "Build a Large Language Model (From Scratch)". Existing files are never replaced.
"""

import argparse
from pathlib import Path

from gptmill.cli import folders, options
from gptmill.cli.frame import show

HELP = "export a model as a Hugging Face folder, a GGUF file or a state dict"
FORMS = ("hf", "gguf", "book")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the output path and the format."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="output path; must be new")
    parser.add_argument("--format", choices=FORMS, required=True, help="output format")
    parser.add_argument(
        "--dtype",
        choices=options.DTYPES,
        default="float32",
        help="dtype of the saved weights (float32)",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export the model and print the output path."""
    folders.check_any_model(arguments.model)
    folders.check_free(arguments.out)

    import torch

    from gptmill.formats.exporting import export_model
    from gptmill.records import recorded_at

    dtype = getattr(torch, arguments.dtype)
    commit = recorded_at(arguments.model)
    export_model(arguments.model, arguments.out, form=arguments.format, dtype=dtype, commit=commit)
    if arguments.json:
        show(
            {
                "model": str(arguments.model),
                "out": str(arguments.out),
                "format": arguments.format,
                "dtype": arguments.dtype,
                "commit": commit,
            }
        )
    else:
        print(arguments.out)
