"""`dvc repro` of a stage, in a process group.

The output of the process group is read line by line, and every pipeline run calls `dvc repro`
through this module. The module starts a process instead of calling DVC's Python API, because
two threads of a process would run a stage twice at once, and a stage needs its own memory. The
option `--single-item` is used because a recursive `repro` fails on inputs in use by a second
`repro`.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flows.dvc.command import default_remote, dvc, run_dvc
from flows.dvc.repair import repair
from flows.dvc.verify import Faults, verify
from gptmill.sources.address import hidden
from tasks.processes import locks, receipt
from tasks.processes.process import killed_by, running_group
from tasks.project.cache import cache_folder, cached_digest, drop_damaged
from tasks.project.environment import ROOT
from tasks.project.graph import lock, stages
from tasks.tracking import runs

KILLED_BY = re.compile(r"exited with -(\d+)")
# DVC's own lines and git hints after each stage; the flow's table reports them once
CHATTER = re.compile(
    r"^(\s*$|Running stage |> exec python -m tasks|Updating lock file|Generating lock file"
    r"|To track the changes|\s*git add |To enable auto staging|\s*dvc config core.autostage"
    r"|Use `dvc push`|Data and pipelines are up to date|'data\.dvc' didn't change"
    r"|Stage '\w+' didn't change|Stage '\w+' is cached"
    r"|WARNING: Process '.*' with \(Pid \d+\), in RWLock-file)"
)
FAILURE = "ERROR: failed to reproduce"  # repeats the stage's own message
BUSY = "it is being blocked by"
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")

EXECUTED, RESTORED, UNCHANGED, FAILED = "ran", "restored", "unchanged", "failed"


@dataclass
class StageOutcome:
    """Outcome of a stage, from its receipt and dvc.lock."""

    stage: str
    state: str
    message: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)

    def first(self, event: str) -> dict[str, Any] | None:
        """Return the first event of a kind, or None."""
        return next((entry for entry in self.events if entry["event"] == event), None)


def repro(
    stage: str,
    *,
    on_line: Callable[[str], None],
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    context: dict[str, str] | None = None,
    unchanged: bool = False,
    force: bool = False,
) -> StageOutcome:
    """Bring a stage up to date and verify the outputs; forward output and events.

    Lines and events are forwarded as they appear. When the call ends early (Ctrl-C, a cancel, an
    error), the stage's whole process group is ended first. A damaged file in DVC's cache is removed
    and made again, and a missing one is stored again. DVC does not start for a stage that
    `unchanged_stages` named. Outputs that this machine lacks come from the default remote, where
    one is set and has them. With `force` the stage runs, up to date or not.
    """
    repair()
    _mend_cache(stage, on_line)
    if unchanged and not force and not verify(lock()[stage]):
        return StageOutcome(stage, UNCHANGED)
    remote = "" if force else default_remote(ROOT)
    options = ("--force",) if force else ("--pull",) if remote else ()
    run = partial(_run, stage, on_line=on_line, on_event=on_event, context=context)
    outcome = run(options)
    if remote and _did_not_begin(outcome):
        reason = hidden(outcome.message)
        on_line(f"DVC failed with the remote {remote}, and is called without the remote: {reason}")
        options = ()
        outcome = run(options)
    while outcome.state == FAILED and BUSY in outcome.message:  # a `dvc repro` of the user's own
        locks.wait_for_dvc(on_line)
        outcome = run(options)
    faults = verify(lock()[stage]) if outcome.state != FAILED else None
    if faults and faults.damaged and outcome.state == RESTORED:  # of an older run than dvc.lock's
        _mend_cache(stage, on_line)
        outcome = run(options)
        faults = verify(lock()[stage]) if outcome.state != FAILED else None
    if faults:
        outcome = StageOutcome(stage, FAILED, _faults_message(stage, faults), outcome.events)
    start = outcome.first("start")
    if outcome.state == FAILED and start:
        runs.close_killed(start["run"], outcome.message)
    return outcome


def _did_not_begin(outcome: StageOutcome) -> bool:
    """Return whether DVC failed before the stage began, and not for another DVC at work."""
    return outcome.state == FAILED and not outcome.events and BUSY not in outcome.message


def unchanged_stages() -> set[str]:
    """Return the stages that DVC would skip, or none while DVC gives no answer.

    A single `dvc status` takes as long as `dvc repro` of one stage. The answer holds until a stage
    runs.
    """
    result = run_dvc(ROOT, "status", "--json")
    if result.returncode != 0:
        return set()
    changed = json.loads(result.stdout)
    return {stage for stage in stages() if stage in lock() and stage not in changed}


def stale_stages(names: Collection[str]) -> list[str]:
    """Return the stages among `names` that would run again."""
    status = json.loads(dvc(ROOT, "status", "--json", *names)) if names else {}
    return [name for name in names if name in status]


def _mend_cache(stage: str, on_line: Callable[[str], None]) -> None:
    """Remove damaged files from DVC's cache, and store intact outputs that the cache lacks.

    DVC itself would restore damaged files, and run a stage again whose outputs the cache lacks, for
    example since the disk was full. A stage with changed inputs is left to DVC.
    """
    entry = lock().get(stage)
    if not entry:
        return
    faults = verify(entry)
    for path in drop_damaged(ROOT, map(cached_digest, faults.damaged)):
        on_line(f"{path} was damaged: the content has a different hash than the name; removed")
    if faults.damaged:
        faults = verify(entry)
    if faults.missing and not faults.changed:
        on_line(f"DVC's cache lacks {len(faults.missing)} files of {stage}: storing them")
        run_dvc(ROOT, "commit", stage)


def _run(
    stage: str,
    options: Sequence[str],
    *,
    on_line: Callable[[str], None],
    on_event: Callable[[dict[str, Any]], None],
    context: dict[str, str] | None,
) -> StageOutcome:
    """Run `dvc repro` of a stage."""
    before = lock().get(stage)
    with tempfile.TemporaryDirectory() as folder:
        # a starter of this command may read the receipt too
        reader = receipt.ReceiptReader(
            Path(os.environ.get(receipt.VARIABLE) or f"{folder}/receipt.jsonl")
        )
        reader.new()  # of earlier stages
        words = ["-m", "dvc", "--wait-for-lock", "repro", "--single-item", *options, stage]
        variables = {**(context or {}), receipt.VARIABLE: str(reader.path)}
        variables[locks.HELD] = str(ROOT)
        events: list[dict[str, Any]] = []
        last = ""
        with running_group(words, folder=ROOT, variables=variables) as (process, lines):
            for line in lines:
                if not CHATTER.match(line):
                    last = line.strip() + "\n" + last[:2000]
                    if not line.startswith(FAILURE):
                        on_line(line.rstrip())
                _forward_events(reader, events, on_event)
        _forward_events(reader, events, on_event)
    if process.returncode != 0:
        message = _failure_message(stage, process.returncode, last, events)
        return StageOutcome(stage, FAILED, message, events)
    return StageOutcome(stage, _state(before, lock().get(stage), events), "", events)


def _faults_message(stage: str, faults: Faults) -> str:
    """Return the error for outputs that DVC could not store or restore."""
    if faults.missing:
        return (
            f"{stage}: DVC could not store {len(faults.missing)} files in its cache, "
            f"{cache_folder(ROOT)}: is the disk full? Make room and repeat the command; the "
            "outputs are in artifacts/ and the stage does not run again"
        )
    path = (faults.damaged or faults.changed)[0]
    return (
        f"{stage}: {path} differs from dvc.lock right after DVC wrote it: check the disk, then "
        "repeat the command"
    )


def _forward_events(
    reader: receipt.ReceiptReader,
    events: list[dict[str, Any]],
    on_event: Callable[[dict[str, Any]], None],
) -> None:
    for event in reader.new():
        events.append(event)
        on_event(event)


def _state(before: Any, after: Any, events: list[dict[str, Any]]) -> str:
    """Return a stage's state from its receipt and lock entry.

    Events in the receipt mean a run of the stage. A new lock entry alone means outputs restored
    from DVC's cache.
    """
    if events:
        return EXECUTED
    return UNCHANGED if before == after else RESTORED


def _failure_message(stage: str, status: int, last: str, events: list[dict[str, Any]]) -> str:
    """Return the stage's own error message, or the killing signal.

    A signal can leave a stage no time for a message, and a stage under a killed DVC knows only
    its own signal.
    """
    if status < 0:
        return f"{stage}: DVC, which runs the stage, {killed_by(-status)}"
    message = next((event["message"] for event in events if event["event"] == "error"), None)
    if message:
        return str(message)
    if BUSY in last:
        return f"{stage} is busy, {BUSY} a second DVC"
    match = KILLED_BY.search(last)
    if match:
        return f"{stage} {killed_by(int(match[1]))}"
    if NO_SPACE.search(last):
        return (
            f"{stage}: the disk with DVC's cache, {cache_folder(ROOT)}, is full: make room and "
            "repeat the command"
        )
    return next((line for line in last.splitlines() if line), f"dvc could not run {stage}")
