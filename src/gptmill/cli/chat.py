"""Talk with an assistant, many turns, in the model's own chat template.

Each line typed is a message. Ctrl-C stops an answer, which stays in the conversation as far
as it came; Ctrl-D ends. What lies behind is kept as whole turns: where a prompt would leave
less than --max-new-tokens (at most half the context) for the answer, the oldest turns are left
out and a line on standard error says so. Standard input may be a pipe: a line is a message.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gptmill.cli import folders, options
from gptmill.cli.frame import note

if TYPE_CHECKING:
    from gptmill.generation.completion import TextGenerator
    from gptmill.generation.decoder import GenerationConfig
    from gptmill.tokenizer.chat_template import Template

HELP = "talk with an assistant"
Message = dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and how it answers."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="an assistant's folder")
    parser.add_argument("--system", metavar="TEXT", help="a message that stands before all others")
    options.add_sampling(parser, max_new_tokens=512)
    options.add_running(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read messages and print answers until there are no more messages."""
    folders.check_model(arguments.model, "language model")
    config = options.sampling(arguments)
    system = None if arguments.system is None else options.utf8(arguments.system, "--system")

    generator = options.generator(arguments)
    if generator.template is None:
        raise ValueError(
            f"{arguments.model} has no chat template: it is no assistant; "
            "`gptmill generate` continues a text with it"
        )
    history: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for number, said in enumerate(_messages()):
        history.append({"role": "user", "content": said})
        try:
            answered = _answer(
                generator, generator.template, history, config, arguments.seed + number
            )
        except ValueError as error:
            if not sys.stdin.isatty():
                raise
            note(str(error))
            history.pop()
        else:
            history.append({"role": "assistant", "content": answered})


def _messages() -> Iterator[str]:
    """Yield what is typed, line by line; empty lines are passed over."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        import readline  # noqa: F401 - its import lets `input` edit the line and recall others

        note("Ctrl-C stops an answer, Ctrl-D ends.")
    while True:
        try:
            said = input("> ") if at_terminal else _piped_line()
        except EOFError:
            break
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            note("\n(Ctrl-D ends)")
            continue
        if said.strip():
            yield options.utf8(said, "the message")
    if at_terminal:
        print()


def _piped_line() -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"a line of standard input is not UTF-8: {error}") from None


def _answer(
    generator: "TextGenerator",
    template: "Template",
    history: list[Message],
    config: "GenerationConfig",
    seed: int,
) -> str:
    """Print the answer as it is written and return what was written before Ctrl-C, if it came."""
    from gptmill.tokenizer.chat_template import fit

    room = min(config.max_new_tokens, generator.context_length // 2)
    longest = generator.context_length - room
    ids, left_out = fit(history, template, generator.tokenizer, longest=longest)
    if left_out:
        note(f"(left out, as the model's context is full: the oldest turns, {left_out} in all)")
    most = min(config.max_new_tokens, generator.context_length - len(ids))
    written: list[str] = []
    try:
        config = replace(config, max_new_tokens=most)
        for delta in generator.stream(ids, config, stops=(), seed=seed):
            written.append(delta.text)
            sys.stdout.write(options.printable(delta.text))
            sys.stdout.flush()
    except KeyboardInterrupt:
        note(" (stopped)")
    print(flush=True)
    return "".join(written)
