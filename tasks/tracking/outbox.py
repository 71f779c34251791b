"""The outbox: records of runs on their way to MLflow.

A stage writes its records to a folder in `.state/mlflow/` and goes on; a thread sends the records
in order. While MLflow is away (a server stopped or hung, a full or locked disk) the records wait,
beyond the end of the stage if need be: the thread of a later command sends them. A record is sent
again if its answer was lost, and MLflow keeps it once.
"""

import json
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from gptmill.files import write_text
from tasks.processes.locks import take
from tasks.project.cache import link_or_copy
from tasks.project.environment import HOME
from tasks.tracking import store

FOLDER = HOME / ".state" / "mlflow"
INTERVAL_S = 5.0
"""Seconds between two sendings: metric values in batches are 60 times faster."""

Entry = dict[str, Any]


class Outbox:
    """Records of one run in a folder: a line each in a journal, and files beside it."""

    def __init__(self, folder: Path, lock: TextIO) -> None:
        self.folder = folder
        self._journal = folder / "journal.jsonl"
        self.entries: list[Entry] = list(_read(self._journal))
        self.sent = min(_count(folder / "sent"), len(self.entries))
        self._lock = lock
        self._adding = threading.Lock()

    @property
    def token(self) -> str:
        """Return the name of the run in the outbox and in a tag of the run."""
        return self.folder.name

    @property
    def created(self) -> float:
        """Return the time of the first record."""
        return float(self.entries[0].get("time", 0)) if self.entries else 0.0

    @property
    def is_empty(self) -> bool:
        """Return whether everything is sent."""
        return self.sent == len(self.entries)

    def add(self, op: str, **content: Any) -> None:
        """Append a record. On a full disk the record stays in memory."""
        entry = {"op": op, **content}
        with self._adding:
            self.entries.append(entry)
            with suppress(OSError), self._journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def mark(self, sent: int) -> None:
        """Note how many records are sent."""
        self.sent = sent
        with suppress(OSError):  # the records are sent again, and MLflow keeps them once
            write_text(self.folder / "sent", f"{sent}\n")

    def new_file(self, name: str) -> tuple[Path, str]:
        """Return the path for a file to be sent, whole and below the outbox."""
        folder = self.folder / "files" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        path = folder / name
        return path, path.relative_to(self.folder).as_posix()

    def add_folder(self, source: Path) -> str:
        """Keep the present bytes of a folder for sending; return the path below the outbox.

        Files are hard links: a later run replaces files and does not write into them.
        """
        target, place = self.new_file(source.name)
        shutil.copytree(source, target, copy_function=link_or_copy)
        return place

    def close(self) -> None:
        """Release the outbox, and remove it if everything is sent."""
        if self.is_empty:
            self._journal.unlink(missing_ok=True)  # first: without its lock nobody may send it
            shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Release the outbox for other processes."""
        self._lock.close()


def _read(journal: Path) -> Iterator[Entry]:
    """Yield the records of a journal, without a torn last line."""
    if not journal.exists():
        return
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "op" in entry:
                yield entry


def _count(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def open_outbox(name: str | None) -> Outbox:
    """Open the outbox of an earlier run by token or run id, or a new outbox.

    Raises ValueError if a process that still works holds the earlier outbox.
    """
    earlier = _find(name) if name else None
    folder = earlier or FOLDER / uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    lock = take(folder / "lock", patience=30)
    if lock is None:
        raise ValueError(f"another process still records this run ({folder}): end the process")
    return Outbox(folder, lock)


def _find(name: str) -> Path | None:
    if (FOLDER / name).is_dir():
        return FOLDER / name
    for folder in FOLDER.glob("*/run"):
        if folder.read_text(encoding="utf-8", errors="replace").strip() == name:
            return folder.parent
    return None


def waiting() -> Iterator[Outbox]:
    """Yield the outboxes of ended processes for the present store, oldest first.

    The caller closes each outbox.
    """
    opened = []
    for folder in FOLDER.glob("*/"):
        lock = take(folder / "lock", patience=0)
        if lock is not None:
            opened.append(Outbox(folder, lock))
    for outbox in sorted(opened, key=lambda outbox: outbox.created):
        if not outbox.entries or outbox.entries[0].get("uri") == address():
            yield outbox
        else:
            outbox.release()


def address() -> str:
    """Return the store's name in an outbox: the project's own file may move with the project."""
    uri = store.tracking_uri()
    return "own" if store.is_own(uri) else uri


class Sender:
    """A thread that sends an outbox, and the outboxes left by earlier processes."""

    def __init__(self, outbox: Outbox) -> None:
        from tasks.tracking.delivery import Delivery

        self.delivery = Delivery(outbox)
        self.away: str | None = None
        """Why MLflow did not take the records at the last attempt, or None."""
        self.error: Exception | None = None
        """A fault that no waiting mends."""
        self._attempts = 0
        self._closed_dead = False
        self._changed = threading.Condition()
        self._nudge = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def works(self) -> bool:
        """Return whether the thread still runs."""
        return self._thread.is_alive()

    def send(self, patience: float) -> bool:
        """Send now; return whether everything is sent.

        Returns at the first attempt that fails, and after `patience` seconds at the latest.
        """
        deadline = time.monotonic() + patience
        with self._changed:
            before = self._attempts
            self._nudge.set()
            while not self.delivery.outbox.is_empty and self.error is None:
                tried = self.away is not None and self._attempts > before
                left = deadline - time.monotonic()
                if tried or left <= 0:
                    return False
                self._changed.wait(min(left, 1.0))
        return self.error is None

    def stop(self) -> None:
        """Have the thread end after its present attempt."""
        self._stop = True
        self._nudge.set()
        self._thread.join(timeout=1)

    def _close_dead_runs(self) -> None:
        from tasks.tracking.runs import close_dead_runs

        if not self._closed_dead:
            close_dead_runs(store.connect())
            self._closed_dead = True

    def _run(self) -> None:
        while not self._stop and self.error is None:
            away, error = self._attempt()
            with self._changed:
                self.away, self.error = away, error
                self._attempts += 1
                self._changed.notify_all()
            self._nudge.wait(INTERVAL_S)
            self._nudge.clear()

    def _attempt(self) -> tuple[str | None, Exception | None]:
        """Send everything; return why MLflow is away, and a fault of another kind."""
        from tasks.tracking.delivery import reason_away

        try:
            store.check_server()
            send_waiting()
            self._close_dead_runs()
            self.delivery.send()
        except Exception as error:  # raised again in the main thread
            reason = reason_away(error)
            if reason is None:
                return None, error
            return reason, None
        return None, None


def send_waiting() -> None:
    """Send what earlier processes left; a rejected outbox is reported and set aside."""
    from tasks.tracking.delivery import Delivery, reason_away

    for outbox in waiting():
        try:
            Delivery(outbox).send()
        except Exception as error:
            if reason_away(error) is not None:
                raise
            target = FOLDER.with_name("mlflow-rejected") / outbox.token
            target.parent.mkdir(exist_ok=True)
            outbox.folder.rename(target)
            store.say(f"MLflow rejected the records of a run: {error}; they are in {target}")
        finally:
            outbox.close()


def finish_runs(patience: float = 30.0) -> None:
    """Send what earlier processes left while MLflow answers, for `patience` seconds at most."""
    if not FOLDER.is_dir() or not any(FOLDER.iterdir()):
        return
    thread = threading.Thread(target=_try_waiting, daemon=True)
    thread.start()
    thread.join(patience)


def _try_waiting() -> None:
    from tasks.tracking.delivery import reason_away

    try:
        store.connect()
        send_waiting()
    except Exception as error:
        if reason_away(error) is None:
            raise
