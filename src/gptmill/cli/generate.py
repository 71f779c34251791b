"""Continue a prompt.

Prints the continuation during decoding, without the prompt. With --json, prints a single object
{"text", "ids", "tokens_per_second", "prompt_tokens", "dropped_tokens"} at the end: the
continuation, the new ids, the number of new ids per second from the start of reading the prompt to
the last id, the ids of the prompt, and how many of these the model did not read, since the prompt
is longer than the context. If PROMPT is -, the prompt is read from standard input.
"""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from gptmill.cli import folders, options, registered
from gptmill.cli.frame import note, show

if TYPE_CHECKING:
    from gptmill.generation.completion import Delta

HELP = "continue a prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the prompt and the decoding options."""
    registered.add_model(parser, "a checkpoint folder")
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue; -: standard input")
    options.add_sampling(parser, max_new_tokens=100)
    parser.add_argument("--beams", type=options.at_least_1, default=1, help="beam search (1: none)")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; repeatable",
    )
    options.add_running(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read the prompt, decode a continuation and print the text."""
    argument = arguments.prompt
    prompt = options.read_stdin("PROMPT") if argument == "-" else options.utf8(argument, "PROMPT")
    if not prompt:
        raise ValueError("PROMPT is empty: give at least 1 character to continue")
    stops = [options.utf8(stop, "--stop") for stop in arguments.stop]
    if not all(stops):
        raise ValueError("--stop is empty: an empty string would end every text at the start")
    folders.check_model(arguments.model, "language model")
    config = options.sampling(arguments)

    generator = options.generator(arguments)
    ids = generator.tokenizer.encode_prompt(prompt)
    context = generator.context_length
    n_dropped = max(0, len(ids) - context)
    if n_dropped:
        note(
            f"the prompt has {len(ids):,} tokens and the model reads {context:,}: the first "
            f"{n_dropped:,} are dropped"
        )
    elif len(ids) + config.max_new_tokens > context:
        note(
            f"{len(ids):,} tokens of prompt and {config.max_new_tokens:,} new ones are more than "
            f"the {context:,} that the model reads: the oldest are dropped on the way"
        )
    start = time.perf_counter()
    deltas: list[Delta] = []
    for delta in generator.stream(ids, config, stops=stops, seed=arguments.seed):
        deltas.append(delta)
        if not arguments.json:
            sys.stdout.write(options.printable(delta.text))
            sys.stdout.flush()
    seconds = time.perf_counter() - start
    new_ids = [delta.id for delta in deltas if delta.id is not None]
    if arguments.json:
        text = "".join(delta.text for delta in deltas)
        show(
            {
                "text": text,
                "ids": new_ids,
                "tokens_per_second": len(new_ids) / seconds,
                "prompt_tokens": len(ids),
                "dropped_tokens": n_dropped,
            }
        )
    elif sys.stdout.isatty():
        print()
