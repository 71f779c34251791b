"""A fetch that fails by itself is tried again by the flow; a file that is gone is not."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.support.project import Project, one_stage_project, prefect_of, run_flow, source_entry

pytestmark = pytest.mark.slow
TEXT = b"Fetched.\n"
BACKOFF = "BACKOFF_S = [10.0, 60.0, 240.0]"


class Handler(BaseHTTPRequestHandler):
    """Answers with the statuses in turn, then with the text."""

    statuses: list[int]
    asked = 0

    def do_GET(self) -> None:
        Handler.asked += 1
        if self.statuses:
            self.send_error(self.statuses.pop(0))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(TEXT)))
        self.end_headers()
        self.wfile.write(TEXT)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/fetched.txt"
        served.shutdown()


def project_of(root: Path, url: str) -> Project:
    """Return a project with a source at `url`, and short pauses."""
    project = one_stage_project(root)
    digest = hashlib.sha256(TEXT).hexdigest()
    with (root / "sources.toml").open("a", encoding="utf-8") as file:
        file.write(source_entry("fetched", "text/fetched", kind="http", url=url, sha256=digest))
    flow = root / "flows" / "pipeline.py"
    text = flow.read_text(encoding="utf-8")
    assert BACKOFF in text
    flow.write_text(text.replace(BACKOFF, "BACKOFF_S = [0.1, 0.2, 0.3]"), encoding="utf-8")
    return project


def test_what_passes_by_itself_is_tried_again_and_nothing_else(tmp_path: Path, url: str) -> None:
    project = project_of(tmp_path, url)
    cases = [
        ([404, 503], 1, "Failed", "404"),
        ([503] * 4, 4, "Failed", "503"),
        ([503, 429], 3, "Completed", "ran sample"),
    ]
    with prefect_of(project) as server:
        for statuses, asked, name, words in cases:
            Handler.statuses, Handler.asked = statuses, 0
            state, message = run_flow(project, server)
            assert (state, Handler.asked) == (name, asked), message
            assert words in message
    written = project.root / "artifacts" / "sample" / "written.txt"
    assert written.read_text(encoding="utf-8") == "One.\nFetched.\n"
