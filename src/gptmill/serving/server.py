"""The server as a process: where it listens, who may come in, how it ends."""

import ipaddress
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import uvicorn

from gptmill.generation.completion import TextGenerator
from gptmill.serving.app import build
from gptmill.serving.gate import LOOPBACK_NAMES, Gate
from gptmill.serving.requests import Limits
from gptmill.serving.worker import Worker

SECONDS_TO_FINISH = 5  # for what is being sent when the server is told to end


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Who may come in: whoever has the key, where there is one, by a name of the server."""

    key: str | None
    hosts: frozenset[str] | None
    """The names by which the server may be asked for; None where any will do."""

    @classmethod
    def at(cls, host: str, key: str | None) -> Self:
        """Return who may come in at `host`: at loopback, names of this machine alone."""
        return cls(key=key, hosts=LOOPBACK_NAMES | {host} if is_loopback(host) else None)


def is_loopback(host: str) -> bool:
    """Say whether a host is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound; raise ValueError where that cannot be."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ValueError(f"cannot listen at {host}, port {port}: {error.strerror}") from None
    return bound


def address(bound: socket.socket, host: str) -> str:
    """Return the URL under which a bound socket is reached."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{bound.getsockname()[1]}"


def run(
    generator: TextGenerator,
    bound: socket.socket,
    *,
    admission: Admission,
    limits: Limits,
    worker: Worker,
    ready: Callable[[], None],
) -> None:
    """Answer requests until SIGINT or SIGTERM; `ready` is called when the first can come.

    Then nothing new is let in, and what is under way ends with an error.
    """
    app = build(generator, worker, limits)
    gate = Gate(app, key=admission.key, hosts=admission.hosts)
    config = uvicorn.Config(
        gate,
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
        ws="none",
    )
    # uvicorn raises the signal again when it has ended: that the server ends is what was wanted
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    _Server(config, worker, ready).run(sockets=[bound])
    worker.join()


class _Server(uvicorn.Server):
    """A server that says when it listens, and has its worker end before it waits for answers."""

    def __init__(self, config: uvicorn.Config, worker: Worker, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._worker = worker
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what is under way, then what listens."""
        self._worker.close()
        await super().shutdown(sockets)
