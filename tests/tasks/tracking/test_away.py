"""An MLflow server that hangs or dies: figures wait, and are sent later, in order and once."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from matplotlib.figure import Figure

from gptmill.checkpoint.checkpoint import save_causal_lm
from tasks.tracking import outbox, runs, store
from tasks.tracking.record import Figures, RunRecord, StageRun
from tests.support.tiny import tiny_config, tiny_gpt, tiny_tokenizer

# mlflow's own doing: it uses what sqlalchemy 2.1 gives up, and warns of its own type hints
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]

SERVER = """
import sys
from mlflow.server import app
app.run(port=int(sys.argv[1]), threaded=True)
"""


class Server:
    """MLflow's server as a process, on one port over one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        places = {
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{self.folder}/mlflow.db",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{self.folder}/artifacts",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        }
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(self.port)],
                env={**os.environ, **places}, cwd=self.folder, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.address + "/health", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """Let the server hang: connections are accepted and never answered."""
        self.process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    before = mlflow.get_tracking_uri()
    folder = tmp_path / "server"
    folder.mkdir()
    made = Server(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.address)
    monkeypatch.setattr(outbox, "FOLDER", tmp_path / "outbox")
    monkeypatch.setattr(outbox, "INTERVAL_S", 0.1)
    monkeypatch.setattr(runs, "_silent_until", 0.0)
    yield made
    made.kill()
    store.forget_connection()
    mlflow.set_tracking_uri(before)


def steps(run: str, name: str) -> list[int]:
    return [entry.step for entry in mlflow.MlflowClient().get_metric_history(run, name)]


def log_steps(run: StageRun, *numbers: int) -> None:
    for number in numbers:
        run.metrics({"train/loss": 1.0 / number}, number)


def test_the_figures_of_a_run_wait_for_the_server(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pretrain"
    save_causal_lm(folder, tiny_gpt(tiny_config(context_length=256), seed=1), tiny_tokenizer())
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# a model\n\n## Shape\n")
    parent = RunRecord("pipeline", tags={})
    run = StageRun("pretrain", description="", earlier=None)
    log_steps(run, 1, 2)
    run._sender.send(20)

    server.stop()
    started = time.monotonic()
    log_steps(run, 3, 4)
    run.figure(Figure(), "plots/curve.png")
    measured = Figures({"validation_loss": 2.5}, 7, "artifacts/tokenize", "ab12")
    run.model("generator", folder, name="pretrain", figures=measured)
    run.outputs({"artifacts/pretrain": "cd34"})
    run.end("KILLED", "ended by SIGTERM", patience=1)
    assert time.monotonic() - started < 5
    assert "kept in .state/mlflow, and the next command sends them" in capsys.readouterr().err
    run._outbox.release()  # as the end of the process does

    server.kill()
    again = StageRun("pretrain", description="", earlier=run.id)  # resumed without a server
    assert "MLFLOW_TRACKING_URI" in (again.news() or "")
    log_steps(again, 1, 2, 3, 4, 5)
    again.end("FINISHED")
    alone = StageRun("evaluate", description="")  # a run that begins and ends without a server
    alone.judge("artifacts/pretrain", "cd34", Figures({"pretrain_loss": 2.25}, 8, "", ""))
    alone.end("FINISHED")
    assert runs.maker({"artifacts/x": "0"}) is None
    for path in folder.iterdir():  # a later training replaces the folder's files
        path.unlink()

    server.start()
    parent.end("FINISHED")
    outbox.finish_runs()
    assert list(outbox.FOLDER.iterdir()) == []
    assert steps(run.id, "train/loss") == [1, 2, 3, 4, 5]
    found = mlflow.search_runs(experiment_names=[store.EXPERIMENT], output_format="list")
    names = [(entry.info.run_name, entry.info.status) for entry in found]
    expected = [("evaluate", "FINISHED"), ("pipeline", "FINISHED"), ("pretrain", "FINISHED")]
    assert sorted(names) == expected
    assert "error" not in mlflow.get_run(run.id).data.tags
    client = mlflow.MlflowClient()
    assert [file.path for file in client.list_artifacts(run.id, "plots")] == ["plots/curve.png"]
    (model,) = mlflow.search_logged_models(
        [store.connect()], f"source_run_id = '{run.id}'", output_format="list"
    )
    assert model.status == "READY"
    figures = {
        entry.key: (entry.value, entry.dataset_name, entry.dataset_digest)
        for entry in model.metrics
    }
    assert figures == {
        "validation_loss": (2.5, "artifacts/tokenize", "ab12"),
        "pretrain_loss": (2.25, None, None),
    }
    assert model.tags["mlflow.note.content"] == "# a model"
    kept = client.list_logged_model_artifacts(model.model_id, "artifacts")
    assert [file.path for file in kept] == ["artifacts/pretrain", "artifacts/record"]


def test_an_outbox_in_removal_is_sent_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "FOLDER", tmp_path / "outbox")
    remove, found = shutil.rmtree, []

    def in_any_order(folder: Path, **options: bool) -> None:
        """Remove the lock first, as the order of a folder's files may have it."""
        (folder / "lock").unlink()
        (folder / "sent").unlink()
        others = list(outbox.waiting())
        found.extend(entry for other in others for entry in other.entries)
        remove(folder, **options)
        for other in others:
            other.release()

    sent = outbox.open_outbox(None)
    sent.add("open", uri=outbox.address(), time=1)
    sent.mark(1)
    monkeypatch.setattr(outbox.shutil, "rmtree", in_any_order)
    sent.close()
    assert found == []
