"""The one place that runs DVC: a stage as a process group of its own, watched line by line.

Why a process and never DVC's Python API: two threads of one process run a stage twice at
once, and a stage needs its own memory. Why `--single-item`: a recursive `repro` fails on
inputs that another one reads.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.dvc.repair import repair
from tasks.processes import receipt
from tasks.processes.process import end_group, killed_by, start_group
from tasks.project.environment import ROOT
from tasks.project.graph import lock

KILLED_BY = re.compile(r"exited with -(\d+)")
# what DVC says about git after each stage, which the flow's table says once
CHATTER = re.compile(
    r"^(\s*$|Running stage |> exec python -m tasks|Updating lock file|Generating lock file"
    r"|To track the changes|\s*git add |To enable auto staging|\s*dvc config core.autostage"
    r"|Use `dvc push`|Data and pipelines are up to date|'data\.dvc' didn't change"
    r"|Stage '\w+' didn't change|Stage '\w+' is cached)"
)

EXECUTED, RESTORED, UNCHANGED, FAILED = "ran", "restored", "unchanged", "failed"


@dataclass
class StageOutcome:
    """What became of one stage, as the receipt and dvc.lock tell it."""

    stage: str
    state: str
    message: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)

    def first(self, event: str) -> dict[str, Any] | None:
        """Return the first event of a kind."""
        return next((found for found in self.events if found["event"] == event), None)


def repro(
    stage: str,
    *,
    on_line: Callable[[str], None],
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    context: dict[str, str] | None = None,
) -> StageOutcome:
    """Bring one stage up to date, passing on its output and events as they appear.

    Whatever ends this call early (Ctrl-C, a cancel, an error) first ends the stage's whole
    process group.
    """
    repair()
    before = lock().get(stage)
    with tempfile.TemporaryDirectory() as folder:
        reader = receipt.ReceiptReader(Path(folder) / "receipt.jsonl")
        words = ["-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
        variables = {**(context or {}), receipt.VARIABLE: str(reader.path)}
        process = start_group(words, folder=ROOT, variables=variables)
        events: list[dict[str, Any]] = []
        last = ""
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if not CHATTER.match(line):
                    on_line(line.rstrip())
                    last = line.strip() + "\n" + last[:2000]
                _pass_on(reader, events, on_event)
            status = process.wait()
        except BaseException:
            end_group(process)
            raise
        finally:
            process.stdout.close()
        _pass_on(reader, events, on_event)
    if status != 0:
        return StageOutcome(stage, FAILED, _why(stage, last, events), events)
    return StageOutcome(stage, _state(before, lock().get(stage), events), "", events)


def _pass_on(
    reader: receipt.ReceiptReader,
    events: list[dict[str, Any]],
    on_event: Callable[[dict[str, Any]], None],
) -> None:
    for event in reader.new():
        events.append(event)
        on_event(event)


def _state(before: Any, after: Any, events: list[dict[str, Any]]) -> str:
    """Tell from receipt and lock: a receipt means it ran, a new entry alone that DVC had it."""
    if events:
        return EXECUTED
    return UNCHANGED if before == after else RESTORED


def _why(stage: str, last: str, events: list[dict[str, Any]]) -> str:
    """Return the stage's own message, or the signal that left it no time for one."""
    told = next((event["message"] for event in events if event["event"] == "error"), None)
    if told:
        return str(told)
    found = KILLED_BY.search(last)
    if found:
        return f"{stage} {killed_by(int(found[1]))}"
    return next((line for line in last.splitlines() if line), f"dvc could not run {stage}")
