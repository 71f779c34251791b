"""Runs readers on damaged files and counts the outcomes."""

import resource
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from tests.support.fuzz.readers import READERS, Reader

CPU_SECONDS = 10.0
"""Limit for reading a file; a valid file takes a hundredth."""
MEMORY = 4 * 2**30
"""Bytes of address space that reading may add."""


class HangError(BaseException):
    """A reader is still at work after the limit."""


@dataclass
class Outcomes:
    """Counts of outcomes, and a description of each kind of fault."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)


def try_reader(name: str, folder: Path, seed: int, cases: range) -> Outcomes:
    """Read files damaged with the seeds of `cases`; return the outcomes."""
    reader, outcomes = READERS[name], Outcomes()
    folder.mkdir(parents=True)
    reader.make(folder)
    path = folder / reader.file
    names = (reader.file, str(folder), *reader.names)
    valid = {file: file.read_bytes() for file in folder.iterdir()}
    for case in cases:
        path.write_bytes(reader.damage(Random(f"{seed} {name} {case}"), valid[path]))
        with limits():
            outcome = _outcome(reader, folder, names)
        kind, _, text = outcome.partition(" | ")
        outcomes.counts[kind.split(":")[0]] += 1
        if kind not in ("read", "refused"):
            outcomes.faults.setdefault(kind, f"{name}, seed {seed}, case {case}: {text}")
        for file, content in valid.items():
            file.write_bytes(content)
    return outcomes


def _outcome(reader: Reader, folder: Path, names: tuple[str, ...]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder)
    except ValueError as error:
        if type(error) is not ValueError:  # subclasses come from libraries, and name no file
            return _fault(error)
        named = any(name in str(error) for name in names)
        return "refused" if named else f"unnamed: | {error}"
    except AssertionError:
        raise  # ours: with the traceback
    except (Exception, HangError) as error:
        return _fault(error)
    return "read"


def _fault(error: BaseException) -> str:
    """Describe an exception by its class and the last line of ours."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if "gptmill" in path.parts:
            line = f"{path.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {line} | {error}"[:200]


@contextmanager
def limits() -> Iterator[None]:
    """Limit processor time and memory in the block."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGPROF, _raise_hang)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGPROF, handler)


def _raise_hang(number: int, frame: FrameType | None) -> None:
    raise HangError(f"no result after {CPU_SECONDS:.0f} seconds of processor time")
