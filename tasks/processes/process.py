"""Process lifetimes: children end with their parent.

SIGTERM raises an exception instead of ending the process at once.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from types import FrameType
from typing import IO, Any

import psutil

PR_SET_PDEATHSIG = 1
NOTHING = 0  # the null signal, which only checks whether the group has a member


class Terminated(BaseException):
    """Request by a signal to end this process.

    A BaseException, so that no `except Exception` swallows the request.
    """

    def __init__(self, number: int, cause: str = "") -> None:
        super().__init__(f"ended by {signal.Signals(number).name}{cause}")
        self.number = number


def raise_on_sigterm() -> None:
    """Raise `Terminated` on SIGTERM.

    `finally` blocks then run and records are closed. Python swallows exceptions raised during the
    finalization of an object (`__del__`, a weak reference's callback) and reports them to
    `sys.unraisablehook`. The hook installed here sends a swallowed SIGTERM or Ctrl-C again, also
    where Prefect's engine has replaced the handler by one that raises an exception of its own.
    """

    def handler(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        lost = [name for pid, name in _above.items() if pid != os.getppid()]
        raise Terminated(number, f", since its parent process, {lost[0]}, died" if lost else "")

    previous_hook = sys.unraisablehook

    def send_again(swallowed: "sys.UnraisableHookArgs") -> None:
        error = swallowed.exc_value
        if isinstance(error, Terminated):
            signal.signal(signal.SIGTERM, handler)
        elif isinstance(error, Exception | SystemExit | GeneratorExit) or error is None:
            previous_hook(swallowed)
            return
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        # after a short delay, since Python swallows exceptions raised inside this hook too
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = send_again
    signal.signal(signal.SIGTERM, handler)


_above: dict[int, str] = {}
"""Id and name of the parent whose death ends this process."""


def _name(pid: int) -> str:
    """Return a process's name for a message: the Python module or script, or the program."""
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        words = []
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    script = len(words) > 1 and "python" in words[0] and not words[1].startswith("-")
    return Path(words[1 if script else 0]).name if words else f"process {pid}"


def die_with_parent() -> None:
    """Send SIGTERM to this process when the parent dies, even by SIGKILL.

    On Linux the kernel sends the signal (prctl(2)), and the setting survives exec. Without
    prctl a thread polls the parent's process id, and an exec ends the thread.
    """
    parent = os.getppid()
    _above[parent] = _name(parent)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before the prctl call
            os.kill(os.getpid(), signal.SIGTERM)
    else:
        threading.Thread(target=watch_parent, args=(parent,), daemon=True).start()


def die_with_make() -> None:
    """Send SIGTERM to this process when its parent dies, if the parent is make.

    A command that was started by a shell outlives the shell.
    """
    with suppress(psutil.NoSuchProcess):
        if psutil.Process(os.getppid()).name() in ("make", "gmake"):
            die_with_parent()


def end_after_sigterm(patience: float) -> None:
    """End this process `patience` seconds after SIGTERM, even if blocked.

    Python's own signal handlers run between two bytecode instructions, and so never while an
    instruction waits for a device or a process. The signal number reaches the socket below at
    once, without waiting for the interpreter.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while signal.SIGTERM not in reading.recv(64):
            pass
        writing.fileno()  # keep the socket open as long as this thread reads
        time.sleep(patience)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def watch_parent(parent: int, interval: float = 1.0) -> None:
    """Send SIGTERM to this process once `parent` has died.

    Compares the parent's process id every `interval` seconds.
    """
    while os.getppid() == parent:
        time.sleep(interval)
    os.kill(os.getpid(), signal.SIGTERM)


def leashed(command: list[str]) -> list[str]:
    """Return the command under the leash: it ends with this process, in the project's folder."""
    return [sys.executable, "-m", "tasks.processes.leash", *command]


@contextmanager
def running_group(
    words: list[str], *, folder: Path, variables: Mapping[str, str], patience: float = 15.0
) -> Iterator[tuple[Popen[str], IO[str]]]:
    """Run `python WORDS` as a process group; yield the process and its output.

    The block reads the output to the end, line by line; the process has its return code after the
    block. An exception in the block ends the whole group (`end_group`), and so does a signal:
    Ctrl-C in the terminal does not reach a separate process group.
    """
    process = subprocess.Popen(
        leashed([sys.executable, *words]),
        cwd=folder,
        env={**os.environ, **variables, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process, process.stdout
            process.wait()
        except BaseException:
            end_group(process, patience=patience)
            raise


def killed_by(number: int) -> str:
    """Return the error message for a process killed by a signal.

    A killed process has no time to write a message of its own.
    """
    name = signal.Signals(number).name
    hint = "; the kernel kills processes when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def end_group(leader: Popen[Any], *, patience: float = 15.0) -> None:
    """End a process group by SIGTERM, then by SIGKILL.

    Between the two signals the group has `patience` seconds to close its records.
    """
    started = time.monotonic()
    number: int = signal.SIGTERM
    while _signal_group(leader, number) and time.monotonic() - started < patience + 5:
        time.sleep(0.05)
        late = time.monotonic() - started > patience
        number = signal.SIGKILL if late else NOTHING


def _signal_group(leader: Popen[Any], number: int) -> bool:
    """Send a signal and return whether the group has a member.

    Signal 0 sends nothing and only checks.
    """
    leader.poll()  # reap the leader: a dead process still counts as a member until then
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True
