"""A hub id with a pinned revision, from a stand-in for the hub on this machine."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gptmill.checkpoint.checkpoint import load_causal_lm, save_causal_lm
from gptmill.formats.importing import import_model
from tests.support.forms import gpt2_config, random_gpt
from tests.support.tiny import tiny_tokenizer

REVISION = "0123456789abcdef0123456789abcdef01234567"


def handler(folder: Path) -> type[BaseHTTPRequestHandler]:
    """Return what answers as the hub does: what is in a revision, and its files."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            path, content = self.path.split("?")[0], b""
            if path.endswith(f"/revision/{REVISION}"):
                names = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                found = {"id": "owner/name", "sha": REVISION, "siblings": names}
                content = json.dumps(found).encode()
            elif path.startswith(f"/api/models/owner/name/tree/{REVISION}"):
                files = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                    for f in sorted(folder.iterdir())
                ]
                content = json.dumps(files).encode()
            elif path.startswith(f"/owner/name/resolve/{REVISION}/"):
                content = (folder / path.rsplit("/", 1)[1]).read_bytes()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", REVISION)
            self.end_headers()
            if body:
                self.wfile.write(content)

    return Hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    save_causal_lm(folder, random_gpt(gpt2_config()), tiny_tokenizer())
    (folder / "extra.msgpack").write_bytes(b"not asked for")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_pinned_revision_is_fetched_and_imported(
    tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found = import_model("owner/name", tmp_path / "out", revision=REVISION)
    assert (found.form, found.revision) == ("hugging face", REVISION)
    loaded = load_causal_lm(tmp_path / "out").state_dict()
    expected = random_gpt(gpt2_config()).state_dict()
    assert all((loaded[name] == value).all() for name, value in expected.items())
    assert not list((tmp_path / "cache").rglob("extra.msgpack"))


def test_a_hub_that_is_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=rf"owner/name at {REVISION} cannot be fetched from http"):
        import_model("owner/name", tmp_path / "out", revision=REVISION)
    assert not (tmp_path / "out").exists()
