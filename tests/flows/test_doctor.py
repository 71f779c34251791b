"""`make doctor`: each finding has the state and the advice that it deserves."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping

import pytest

from flows.commands.inspect import doctor
from flows.commands.inspect.doctor import GIB, Check
from tasks.project.environment import ROOT

H100 = "GPU 0: NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("check", "state", "words"),
    [
        (doctor.python((3, 11)), "good", "3.11 in"),
        (doctor.python((3, 9)), "bad", "make env PYTHON="),
        (doctor.disk(4 * GIB, has_environment=True), "good", "4 GiB free"),
        (doctor.disk(4 * GIB, has_environment=False), "bad", "a first run takes 5 GiB"),
        (doctor.memory(8 * GIB, -1), "good", "8.0 GiB available"),
        (doctor.memory(None, -1), "good", "unknown"),
        (doctor.memory(2 * GIB, -1), "note", "BASE=pretrain"),
        (doctor.memory(8 * GIB, GIB), "bad", "ulimit -v unlimited"),
        (doctor.cpu("flags : sse avx2 avx512f"), "good", "avx2 avx512f"),
        (doctor.cpu("flags : sse"), "note", "several times as long"),
        (doctor.gpu("", None), "good", ""),
        (doctor.gpu(H100, None), "good", "(1 in all)"),
        (doctor.gpu(H100, "2.13.0+cu130"), "good", "H100"),
        (doctor.gpu(H100, "2.13.0+cpu"), "note", "torch has no CUDA"),
        (doctor.encoding("UTF-8"), "good", "UTF-8"),
        (doctor.encoding("ANSI_X3.4-1968"), "note", "LANG=C.UTF-8"),
        (doctor.proxies({}), "good", "none"),
        (doctor.proxies({"HTTPS_PROXY": "http://me:secret@p:1"}), "good", "http://...@p:1"),
    ],
)
def test_a_finding_and_its_advice(check: Check, state: str, words: str) -> None:
    assert check.state == state
    assert words in f"{check.found} {check.advice}"
    assert "secret" not in check.found
    assert bool(check.advice) == (state != "good")


def test_a_taken_port_names_the_variable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        given: Mapping[str, str] = {"GPTMILL_PREFECT_PORT": port, "GPTMILL_MLFLOW_PORT": "web"}
        first, second = doctor.ports(given)
    assert (first.state, second.state) == ("note", "note")
    assert f"GPTMILL_PREFECT_PORT={int(port) + 1}" in first.advice
    assert "'web' is no port" in second.found


def test_the_command_needs_no_package() -> None:
    """-S leaves out all installed packages, as on a machine without .venv."""
    command = [sys.executable, "-S", "-m", "flows.commands.inspect.doctor"]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    assert done.returncode in (0, 1)
    assert "Python" in done.stdout
    assert "proxies" in done.stdout
