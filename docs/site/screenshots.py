"""`python -m docs.site screenshots`: pictures of the pages, from this project's own runs.

Needs Chromium, and a project after `make pipeline`, `make compare` and `make serve`. The servers of
`make ui` and `gptmill serve` run meanwhile.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from PIL import Image

from flows import pages
from flows.prefect_server import PAGES, running_prefect
from tasks.tracking.store import connect
from tests.support.browser import ENTER, Browser, browser

WIDTH, HEIGHT = 1280, 800
COLOURS = 64  # enough for a page, and a third of the bytes
CHAT = "http://127.0.0.1:8123"
CLOSE = "document.querySelectorAll('[role=dialog] [aria-label=Close]').forEach((b) => b.click())"
"""Closes MLflow's greeting."""
QUESTION = "Write a short note that thanks a neighbour for soup."


def main(root: Path, out: Path) -> int:
    """Write a picture for each page; return the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    champion = "models:/gptmill-assistant@champion"
    serve = ["gptmill", "serve", champion, "--port", "8123", "--weights", "bf16"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="gptmill-pictures-")))
        stack.enter_context(_running(["flows", "ui"], root))
        stack.enter_context(_running(serve, root))
        _wait(lambda: running_prefect() is not None and _answers(CHAT))
        window = stack.enter_context(browser(folder))
        for name, address in _addresses(root).items():
            # the results of a run stand below its times
            window.resize(WIDTH, 2 * HEIGHT if name == "results" else HEIGHT)
            window.open(address)
            time.sleep(8)  # the pages draw what they asked their servers for
            window.run(CLOSE)
            time.sleep(1)
            _save(window, out / f"{name}.png")
        window.resize(WIDTH, HEIGHT)
        window.open(CHAT)
        window.type("#message", QUESTION + ENTER)
        window.until(lambda: not window.shown("#stop") and len(window.texts(".turn")) == 2, 120)
        _save(window, out / "chat.png")
    return 0


def _addresses(root: Path) -> dict[str, str]:
    """Return the addresses of the pages: comparison, models, a run and its results, the form."""
    from mlflow import MlflowClient

    experiment, newest = connect(), ["attributes.start_time DESC"]
    last = MlflowClient().search_runs([experiment], "tags.stage = 'pipeline'", order_by=newest)
    run = next(one for one in last if any(key.startswith("gate.") for key in one.data.tags))
    api = str(running_prefect())
    site = f"{api.removesuffix('/api')}/{PAGES}"
    in_prefect = f"{site}/runs/flow-run/{run.data.tags['prefect.flow_run_id']}"
    nightly = httpx.get(f"{api}/deployments/name/pipeline/nightly").raise_for_status().json()
    compared = max((root / "compare").glob("*.html"), key=lambda file: file.stat().st_mtime)
    mlflow = pages.run_address(run.info.run_id).partition("/#/")[0]
    return {
        "compare": compared.as_uri(),
        "models": f"{mlflow}/#/models",
        "run": in_prefect,
        "results": f"{in_prefect}?tab=Artifacts",
        "form": f"{site}/deployments/deployment/{nightly['id']}/run",
    }


def _save(window: Browser, file: Path) -> None:
    with TemporaryDirectory() as folder:
        window.screenshot(Path(folder) / "page.png")
        content = (Path(folder) / "page.png").read_bytes()
    picture = Image.open(BytesIO(content)).convert("RGB").quantize(COLOURS)
    picture.save(file, optimize=True)


@contextmanager
def _running(words: list[str], root: Path) -> Iterator[None]:
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def _answers(address: str) -> bool:
    try:
        return httpx.get(address).is_success
    except httpx.HTTPError:
        return False


def _wait(ready: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "the servers did not start"
        time.sleep(0.5)
