"""The record of a run that this process writes: an outbox, and the thread that sends it."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.tracking import store
from tasks.tracking.outbox import Sender, address, open_outbox

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from tasks.tracking.runs import PARENT_VARIABLE, PROCESS_TAG, flatten, git_tags, this_process

START_S = 15.0
"""Seconds to wait for MLflow's answer when a run begins."""
END_S = 3600.0
"""Seconds to wait at the end of a run, as long as MLflow takes the records."""
SIGNAL_S = 3.0
"""Seconds to wait at the end of a run that is stopped by a signal."""


@dataclass(frozen=True)
class Figures:
    """Figures of a model, and the path and hash of the data behind the figures."""

    values: Mapping[str, float]
    time: int
    dataset: str
    digest: str


def _content(figures: Figures | None) -> dict[str, Any] | None:
    return None if figures is None else {**asdict(figures), "values": dict(figures.values)}


class RunRecord:
    """An MLflow run of this process, written to an outbox that MLflow gets in the background."""

    def __init__(
        self,
        name: str,
        *,
        tags: Mapping[str, str],
        description: str = "",
        parent: str | None = None,
        earlier: str | None = None,
    ) -> None:
        """Open a run, or continue an `earlier` run.

        Raises ValueError for a fault of the SQLite file. An absent server is only reported: the
        records wait for the server.
        """
        from mlflow.tracking.context.registry import resolve_tags

        if not store.is_server(store.tracking_uri()):
            store.connect()
        self._outbox = open_outbox(earlier)
        self._outbox.add(
            "open",
            uri=address(),
            name=name,
            parent=parent,
            earlier=earlier,
            time=_now(),
            tags={
                **resolve_tags(),
                "mlflow.runName": name,
                **({"mlflow.note.content": description} if description else {}),
                PROCESS_TAG: this_process(),
                **git_tags(),
                **tags,
            },
        )
        self._sender = Sender(self._outbox)
        self._sender.send(START_S)
        self._raise_fault()
        self._reported: str | None = None
        self.id = self._sender.delivery.run or self._outbox.token
        """The id of the run in MLflow, or a token that `find_run` knows, too."""

    def news(self) -> str | None:
        """Return a sentence when MLflow went away or is back, None otherwise."""
        away = self._sender.away
        if (away is None) == (self._reported is None):
            return None
        self._reported = away
        if away is None:
            return "MLflow takes records again: all figures are sent"
        return f"MLflow is away, and the figures are kept in .state/mlflow for it: {away}"

    def tag(self, name: str, value: str) -> None:
        """Set a tag on the run; the last value stands."""
        self.tags({name: value})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags on the run."""
        self._outbox.add("tags", values=dict(values))

    def metrics(self, figures: Mapping[str, float], step: int, *, once: bool = False) -> int:
        """Record metric values at a step; return their time stamp.

        A continued run does not record a value twice for the same step, nor a value that differs
        only by rounding, as happens after a change in the number of processes. A changed value (a
        step repeated with different data, after a rollback) is recorded beside the old value,
        since MLflow cannot delete values; the later value stands. With `once` the first value
        always stays, since a duration differs when a step is repeated.
        """
        stamp = _now()
        rows = [[name, float(value), stamp, step] for name, value in figures.items()]
        self._outbox.add("metrics", rows=rows, once=once)
        return stamp

    def text(self, text: str, path: str) -> None:
        """Record a text as a file of the run."""
        self._add_file(path, lambda file: file.write_text(text, encoding="utf-8"))

    def end(self, status: str, error: str | None = None, *, patience: float = END_S) -> None:
        """Close the run as FINISHED, FAILED or KILLED.

        Where MLflow is away, a sentence says so and a later command sends the rest.
        """
        self._outbox.add("end", status=status, error=error, time=_now())
        sent = self._sender.send(patience)
        self._sender.stop()
        if not sent and self._sender.error is None:
            away = self._sender.away or "no answer yet"
            store.say(
                f"MLflow did not take all records of this run ({away}): they are kept in "
                ".state/mlflow, and the next command sends them"
            )
        if not self._sender.works:
            self._outbox.close()
        self._raise_fault()

    def _add_file(self, path: str, write: Callable[[Path], object]) -> None:
        with _reported(path):
            file, place = self._outbox.new_file(Path(path).name)
            write(file)
            folder = Path(path).parent.as_posix()
            self._outbox.add("file", file=place, path="" if folder == "." else folder)

    def _raise_fault(self) -> None:
        if self._sender.error is not None:
            raise self._sender.error


class StageRun(RunRecord):
    """MLflow run of an executing stage."""

    def __init__(
        self,
        stage: str,
        *,
        description: str,
        earlier: str | None = None,
        parent: str | None = None,
        watched: bool = True,
    ) -> None:
        """Open a run, or continue the `earlier` run of this training.

        Load and memory of the machine are recorded while the run is `watched`.
        """
        self.stage = stage
        super().__init__(
            stage,
            tags={"stage": stage},
            description=description,
            parent=parent or os.environ.get(PARENT_VARIABLE),
            earlier=earlier,
        )
        self._ended = threading.Event()
        if not watched:
            self._ended.set()
        self._watch = threading.Thread(target=self._watch_machine, daemon=True)
        self._watch.start()

    def inputs(self, hashes: Mapping[str, str]) -> None:
        """Record input hashes as tags and as digests of dataset inputs."""
        self.tags({f"dvc.dep.{path}": value for path, value in hashes.items()})
        self._outbox.add("inputs", stage=self.stage, hashes=dict(hashes))

    def outputs(self, hashes: Mapping[str, str]) -> None:
        """Record output hashes as tags; dvc.lock will hold the same hashes."""
        self.tags({f"dvc.out.{path}": value for path, value in hashes.items()})

    def params(self, content: Mapping[str, Any]) -> None:
        """Record params, with dotted names for nested params.

        MLflow keeps the params of a run for good. If a value has changed in a continued run
        (perhaps on a different machine), the tag `continued.NAME` records the new value.
        """
        self._outbox.add("params", values={n: str(v) for n, v in flatten(content).items()})

    def figure(self, figure: "Figure", path: str) -> None:
        """Record a plot as a file of the run."""
        self._add_file(path, figure.savefig)

    def file(self, source: Path, folder: str) -> None:
        """Record a copy of a file, in a folder of the run."""
        self._add_file(f"{folder}/{source.name}", lambda file: shutil.copyfile(source, file))

    def table(self, source: Path) -> None:
        """Record a CSV or JSON file of rows as a table, for MLflow's view of several runs."""
        with _reported(source.name):
            file, place = self._outbox.new_file(source.name)
            shutil.copyfile(source, file)
            self._outbox.add("table", file=place)

    def model(self, kind: str, folder: Path, name: str, figures: Figures | None = None) -> None:
        """Log a folder as a model of the run, in the folder's present state, with its figures."""
        with _reported(f"the model of {name}"):
            place = self._outbox.add_folder(folder)
            self._outbox.add("model", kind=kind, folder=place, name=name, figures=_content(figures))

    def judge(self, path: str, output: str, figures: Figures) -> None:
        """Record figures of the models whose runs wrote `path` with the hash `output`."""
        self._outbox.add("judge", path=path, hash=output, figures=_content(figures))

    def end(self, status: str, error: str | None = None, *, patience: float = END_S) -> None:
        """Close the run, and stop watching the machine."""
        self._ended.set()
        self._watch.join()
        super().end(status, error, patience=patience)

    def _watch_machine(self) -> None:
        """Record load and memory of the machine, with MLflow's own monitors."""
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]
        monitors: list[Any] = [kind() for kind in kinds]
        with suppress(ImportError, RuntimeError):  # no NVIDIA driver
            gpu: Any = GPUMonitor
            monitors.append(gpu())
        interval = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or 10)
        while not self._ended.wait(interval):
            values: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                values.update(monitor.aggregate_metrics())
                monitor.clear_metrics()
            named = {f"system/{name}": float(value) for name, value in values.items()}
            self._outbox.add("system", values=named, time=_now())


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Report a file that has no room in .state/mlflow: a training does not fail for a plot."""
    try:
        yield
    except OSError as error:
        store.say(f"{name} is not recorded in MLflow: {error}")


def _now() -> int:
    """Return the time in milliseconds, as MLflow records times."""
    return int(time.time() * 1000)
