"""Launcher of a command that must not outlive the starter.

`python leash.py PARENT COMMAND ...` runs COMMAND in a process group, and returns its status. Once
the process PARENT has died, even by SIGKILL, the whole group ends, and also on SIGTERM or Ctrl-C.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress

POLL_S = 0.2
PATIENCE_S = 2.0  # seconds between SIGTERM and SIGKILL


def leashed(command: list[str]) -> list[str]:
    """Return the command under the leash: it ends with this process, with all its children."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main(parent: int, command: list[str]) -> int:
    """Run the command until its end or the parent's; return the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = subprocess.Popen(command, start_new_session=True)
    with suppress(KeyboardInterrupt):
        while os.getppid() == parent:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(POLL_S)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
    return 128 + signal.SIGTERM


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
