"""The log file of a pipeline run, and what of the log reaches a terminal beside the view."""

import logging
from pathlib import Path

import pytest

from flows.terminal import logs


@pytest.mark.parametrize(
    ("value", "verbose"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)]
)
def test_all_lines_are_printed_on_request(
    monkeypatch: pytest.MonkeyPatch, value: str | None, verbose: bool
) -> None:
    monkeypatch.delenv("VERBOSE", raising=False)
    if value is not None:
        monkeypatch.setenv("VERBOSE", value)
    assert logs.is_verbose() is verbose


def test_only_the_newest_logs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOGS", tmp_path)
    for number in range(logs.KEPT + 3):
        (tmp_path / f"pipeline-20200101-0000{number:02d}.log").touch()
    (tmp_path / "prefect.log").touch()
    logs.new_file().touch()
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == logs.KEPT + 2
    assert kept[0] == "pipeline-20200101-000003.log"
    assert kept[-1] == "prefect.log"


@pytest.mark.parametrize(
    ("level", "message", "shown"),
    [
        (logging.INFO, "step 1/12", False),
        (logging.INFO, "View at http://127.0.0.1:4200/v2/runs", True),
        (logging.WARNING, "a worker is gone", True),
        (logging.ERROR, "Finished in state Failed('no text')", False),
        (logging.ERROR, "Crash detected! Execution was aborted", False),
        (logging.ERROR, "Encountered exception during execution: KeyError()", True),
    ],
)
def test_a_terminal_gets_warnings_and_the_address(level: int, message: str, shown: bool) -> None:
    record = logging.LogRecord("prefect", level, "", 0, message, (), None)
    assert logs.Alarms().filter(record) is shown
