"""The Prefect server: of PREFECT_API_URL, of `make ui`, or a temporary one over the same history.

`make ui` keeps the server running and records its address. Prefect's database is checked before
Prefect opens it, since Prefect reports another schema version with a traceback.
"""

import atexit
import json
import os
import re
import socket
import sqlite3
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http import HTTPStatus
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from flows.servers import HOST, answers, answers_well, server
from gptmill.files import write_json
from gptmill.sources.address import hidden
from tasks.project.environment import ROOT
from tasks.tracking.runs import is_dead, this_process

NOTE = ROOT / ".state" / "servers.json"
PAGES = "v2"  # Prefect's present pages; the pages of Prefect 2 are at the root
MIGRATIONS = "server/database/_migrations/versions/sqlite"
REVISION = re.compile(r"^revision = [\"'](\w+)[\"']", re.MULTILINE)


def running_prefect() -> str | None:
    """Return the API address of `make ui`, or None."""
    try:
        note = json.loads(NOTE.read_bytes())
        address, process = str(note["prefect"]), str(note["process"])
        if is_dead(process) or not answers(f"{address}/health"):
            return None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        print(f"{NOTE.relative_to(ROOT)} is unreadable and counts as none", file=sys.stderr)
        return None
    return address


def prefect_api(meanwhile: Callable[[], None] = lambda: None) -> str:
    """Return a Prefect server's address, valid until this process exits.

    The server in PREFECT_API_URL comes first, then the server of `make ui`, then a temporary
    server. The temporary server stops when the process exits, after Prefect's own threads have
    sent their last messages. `meanwhile` is called while the temporary server starts. Raises
    ValueError where PREFECT_API_URL does not answer, or refuses the login.
    """
    url = os.environ.get("PREFECT_API_URL")
    if url and not answers(url.rstrip("/") + "/health"):
        raise ValueError(
            f"no Prefect server answers at PREFECT_API_URL, {url}: start the server, or unset "
            "PREFECT_API_URL to use a temporary server"
        )
    running = url or running_prefect()
    if running:
        check_login(running)
        return running
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(prefect_server(port, pages=False, meanwhile=meanwhile))


def check_login(api: str) -> None:
    """Raise ValueError where the server at `api` refuses this environment's login."""
    key, pair = (os.environ.get(f"PREFECT_API_{name}", "") for name in ("KEY", "AUTH_STRING"))
    login = f"Bearer {key}" if key else f"Basic {b64encode(pair.encode()).decode()}"
    request = Request(f"{api.rstrip('/')}/admin/version", headers={"Authorization": login})
    try:
        urlopen(request, timeout=10).close()
    except HTTPError as error:
        error.close()
        if error.code == HTTPStatus.UNAUTHORIZED:
            raise ValueError(
                f"the Prefect server at {hidden(api)} refuses the login: set "
                "PREFECT_API_AUTH_STRING to the server's NAME:PASSWORD, and unset PREFECT_API_KEY"
            ) from None
    except OSError:
        return  # a server away: work goes on


def pages_at(api: str) -> str | None:
    """Return the address of the pages of the server at `api`, or None where it serves none."""
    site = api.rstrip("/").removesuffix("/api")
    return f"{site}/{PAGES}" if answers_well(f"{site}/{PAGES}/") else None


@contextmanager
def prefect_server(
    port: int, *, pages: bool, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Run a Prefect server and yield its API address.

    The server listens on `port` and works on this project's run history. `meanwhile` is called
    while the server starts.
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
    check_database()
    health = f"{site}/api/health"
    with server("prefect", [*command, *options], environment, health, meanwhile=meanwhile):
        yield f"{site}/api"


def check_database() -> None:
    """Check Prefect's SQLite file: Prefect must know its schema version.

    An older schema is upgraded by Prefect; a copy is made first. Raises ValueError for a newer
    schema and for a damaged file.
    """
    path = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    if "PREFECT_API_DATABASE_CONNECTION_URL" in os.environ or not path.exists():
        return
    try:
        revision = _revision(path)
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"{path} is not a database that Prefect can read ({error}): move the file away, "
            f"`mv {path} {path}.damaged`, and Prefect begins a new history; DVC's and MLflow's "
            "records are not affected"
        ) from None
    known = _revisions()
    if revision in ("", known[-1]):
        return
    if revision not in known:
        raise ValueError(
            f"{path} has the schema {revision} of another version of Prefect, unknown to "
            f"{version('prefect')}: install the version that wrote the file, or keep a copy, "
            f"`mv {path} {path}.{revision}`, and Prefect begins a new history"
        )
    copy = path.with_name(f"{path.name}.{revision}")
    if not copy.exists():
        with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(copy)) as new:
            old.backup(new)
        print(f"Prefect {version('prefect')} upgrades its database; a copy is {copy}")


def _revision(path: Path) -> str:
    """Return the schema version of a database; "" for an empty one."""
    with closing(sqlite3.connect(path)) as store:
        tables = store.execute("select name from sqlite_master where name = 'alembic_version'")
        if not tables.fetchall():
            return ""
        row = store.execute("select version_num from alembic_version").fetchone()
        return str(row[0]) if row else ""


def _revisions() -> list[str]:
    """Return the schema versions of the installed Prefect, the newest last."""
    spec = find_spec("prefect")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or [""]
    files = sorted((Path(folder) / MIGRATIONS).glob("*.py"))
    found = [REVISION.search(file.read_text(encoding="utf-8")) for file in files]
    return [match[1] for match in found if match]


@contextmanager
def noted(prefect: str, mlflow: str) -> Iterator[None]:
    """Record the servers' addresses for pipeline runs during the block."""
    write_json(NOTE, {"prefect": prefect, "mlflow": mlflow, "process": this_process()})
    try:
        yield
    finally:
        NOTE.unlink(missing_ok=True)
