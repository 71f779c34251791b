"""Loopback-only Prefect and MLflow servers, and their allowed origins.

`make ui` keeps both servers running and records their addresses. A pipeline run uses the Prefect
server of `make ui` while the server answers, and otherwise a temporary server over the same
history.
"""

import atexit
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gptmill.files import read_json, write_json
from gptmill.serving.host_guard import allowed_names
from tasks.processes.process import end_group
from tasks.project.environment import ROOT
from tasks.tracking.runs import is_dead, this_process
from tasks.tracking.store import ARTIFACTS, STORE

HOST = "127.0.0.1"
# This machine, as MLflow's patterns: `[[]` is a bracket.
LOCAL_NAMES = ("localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*", "[::1]", "[[]::1]:*")
NOTE = ROOT / ".state" / "servers.json"
LOGS = ROOT / ".state" / "logs"
START_SECONDS = 120.0


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


def answers(url: str) -> bool:
    """Return whether a server answers at `url`."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
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


def running_prefect() -> str | None:
    """Return the API address of `make ui`, or None."""
    if not NOTE.exists():
        return None
    note = read_json(NOTE)
    if is_dead(note["process"]) or not answers(note["prefect"] + "/health"):
        return None
    return str(note["prefect"])


def prefect_api() -> str:
    """Return a Prefect server's address, valid until this process exits.

    The server in PREFECT_API_URL comes first, then the server of `make ui`, then a temporary
    server. The temporary server stops when the process exits, after Prefect's own threads have
    sent their last messages. Raises ValueError where PREFECT_API_URL does not answer.
    """
    url = os.environ.get("PREFECT_API_URL")
    if url and not answers(url.rstrip("/") + "/health"):
        raise ValueError(
            f"no Prefect server answers at PREFECT_API_URL, {url}: start the server, or unset "
            "PREFECT_API_URL to use a temporary server"
        )
    running = url or running_prefect()
    if running:
        return running
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(prefect_server(port, pages=False))


@contextmanager
def prefect_server(port: int, *, pages: bool) -> Iterator[str]:
    """Run a Prefect server and yield its API address.

    The server listens on `port` and works on this project's run history.
    """
    site = f"http://{HOST}:{port}"
    environment = {
        "PREFECT_API_URL": f"{site}/api",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"{site}/api",
        "PREFECT_SERVER_UI_ENABLED": str(pages).lower(),
        # without this list any page in the user's browser could control the server
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{site},http://localhost:{port}",
    }
    if not pages:  # a pipeline run needs no scheduler
        environment["PREFECT__SERVER_EPHEMERAL"] = "1"
    command = ["-m", "uvicorn", "--factory", "flows.guarded_prefect:make_app"]
    options = ["--host", HOST, "--port", str(port), "--log-level", "error"]
    with server("prefect", [*command, *options], environment, f"{site}/api/health"):
        yield f"{site}/api"


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
def server(name: str, arguments: list[str], extra: dict[str, str], health: str) -> Iterator[None]:
    """Run `python ARGUMENTS` until the block ends.

    The block begins once the health address answers. Raises ValueError where the server does not
    start.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.processes.leash", sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **extra},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_healthy(process, name, health, log)
            yield
        finally:
            end_group(process)


def _wait_until_healthy(
    process: subprocess.Popen[bytes], name: str, health: str, log: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answers(health):
        if process.poll() is not None or time.monotonic() > deadline:
            last_lines = "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
            raise ValueError(f"the {name} server did not start; {log} ends with:\n{last_lines}")
        time.sleep(0.1)


@contextmanager
def noted(prefect: str, mlflow: str) -> Iterator[None]:
    """Record the servers' addresses for pipeline runs during the block."""
    write_json(NOTE, {"prefect": prefect, "mlflow": mlflow, "process": this_process()})
    try:
        yield
    finally:
        NOTE.unlink(missing_ok=True)
