"""Chat with an assistant in the model's own chat template.

Each line typed is a message, and a chat may have many turns. Ctrl-C stops an answer, and the part
printed by then stays in the conversation; Ctrl-D ends the chat. The history is kept as whole
turns: where a prompt would leave less than --max-new-tokens (at most half the context) for the
answer, the oldest turns are left out and a line on standard error reports their number. In a
terminal, a line that begins with / is a command, and /help lists the commands. Standard input may
be a pipe: each line is a message.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from gptmill.cli import folders, options, registered
from gptmill.cli.frame import note

if TYPE_CHECKING:
    from gptmill.generation.completion import TextGenerator
    from gptmill.generation.decoder import GenerationConfig
    from gptmill.tokenizer.chat_template import Template

HELP = "chat with an assistant"
Message = dict[str, str]
COMMANDS = {
    "/help": "list the commands",
    "/reset": "begin a new conversation, with the same system message",
    "/system TEXT": "begin a new conversation with the system message TEXT, or without one",
    "/quit": "end, as Ctrl-D does",
}
"""The commands in a terminal. A message that begins with / needs a space before."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model and the options for its answers."""
    registered.add_model(parser, "an assistant's folder")
    parser.add_argument("--system", metavar="TEXT", help="a message before the conversation")
    options.add_sampling(parser, max_new_tokens=512)
    options.add_running(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read messages and print answers until the input ends."""
    folders.check_model(arguments.model, "language model")
    config = options.sampling(arguments)
    system = None if arguments.system is None else options.utf8(arguments.system, "--system")

    generator = options.generator(arguments)
    if generator.template is None:
        raise ValueError(
            f"{arguments.model} has no chat template and is not an assistant; "
            "use `gptmill generate` to continue a text with the model"
        )
    history: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for number, message in enumerate(_messages(history)):
        history.append({"role": "user", "content": message})
        try:
            answer = _answer(
                generator, generator.template, history, config, arguments.seed + number
            )
        except ValueError as error:
            if not sys.stdin.isatty():
                raise
            note(str(error))
            history.pop()
        else:
            history.append({"role": "assistant", "content": answer})


def _messages(history: list[Message]) -> Iterator[str]:
    """Yield the lines of the input, without empty lines; carry out the commands of a terminal."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        import readline  # noqa: F401 - gives `input` line editing and a history

        note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends.")
    while True:
        try:
            line = input("> ") if at_terminal else _piped_line()
        except EOFError:
            break
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            note("\n(Ctrl-D ends)")
            continue
        if at_terminal and line.startswith("/"):
            if line.split() == ["/quit"]:
                return
            note(obey(options.utf8(line, "the command"), history))
        elif line.strip():
            yield options.utf8(line, "the message")
    if at_terminal:
        print()


def obey(line: str, history: list[Message]) -> str:
    """Carry out a command on the conversation; return what to print."""
    name, _, text = line.partition(" ")
    text = text.strip()
    if name == "/system":
        history[:] = [{"role": "system", "content": text}] if text else []
        return "(a new conversation, with this system message)" if text else NEW
    if text or name not in COMMANDS:
        return f"no command {line.strip()}; /help lists the commands"
    if name == "/reset":
        history[:] = [message for message in history if message["role"] == "system"]
        return NEW
    width = max(map(len, COMMANDS))
    return "\n".join(f"{command:{width}}  {effect}" for command, effect in COMMANDS.items())


NEW = "(a new conversation)"


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
    """Print the answer during decoding and return the text.

    After Ctrl-C, returns the text printed by then.
    """
    from gptmill.tokenizer.chat_template import fit_conversation

    room = min(config.max_new_tokens, generator.context_length // 2)
    longest = generator.context_length - room
    ids, left_out = fit_conversation(history, template, generator.tokenizer, longest=longest)
    if left_out:
        note(f"(the model's context is full: left out the oldest turns, {left_out} in all)")
    most = min(config.max_new_tokens, generator.context_length - len(ids))
    texts: list[str] = []
    try:
        config = replace(config, max_new_tokens=most)
        for delta in generator.stream(ids, config, stops=(), seed=seed):
            texts.append(delta.text)
            sys.stdout.write(options.printable(delta.text))
            sys.stdout.flush()
    except KeyboardInterrupt:
        note(" (stopped)")
    print(flush=True)
    return "".join(texts)
