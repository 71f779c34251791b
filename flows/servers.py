"""Prefect's and MLflow's servers, on loopback only, and who may talk to them.

`make ui` keeps both up and notes their addresses; a pipeline run uses that Prefect server
while it answers, and else one of its own over the same history.
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
from tasks.processes.process import end_group
from tasks.project.environment import ROOT
from tasks.tracking.runs import (
    ARTIFACTS,
    STORE,
    is_dead,
    this_process,
)

HOST = "127.0.0.1"
NOTE = ROOT / ".state" / "servers.json"
LOGS = ROOT / ".state" / "logs"
START_SECONDS = 120.0


def port_of(name: str, default: int) -> int:
    """Return the port that GPTMILL_<NAME>_PORT asks for, or the tool's own."""
    text = os.environ.get(f"GPTMILL_{name}_PORT", str(default))
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError(f"GPTMILL_{name}_PORT is {text!r}; it must be a port, 1 to 65535")
    return int(text)


def prefect_port() -> int:
    """Return the port of `make ui`'s Prefect server."""
    return port_of("PREFECT", 4200)


def mlflow_port() -> int:
    """Return the port of `make ui`'s MLflow server."""
    return port_of("MLFLOW", 5000)


def mlflow_address() -> str:
    """Return the address under which a person sees the MLflow runs."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri.rstrip("/") if uri.startswith("http") else f"http://{HOST}:{mlflow_port()}"


def answers(url: str) -> bool:
    """Return whether a server answers at this address."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def running_prefect() -> str | None:
    """Return the API address of this project's `make ui`, if it is up."""
    if not NOTE.exists():
        return None
    note = read_json(NOTE)
    if is_dead(note["process"]) or not answers(note["prefect"] + "/health"):
        return None
    return str(note["prefect"])


def prefect_api() -> str:
    """Return the address of a Prefect server that answers for as long as this process lives.

    It is the one that the environment names, or `make ui`'s, or a temporary one. That one
    ends after Prefect's own threads have sent their last words, at the exit of the process.
    """
    given = os.environ.get("PREFECT_API_URL")
    if given and not answers(given.rstrip("/") + "/health"):
        raise ValueError(
            f"PREFECT_API_URL is {given}, where no Prefect server answers: start it, or unset "
            "the variable to use a temporary one"
        )
    running = given or running_prefect()
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
    """Run a Prefect server on `port` over this project's history; yield its API address."""
    site = f"http://{HOST}:{port}"
    environment = {
        "PREFECT_API_URL": f"{site}/api",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"{site}/api",
        "PREFECT_SERVER_UI_ENABLED": str(pages).lower(),
        # any page in the user's browser could else drive this server
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{site},http://localhost:{port}",
    }
    if not pages:  # a pipeline run needs no scheduler beside it
        environment["PREFECT__SERVER_EPHEMERAL"] = "1"
    command = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    options = ["--host", HOST, "--port", str(port), "--log-level", "error"]
    with server("prefect", [*command, *options], environment, f"{site}/api/health"):
        yield f"{site}/api"


@contextmanager
def mlflow_server(port: int) -> Iterator[str]:
    """Run an MLflow server on `port` over this project's store, as mlflow/server.toml says."""
    site = f"http://{HOST}:{port}"
    settings = tomllib.loads((ROOT / "mlflow" / "server.toml").read_text(encoding="utf-8"))
    options = {
        "backend-store-uri": f"sqlite:///{STORE}",
        "artifacts-destination": str(ARTIFACTS),
        "host": HOST,
        "port": str(port),
        **settings["options"],
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = ["-m", "mlflow", "server", "--serve-artifacts", *words]
    with server("mlflow", command, settings["environment"], f"{site}/health"):
        yield site


@contextmanager
def server(name: str, arguments: list[str], extra: dict[str, str], health: str) -> Iterator[None]:
    """Run `python ARGUMENTS` until the block ends, once its health address answers."""
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
            _wait(process, name, health, log)
            yield
        finally:
            end_group(process)


def _wait(process: subprocess.Popen[bytes], name: str, health: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answers(health):
        if process.poll() is not None or time.monotonic() > deadline:
            ending = "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
            raise ValueError(f"the {name} server did not start; {log} ends with:\n{ending}")
        time.sleep(0.1)


@contextmanager
def noted(prefect: str, mlflow: str) -> Iterator[None]:
    """Tell pipeline runs of this project where the servers are, while the block runs."""
    write_json(NOTE, {"prefect": prefect, "mlflow": mlflow, "process": this_process()})
    try:
        yield
    finally:
        NOTE.unlink(missing_ok=True)
