"""Write a model in a form that other tools open.

hf: a Hugging Face folder, whose card names the commit that makes the model, where HEAD's dvc.lock
records it; gguf: one file for llama.cpp and its like; book: the state dict of
"Build a Large Language Model (From Scratch)". Nothing that exists is replaced.
"""

import argparse
from pathlib import Path

from gptmill.cli import folders, options
from gptmill.cli.frame import show

HELP = "write a model for other tools"
FORMS = ("hf", "gguf", "book")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add from where, to where, in which form."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="what to write; must be new")
    parser.add_argument("--format", choices=FORMS, required=True, help="in which form")
    parser.add_argument(
        "--dtype", choices=options.DTYPES, default="float32", help="as saved (float32)"
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export and tell where."""
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
