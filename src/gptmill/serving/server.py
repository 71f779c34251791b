"""The server process: its socket, admission of clients and shutdown."""

import ipaddress
import signal
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import uvicorn
from starlette.middleware.cors import CORSMiddleware

from gptmill.generation.completion import TextGenerator
from gptmill.serving.app import build
from gptmill.serving.connections import Connection
from gptmill.serving.gate import Gate
from gptmill.serving.host_guard import LOOPBACK_NAMES, App, HostGuard, allowed_names
from gptmill.serving.requests import Limits
from gptmill.serving.worker import Worker

SECONDS_TO_FINISH = 5  # for responses in progress when the server is shut down
SPARE_CONNECTIONS = 128  # besides a connection for each request in work or waiting


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The conditions for admitting a client.

    A client must send the key, if a key is set, and address the server by an accepted host name.
    Pages of other sites are admitted from the named origins alone.
    """

    key: str | None
    hosts: frozenset[str] | None
    """The host names the server accepts; None accepts any name."""
    origins: frozenset[str] = frozenset()
    """Sites whose pages may use the server, as browsers send them in the Origin header."""

    @classmethod
    def at(cls, host: str, key: str | None, origins: Iterable[str] = ()) -> Self:
        """Return the admission for a server that listens on `host`.

        On a loopback address, only names of this machine and names in GPTMILL_ALLOWED_HOSTS are
        accepted.
        """
        hosts = LOOPBACK_NAMES | allowed_names() | {host} if is_loopback(host) else None
        return cls(key=key, hosts=hosts, origins=frozenset(origins))

    def before(self, app: App) -> App:
        """Return an application that passes admitted requests to `app`."""
        app = Gate(app, key=self.key)
        if self.origins:  # outside the gate: browsers ask for permission without the key
            app = CORSMiddleware(
                app,
                allow_origins=self.origins,
                allow_methods=["GET", "HEAD", "POST"],
                allow_headers=["*"],
                allow_private_network=True,
            )
        return HostGuard(app, hosts=self.hosts, check_origin=self.key is None, origins=self.origins)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Listening begins here, because two sockets can be bound to a port until either listens. Clients
    that connect before `run` wait. Raises ValueError where the address cannot be used.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return _bound(family, kind, address)
    except (OSError, UnicodeError) as error:  # UnicodeError: a host that no name can be
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"cannot listen on {host}, port {port}: {reason}; --host takes an address of this "
            "machine, and --port a free port above 1023, or 0 for any"
        ) from None


def _bound(family: int, kind: int, address: Any) -> socket.socket:
    bound = socket.socket(family, kind)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
    except OSError:
        bound.close()
        raise
    return bound


def address(bound: socket.socket, host: str) -> str:
    """Return the URL of a bound socket."""
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
    """Serve requests until SIGINT or SIGTERM.

    `ready` is called once the server accepts requests. After the signal, new requests are refused
    and requests in progress end with an error.
    """
    config = uvicorn.Config(
        admission.before(build(generator, worker, limits)),
        http=Connection,
        limit_concurrency=worker.at_once + worker.max_waiting + SPARE_CONNECTIONS,
        log_level="error",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
        ws="none",
    )
    # uvicorn raises the signal again after shutdown: ignore the repeat, the shutdown was requested
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    _Server(config, worker, ready).run(sockets=[bound])
    worker.join()


class _Server(uvicorn.Server):
    """A uvicorn server that reports readiness and closes the worker.

    The worker is closed before the server waits for open responses.
    """

    def __init__(self, config: uvicorn.Config, worker: Worker, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._worker = worker
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then call `ready`."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the jobs in progress, then the listening server."""
        self._worker.close()
        await super().shutdown(sockets)
