"""The process that renders chat templates, started at the first rendering and used again.

template_renderer.py is the program, and the reason for a separate process.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

PROGRAM = "gptmill.tokenizer.template_renderer"
CPU_SECONDS = 2.0
"""Processor time for a rendering; the rendering of a usual chat takes less than a millisecond."""
MEMORY_BYTES = 512 * 2**20


class TemplateProcess:
    """A process that renders one template at a time, for all threads.

    After a death at a limit, the next rendering starts a new process.
    """

    def __init__(self, cpu_seconds: float = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        self._cpu_seconds = cpu_seconds
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return `text`, or `error` and the template's `line`."""
        question = json.dumps({"source": source, "variables": variables}).encode() + b"\n"
        with self._lock:
            process = self._running()
            try:
                answer = _exchange(process, question)
            except BaseException:  # Ctrl-C, say: the answer to come belongs to nobody
                self.stop()
                raise
            if not answer.endswith(b"\n"):
                return {"error": self._death(process.wait()), "line": None}
        reply: dict[str, Any] = json.loads(answer)
        return reply

    def stop(self) -> None:
        """End the process, if there is a process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            # the renderer's modules come from the same tree as this process's
            path = os.pathsep.join(filter(None, sys.path))
            limits = [str(self._cpu_seconds), str(self._memory_bytes)]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM, *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        return self._process

    def _death(self, status: int) -> str:
        """Return what a template did to the process; a status above 0 is our own mistake."""
        assert status < 0, f"{PROGRAM} ended with status {status}"
        number = signal.Signals(-status)
        if number == signal.SIGPROF:
            return f"takes more than {self._cpu_seconds:g} s of processor time for these messages"
        return f"ends the rendering process with {number.name} for these messages"


def _exchange(process: subprocess.Popen[bytes], question: bytes) -> bytes:
    """Return the line that answers the question, cut short where the process dies."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(question)
        process.stdin.flush()
    except BrokenPipeError:
        return b""
    return process.stdout.readline()


PROCESS = TemplateProcess()
atexit.register(PROCESS.stop)


def _after_fork() -> None:
    """Give a forked process a renderer of its own: a pipe serves a single reader."""
    PROCESS.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)
