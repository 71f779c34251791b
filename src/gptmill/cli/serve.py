"""Serve a model to OpenAI clients, with a chat page.

Paths: /v1/chat/completions (for an assistant), /v1/completions, /v1/models, /health, and / for
the chat page. Only this machine can reach the server by default. A server that --host opens to
the network needs a key, from an environment variable or a file. Pages of other sites are refused
unless --allow-origin names the site; CORS preflights of a named site are answered without the key.
SIGINT or SIGTERM ends the server with status 0.
"""

import argparse
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from gptmill.cli import folders, options, registered
from gptmill.cli.frame import note

if TYPE_CHECKING:
    from gptmill.serving.server import Admission

PREFILL_BUDGET = 256  # prompt ids prefilled in a step, while answers in progress wait

HELP = "serve a model to OpenAI clients, with a chat page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, address, access rules and limits."""
    add = parser.add_argument
    registered.add_model(parser, "a checkpoint folder")
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    add("--port", type=int, default=8000, help="port; 0: any free port (8000)")
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--api-key-env", metavar="NAME", help="environment variable with the key")
    key.add_argument("--api-key-file", metavar="FILE", help="file with the key")
    key.add_argument("--no-key", action="store_true", help="allow clients without a key")
    add(
        "--allow-origin",
        type=options.origin,
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a site whose pages may use the server, as https://app.example.org; repeatable",
    )
    add("--name", help="model name for clients (the folder's name)")
    add(
        "--at-once",
        type=options.at_least_1,
        default=4,
        metavar="N",
        help="answers decoded together (4)",
    )
    add("--max-waiting", type=int, default=32, metavar="N", help="requests that may wait (32)")
    add(
        "--context-length",
        type=options.at_least_1,
        metavar="N",
        help="tokens of prompt and answer; fewer take less memory (the model's context)",
    )
    add(
        "--max-prompt-tokens",
        type=options.at_least_1,
        metavar="N",
        help="longest prompt (the context length minus 1)",
    )
    add(
        "--max-new-tokens",
        type=options.at_least_1,
        metavar="N",
        help="longest answer (the rest of the context)",
    )
    options.add_running(parser)


def run(arguments: argparse.Namespace) -> None:
    """Check the arguments and serve the model until a signal."""
    from gptmill.serving import server

    folders.check_model(arguments.model, "language model")
    _check_numbers(arguments)
    key = options.secret(arguments.api_key_env, arguments.api_key_file)
    if key is None and not arguments.no_key and not server.is_loopback(arguments.host):
        raise ValueError(
            f"{arguments.host} can be reached from other machines: set a key with --api-key-env "
            "or --api-key-file, or pass --no-key to allow any client"
        )
    _serve(arguments, server.Admission.at(arguments.host, key, arguments.allow_origin))


def _serve(arguments: argparse.Namespace, admission: "Admission") -> None:
    from gptmill.generation.completion import CompletionBatch
    from gptmill.serving import server
    from gptmill.serving.requests import Limits
    from gptmill.serving.worker import Worker

    bound = server.listen(arguments.host, arguments.port)
    url = server.address(bound, arguments.host)
    generator = options.generator(arguments)
    generator = replace(generator, name=arguments.name or generator.name)
    context = arguments.context_length or generator.context_length
    if context > generator.context_length:
        raise ValueError(
            f"--context-length is {context}: the model reads at most {generator.context_length}"
        )
    limits = Limits(
        context_length=context,
        max_prompt_tokens=arguments.max_prompt_tokens or context,
        max_new_tokens=arguments.max_new_tokens or context,
    )
    capacity = min(context, limits.max_prompt_tokens + limits.max_new_tokens)
    at_once, max_waiting = arguments.at_once, arguments.max_waiting
    open_batch = partial(
        CompletionBatch, generator.model, at_once, capacity, prefill_budget=PREFILL_BUDGET
    )
    server.run(
        generator,
        bound,
        admission=admission,
        limits=limits,
        worker=Worker(open_batch, at_once=at_once, max_waiting=max_waiting),
        ready=lambda: note(f"{generator.name} answers at {url} (Ctrl-C ends)"),
    )


def _check_numbers(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.port <= 65535:
        raise ValueError(f"--port is {arguments.port}: allowed is 0 to 65535")
    if arguments.max_waiting < 0:
        raise ValueError(f"--max-waiting is {arguments.max_waiting} but must be 0 or more")
