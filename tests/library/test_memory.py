"""Too little memory ends every command in a sentence, not in a library's abort."""

import os
import subprocess
import sys

import pytest

from gptmill.memory import shortage
from tasks.project.environment import ROOT


@pytest.mark.parametrize(
    "words", [("gptmill", "score", "x", "y"), ("tasks", "sample"), ("flows", "params")]
)
def test_a_low_limit_is_named_before_any_work(words: tuple[str, ...]) -> None:
    command = ["/bin/sh", "-c", 'ulimit -v 700000; exec "$@"', "-", sys.executable, "-m", *words]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    sentence = "this process may use 683 MiB of memory, and needs 1024 MiB or more: raise the limit"
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("message", "is_shortage"),
    [
        ("RuntimeError: can't start new thread", True),
        ("libtorch_cpu.so: failed to map segment from shared object", True),
        ("OpenBLAS error: Memory allocation still failed after 10 retries, giving up.", True),
        ("the text is too short", False),
    ],
)
def test_signs_of_a_shortage(message: str, *, is_shortage: bool) -> None:
    assert (shortage(message) is not None) == is_shortage
