"""The variables that every command of the project sets for its tools."""

import os
import subprocess

import pytest

from tasks.project.environment import OF_A_HOOK, set_environment


def test_git_works_in_its_own_repository_below_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = ["git", "rev-parse", "--local-env-vars"]
    local = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    assert set(OF_A_HOOK) <= {*local, "GIT_NAMESPACE"}
    for name in OF_A_HOOK:
        monkeypatch.setenv(name, "/elsewhere")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "someone")
    set_environment()
    assert not set(OF_A_HOOK) & os.environ.keys()
    assert os.environ["GIT_AUTHOR_NAME"] == "someone"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "127.0.0.1,localhost,::1"),
        ("corp.example, localhost", "corp.example,localhost,127.0.0.1,::1"),
        ("*", "*"),
    ],
)
def test_no_proxy_stands_before_this_machine(
    monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, before)
    set_environment()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == after
