"""Servers on this machine, kept alive: ports, health, and MLflow's own settings."""

import os
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gptmill.serving.host_guard import allowed_names
from tasks.processes.process import end_group, leashed
from tasks.project.environment import ROOT, memory_shortage
from tasks.tracking.store import ARTIFACTS, STORE

HOST = "127.0.0.1"
# This machine, as MLflow's patterns: `[[]` is a bracket.
LOCAL_NAMES = ("localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*", "[::1]", "[[]::1]:*")
MLFLOW_VIEW = "workflowType=machine_learning"  # MLflow opens on chat traces otherwise
LOGS = ROOT / ".state" / "logs"
START_SECONDS = 120.0
WATCH_SECONDS = 2.0
HUNG = 3  # health checks without an answer, of 5 seconds each, after which a server counts as hung


def port_of(name: str, default: int) -> int:
    """Return the port in GPTMILL_<NAME>_PORT, or the tool's default port."""
    text = os.environ.get(f"GPTMILL_{name}_PORT", str(default))
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError(f"GPTMILL_{name}_PORT is {text!r}; a port is a number from 1 to 65535")
    return int(text)


def prefect_port() -> int:
    """Return the port of `make ui`'s Prefect server."""
    return port_of("PREFECT", 4200)


def mlflow_port() -> int:
    """Return the port of `make ui`'s MLflow server."""
    return port_of("MLFLOW", 5000)


def mlflow_address() -> str:
    """Return the address of the MLflow runs for a browser."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri.rstrip("/") if uri.startswith("http") else f"http://{HOST}:{mlflow_port()}"


def answers(url: str, *, patience: float = 5.0) -> bool:
    """Return whether a server answers at `url` within `patience` seconds."""
    try:
        urllib.request.urlopen(url, timeout=patience).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def answers_well(url: str) -> bool:
    """Return whether a server answers at `url`, without an error."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def is_free(port: int) -> bool:
    """Return whether `port` of the loopback address is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@contextmanager
def mlflow_server(port: int) -> Iterator[str]:
    """Run an MLflow server and yield its address.

    The server listens on `port` over this project's store, with the settings of
    mlflow/server.toml.
    """
    site = f"http://{HOST}:{port}"
    settings = tomllib.loads((ROOT / "mlflow" / "server.toml").read_text(encoding="utf-8"))
    options = {
        "backend-store-uri": f"sqlite:///{STORE}",
        "artifacts-destination": str(ARTIFACTS),
        "host": HOST,
        "port": str(port),
        **_mlflow_names(),
        **settings["options"],
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = ["-m", "mlflow", "server", "--serve-artifacts", *flags]
    with server("mlflow", command, settings["environment"], f"{site}/health"):
        yield site


def _mlflow_names() -> dict[str, str]:
    """Return the options for MLflow's own check of host and origin: the names of host_guard.py.

    MLflow's default list has patterns such as `10.*`, which also match names on the internet.
    """
    extra = sorted(allowed_names())
    names = [*LOCAL_NAMES, *extra, *(f"{name}:*" for name in extra)]
    origins = [f"{scheme}://{name}" for scheme in ("http", "https") for name in extra]
    options = {"allowed-hosts": ",".join(names)}
    if origins:
        ports = [f"{origin}:*" for origin in origins]
        options["cors-allowed-origins"] = ",".join([*origins, *ports])
    return options


@contextmanager
def server(
    name: str,
    arguments: list[str],
    extra: dict[str, str],
    health: str,
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Run `python ARGUMENTS` until the block ends.

    The block begins once the health address answers, and after `meanwhile`, a call that needs no
    server. A server that dies or hangs during the block is started again. Raises ValueError where
    the server does not start.
    """
    kept = Server(name, arguments, extra, health)
    try:
        kept.start(meanwhile)
        kept.watch()
        yield
    finally:
        kept.stop()


class Server:
    """A server of our own, kept alive."""

    def __init__(self, name: str, arguments: list[str], extra: dict[str, str], health: str) -> None:
        self.name = name
        self.arguments = arguments
        self.extra = extra
        self.health = health
        self.log = LOGS / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.ending = threading.Event()
        self.watcher: threading.Thread | None = None

    def start(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start the process, call `meanwhile`, and wait until the process answers."""
        LOGS.mkdir(parents=True, exist_ok=True)
        with self.log.open("w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                leashed([sys.executable, *self.arguments]),
                cwd=ROOT,
                env={**os.environ, **self.extra},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        meanwhile()
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.health) and not self.ending.is_set():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(self._why_not())
            time.sleep(0.1)

    def watch(self) -> None:
        """Start the server again whenever it dies or hangs, until `stop`."""
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def stop(self) -> None:
        """End the server's processes."""
        self.ending.set()
        if self.watcher is not None:
            self.watcher.join(timeout=WATCH_SECONDS + START_SECONDS)
        if self.process is not None:
            end_group(self.process)

    def _watch(self) -> None:
        # the thread stays alive as long as its servers: the kernel ends them with the thread
        silent = 0
        while not self.ending.wait(WATCH_SECONDS):
            assert self.process is not None
            died = self.process.poll() is not None
            silent = 0 if not died and answers(self.health) else silent + 1
            if not died and silent < HUNG:
                continue
            how = "ended" if died else "does not answer"
            print(f"the {self.name} server {how}: starting it again", file=sys.stderr, flush=True)
            end_group(self.process, patience=2.0)
            try:
                self.start()
            except (OSError, ValueError) as error:
                print(error, file=sys.stderr, flush=True)
            silent = 0

    def _why_not(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        shortage = memory_shortage("\n".join(lines))
        if shortage:
            return f"the {self.name} server did not start: {shortage}"
        last_lines = "\n".join(lines[-5:])
        return f"the {self.name} server did not start; {self.log} ends with:\n{last_lines}"
