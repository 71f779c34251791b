"""No process outlives the one that asked for it, and a signal is an exception, not an end."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from subprocess import Popen
from types import FrameType
from typing import Any

PR_SET_PDEATHSIG = 1
NOTHING = 0  # the signal that only asks whether anybody is there


class Terminated(BaseException):
    """A signal asked this process to end. Not an Exception: nothing may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def raise_on_sigterm() -> None:
    """Turn SIGTERM into `Terminated`, so that `finally` blocks run and records are closed.

    Python swallows what is raised while it takes an object apart (`__del__`, a weak reference's
    callback), and reports it to `sys.unraisablehook`. A signal that met such a moment is sent
    again, and so is Ctrl-C.
    """

    def handler(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated(number)

    usual = sys.unraisablehook

    def send_again(swallowed: "sys.UnraisableHookArgs") -> None:
        if isinstance(swallowed.exc_value, Terminated):
            signal.signal(signal.SIGTERM, handler)
            number = signal.SIGTERM
        elif isinstance(swallowed.exc_value, KeyboardInterrupt):
            number = signal.SIGINT
        else:
            usual(swallowed)
            return
        # a little later: what is raised in here would be swallowed too
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = send_again
    signal.signal(signal.SIGTERM, handler)


def die_with_parent() -> None:
    """Have SIGTERM sent to this process when its parent dies, even by SIGKILL.

    On Linux the kernel does it (prctl(2)) and the setting survives exec; elsewhere a thread
    watches, which ends with the process image.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was told
            os.kill(os.getpid(), signal.SIGTERM)
    else:
        threading.Thread(target=watch_parent, args=(parent,), daemon=True).start()


def end_after_sigterm(patience: float) -> None:
    """End this process `patience` seconds after SIGTERM, whatever it waits for.

    Python's own handlers run between two of its instructions, and so not while one waits on a
    device or on another process. What the kernel writes to this socket needs no such turn.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while signal.SIGTERM not in reading.recv(64):
            pass
        writing.fileno()  # held open as long as this thread reads
        time.sleep(patience)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def watch_parent(parent: int, interval: float = 1.0) -> None:
    """Send this process SIGTERM once `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(interval)
    os.kill(os.getpid(), signal.SIGTERM)


def start_group(words: list[str], *, folder: Path, variables: Mapping[str, str]) -> Popen[str]:
    """Start `python WORDS` as a process group that ends with this process; its output is a pipe.

    A process of its own group gets no Ctrl-C of the terminal's: `end_group` ends it.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.processes.leash", sys.executable, *words],
        cwd=folder,
        env={**os.environ, **variables, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def killed_by(number: int) -> str:
    """Say which signal ended a process that had no time for words of its own."""
    name = signal.Signals(number).name
    hint = "; the kernel does so when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def end_group(leader: Popen[Any], *, patience: float = 15.0) -> None:
    """End a process group: SIGTERM, `patience` seconds to close its records, then SIGKILL."""
    started = time.monotonic()
    number: int = signal.SIGTERM
    while _signal_group(leader, number) and time.monotonic() - started < patience + 5:
        time.sleep(0.05)
        late = time.monotonic() - started > patience
        number = signal.SIGKILL if late else NOTHING


def _signal_group(leader: Popen[Any], number: int) -> bool:
    """Send a signal (0 only asks) and return whether the group still has a member."""
    leader.poll()  # a dead leader that nobody has asked after still counts as a member
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True
