"""The kill harness: trainings as real processes under real signals, run again until they end.

`PYTHONPATH=src:. python -m tests.support.killing 50 7` kills 50 times at moments drawn with seed 7,
and prints how many of each there were; `50 7 compiled` does so with torch.compile.
tests/promises/test_kill.py has a fixed plan.
"""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML
from safetensors import safe_open

from flows.dvc.repair import is_record
from gptmill.files import sha256
from tasks.processes.receipt import VARIABLE, ReceiptReader
from tests.support.project import Project, commit, tiny_project

TRAINED = ("pretrain", "lora", "classify", "instruct")

# Trainings of some 40 steps whose evaluations take several steps' time, so that they are hit.
PARAMS: dict[str, Any] = {
    "pretrain": {
        "shape": {"emb_dim": 64, "n_layers": 2, "n_heads": 2},
        "drop_rate": 0.1,
        "steps": 40,
        "batch_tokens": 256,
        "evaluate_every": 8,
        "sample_every": 8,
        "evaluate_windows": 45,
        "generation": {"max_new_tokens": 8},
    },
    "split": {
        "labelled_fractions": {"train": 0.3, "validation": 0.6, "test": 0.1},
        "instructions_fractions": {"train": 0.4, "validation": 0.5, "test": 0.1},
    },
    "lora": {"epochs": 4, "batch_size": 4, "adapter": {"dropout": 0.1}},
    "classify": {"epochs": 4, "batch_size": 4, "trainable": "all"},
    "instruct": {"epochs": 5, "batch_size": 4, "max_new_tokens": 4},
}

MOMENTS = ("start", "step", "evaluation", "save", "end", "commit")
"""When a kill comes: before the first step of the process, in a step, in an evaluation, with a
half-written state on disk, after the last step, and between the stage's end and DVC's commit."""

WHOM = ("stage", "group", "dvc")
"""Who gets SIGKILL: the stage's process, its whole group, or DVC above it alone."""


@dataclass(frozen=True)
class Kill:
    """One kill: of what, when, of whom; `wait`, in 0..1, says how late within its moment."""

    stage: str
    moment: str
    whom: str
    wait: float


@dataclass
class Attempt:
    """What one run of a stage did before it ended or was killed."""

    events: list[dict[str, Any]]
    output: str
    status: int
    hit: bool

    @property
    def steps(self) -> list[int]:
        """Return the steps that were trained in it."""
        return [event["step"] for event in self.events if event["event"] == "step"]


@dataclass
class Tally:
    """What the harness did, to be quoted."""

    kills: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    torn: int = 0
    """Kills after which a half-written state lay on disk."""
    finished: int = 0
    """Trainings that ended after kills, each with the bytes of an uninterrupted one."""
    trained: int = 0
    twice: int = 0
    """Steps that were trained again, since a kill came before the state that held them."""
    halves: int = 0
    """Kills after which DVC had half a record, on which it fails by itself."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.kills + other.kills,
            self.missed + other.missed,
            self.torn + other.torn,
            self.finished + other.finished,
            self.trained + other.trained,
            self.twice + other.twice,
            self.halves + other.halves,
        )

    def __str__(self) -> str:
        parts = [
            " ".join(f"{name} {count}" for name, count in self._by(place).items())
            for place in range(3)
        ]
        missed = sum(self.missed.values())
        return (
            f"{self.kills.total()} kills ({'; '.join(parts)}), {self.torn} of them left a torn "
            f"state and {self.halves} of them half a record of DVC's, {missed} attempts ended "
            f"before their kill; {self.finished} trainings ended, "
            f"all with equal bytes; {self.trained} steps trained, {self.twice} of them twice"
        )

    def _by(self, place: int) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for kill, count in self.kills.items():
            counts[kill[place]] += count
        return dict(sorted(counts.items()))


def reference(root: Path, *, changes: dict[str, Any] | None = None) -> Project:
    """Make a project and run its trainings once, uninterrupted."""
    project = tiny_project(root)
    project.params(PARAMS)
    project.params(changes or {})
    commit(project, "trainings that are long enough to be killed")
    done = project.run("dvc", "repro", *TRAINED, timeout=1200)  # compiling takes its time
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def lock_entry(project: Project, stage: str) -> dict[str, Any]:
    """Return a stage's entry of dvc.lock; empty without one, or where the file is cut short."""
    content = (project.root / "dvc.lock").read_bytes()
    return (
        dict(YAML(typ="safe").load(content)["stages"].get(stage, {})) if is_record(content) else {}
    )


def forget(project: Project, stage: str) -> None:
    """Have a stage's training be one that was never run here."""
    yaml = YAML()
    content = yaml.load(project.root / "dvc.lock")
    content["stages"].pop(stage, None)
    yaml.dump(content, project.root / "dvc.lock")
    for path in (f"artifacts/{stage}", f".state/{stage}", ".dvc/cache/runs"):
        shutil.rmtree(project.root / path, ignore_errors=True)


class Chain:
    """One stage's training in a project of its own: kill after kill, then to its end."""

    def __init__(self, first: Project, root: Path, stage: str) -> None:
        self.stage = stage
        self.tally = Tally()
        self.first = first
        shutil.copytree(first.root, root, symlinks=True)
        self.project = Project(root)
        forget(self.project, stage)
        commit(self.project, "all but one training")  # a cut dvc.lock is taken from here
        steps = (first.root / "artifacts" / stage / "training.csv").read_text().splitlines()
        self.steps = len(steps) - 1
        self.every = read_every(self.project, stage, self.steps)
        self._attempts = 0
        self._done: list[int] = []
        self._held: set[int] = set()  # steps of states: a signal may come before the step is told

    def kill(self, kill: Kill) -> None:
        """Run the stage and kill it at the moment asked for; once more, earlier, where it ended."""
        for again in range(5):
            if kill.moment in ("step", "evaluation", "save") and self.left() < 2:
                self.finish()
            held = self.held()
            attempt = self._attempt(replace(kill, wait=kill.wait / 2**again))
            self._check(attempt, held)
            if attempt.hit:
                self.tally.kills[kill.stage, kill.moment, kill.whom] += 1
                return
            # it ended, or died when all was done
            assert attempt.status in (0, -signal.SIGKILL), (kill, attempt.output)
            self.tally.missed[kill.moment] += 1
            self._compare()
        raise AssertionError(f"{kill} did not come about: {attempt.output[-2000:]}")

    def finish(self) -> None:
        """Run the stage to its end; the bytes must be those of the run that was never killed."""
        held = self.held()
        attempt = self._attempt(None)
        self._check(attempt, held)
        assert attempt.status == 0, attempt.output
        self._compare()

    def held(self) -> tuple[int, bool]:
        """Return the step of the newest finished state on disk, and whether it owes its record.

        It does where it was saved between the step's update and its record, as a signal in an
        evaluation does. Without a state: step 0, which owes nothing.
        """
        step, path = self._newest()
        if path is None:
            return 0, False
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["record"])
        return step, record["progress"]["open"] is not None

    def left(self) -> int:
        """Return how many steps the newest finished state has still to go."""
        return self.steps - self._newest()[0]

    def _newest(self) -> tuple[int, Path | None]:
        seals = (self.project.root / ".state" / self.stage).glob("*/step-*.sha256")
        states = ((int(path.stem.removeprefix("step-")), path) for path in seals)
        step, seal = max(states, default=(0, None))
        return step, seal and seal.with_suffix(".safetensors")

    def _check(self, attempt: Attempt, before: tuple[int, bool]) -> None:
        """Check that the attempt went on from the newest state, and count its steps."""
        done = attempt.steps
        held, owes = before
        if done:
            words = f"resumes from step {held} of {self.steps}"
            first = held if owes else held + 1
            assert done[0] == first, (done, before, attempt.output)
            assert (words in attempt.output) == (held > 0), (held, attempt.output)
            assert done == list(range(done[0], done[-1] + 1))
        assert "Traceback" not in attempt.output, attempt.output
        self._done += done
        self._held |= {held} - {0}

    def _compare(self) -> None:
        """Compare with the uninterrupted run, and begin anew."""
        found, expected = (lock_entry(one, self.stage) for one in (self.project, self.first))
        assert found == expected, (self.stage, found, expected)
        file = f"artifacts/{self.stage}/training.csv"
        assert sha256(self.project.root / file) == sha256(self.first.root / file)
        self.tally.finished += 1
        self.tally.trained += len(self._done)
        self.tally.twice += len(self._done) - len(set(self._done))
        seen = {*self._done, *self._held}
        assert seen == set(range(1, self.steps + 1)), (self.stage, self._attempts, self._done)
        self._held.clear()
        self._done = []
        forget(self.project, self.stage)

    def _attempt(self, kill: Kill | None) -> Attempt:
        self._attempts += 1
        place = self.project.root / ".state" / f"attempt-{self._attempts}"
        place.mkdir()
        with (place / "output").open("w") as output:
            process = subprocess.Popen(
                self._command(kill),
                cwd=self.project.root,
                env=self.project.environment()
                | {VARIABLE: str(place / "receipt"), "PYTHONUNBUFFERED": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        watch = Watch(self, process, ReceiptReader(place / "receipt"))
        try:
            hit = kill is not None and watch.kill(kill)
            process.wait(timeout=120)
        finally:
            watch.end()
        text = (place / "output").read_text(encoding="utf-8", errors="replace")
        watch.read()
        return Attempt(watch.events, text, process.returncode, hit)

    def _command(self, kill: Kill | None) -> list[str]:
        """Return a door: `make STAGE`'s before each third run, else `dvc repro`.

        Half a record of DVC's own is mended by ours alone.
        """
        stuck = half_a_record(self.project.root)
        self.tally.halves += stuck
        if self._attempts % 3 == 0 or stuck:
            return [sys.executable, "-m", "flows", "stage", self.stage]
        return [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-s", self.stage]


def half_a_record(root: Path) -> bool:
    """Return whether DVC was killed while it wrote one of its records."""
    try:
        json.loads((root / ".dvc/tmp/rwlock").read_bytes())
    except FileNotFoundError:
        pass
    except ValueError:
        return True
    runs = (root / ".dvc/cache/runs").glob("*/*/")
    return any(not any(path.iterdir()) for path in runs) or not is_record(
        (root / "dvc.lock").read_bytes()
    )


def read_every(project: Project, stage: str, steps: int) -> int:
    """Return after how many steps a stage evaluates."""
    params = YAML(typ="safe").load(project.root / "params.yaml")[stage]
    return int(params["evaluate_every"] if stage == "pretrain" else steps // params["epochs"])


class Watch:
    """Looks at a running stage from outside (its receipt, its state's folder) and kills it."""

    def __init__(
        self, chain: Chain, process: subprocess.Popen[bytes], reader: ReceiptReader
    ) -> None:
        self.chain = chain
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._reader = reader
        self._stage: psutil.Process | None = None
        self._group = process.pid  # DVC's: of its own below `make STAGE`
        self._times: list[float] = []
        self._step_seconds = 0.01

    def read(self) -> None:
        """Take in what the stage told since."""
        for event in self._reader.new():
            self.events.append(event)
            if event["event"] == "step":
                self._times.append(time.monotonic())

    def kill(self, kill: Kill) -> bool:
        """Kill at a moment. Returns False where the run ended before."""
        at: dict[str, Callable[[Kill], bool]] = {
            "start": self._at_start,
            "step": self._in_a_step,
            "evaluation": self._in_an_evaluation,
            "save": self._in_a_save,
            "end": self._at_the_end,
            "commit": self._before_the_commit,
        }
        return at[kill.moment](kill)

    def end(self) -> None:
        """Wait until nothing of this run is left; it ends by itself, or the test fails."""
        deadline = time.monotonic() + 60
        # DVC takes the pid of a killed process for a living one until the kernel forgets it
        while self._members() and time.monotonic() < deadline:
            time.sleep(0.02)
        left = [name for name in self._members() if name != psutil.STATUS_ZOMBIE]
        if left or self.process.poll() is None:
            for group in {self._group, self.process.pid}:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            self.process.wait()
        assert not left, f"outlived their parent: {left}"

    # the moments

    def _at_start(self, kill: Kill) -> bool:
        """Kill between the launch and the first step; early while Python still loads."""
        if not self._until(lambda: self._find_stage() is not None):
            return False
        if kill.wait > 0.6:
            if not self._until(lambda: self._seen("start")):
                return False
            time.sleep(0.3 * (kill.wait - 0.6))
        else:
            time.sleep(2.5 * kill.wait)
        return self._strike(kill)

    def _in_a_step(self, kill: Kill) -> bool:
        wanted = 1 + int(kill.wait * 5)
        if not self._until(lambda: len(self._times) >= wanted):
            return False
        time.sleep((kill.wait * 5 % 1) * 0.02)
        return self._strike(kill)

    def _in_an_evaluation(self, kill: Kill) -> bool:
        """Kill after the step before an evaluation was told and before the evaluated one is.

        An evaluation takes several times as long as a step; the wait leaves the step itself out.
        """
        every, steps = self.chain.every, self.chain.steps

        def before() -> bool:
            last = self._last_step()
            return last is not None and last % every == every - 1 and last < steps

        while self._until(before):
            last = self._last_step()
            gaps = sorted(b - a for a, b in zip(self._times, self._times[1:], strict=False))
            step = gaps[len(gaps) // 2] if gaps else 0.02
            time.sleep(min(step, 0.05) * (1.3 + kill.wait))
            with self._stopped():
                self.read()
                if self._last_step() == last:
                    return self._strike(kill)
            if not self._until(lambda last=last: self._last_step() != last):  # type: ignore[misc]
                return False
        return False

    def _in_a_save(self, kill: Kill) -> bool:
        """Kill while a state is half written: stopped first, so that it is known to be so."""
        states = self.chain.project.root / ".state" / self.chain.stage
        after = 1 + int(kill.wait * 3)

        def half() -> bool:
            return len(self._times) >= after and any(_half_written(states))

        while self._until(half, pause=0.0):
            with self._stopped():
                if any(_half_written(states)):
                    self.chain.tally.torn += kill.whom != "dvc"
                    return self._strike(kill)
        return False

    def _at_the_end(self, kill: Kill) -> bool:
        """Kill after the last step: while the last state, the checkpoint or the model is written.

        A training that was finished before makes no step: then after its start.
        """
        finished = self.chain.left() == 0

        def over() -> bool:
            return self._seen("start") if finished else self._last_step() == self.chain.steps

        if not self._until(over):
            return False
        time.sleep(kill.wait * 1.2)
        self.read()
        return not self._seen("end") and self._strike(kill)

    def _before_the_commit(self, kill: Kill) -> bool:
        """Kill DVC after its stage has ended, while it waits for its lock or as it commits."""
        if not self._until(lambda: self._seen("start")):
            return False
        mutex = self.chain.project.root / ".dvc" / "tmp" / "lock"
        with mutex.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            over = self._until(lambda: self._seen("end") and self._find_stage() is None)
            if not over or kill.wait < 0.5:
                return over and self._strike(kill)
        taken = mutex.stat().st_mtime_ns  # DVC writes its pid there once it has the lock
        if not self._until(lambda: mutex.stat().st_mtime_ns != taken, pause=0.0):
            return False
        time.sleep(0.25 * (kill.wait - 0.5))
        self._strike(kill)
        self.process.wait()
        return lock_entry(self.chain.project, self.chain.stage) == {}

    # means

    def _until(self, true: Callable[[], bool], *, pause: float = 0.001) -> bool:
        """Wait until something is so; False where the run ends before."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            self.read()
            if true():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(pause)
        raise AssertionError("it neither came about nor ended in two minutes")

    def _seen(self, name: str) -> bool:
        return any(event["event"] == name for event in self.events)

    def _last_step(self) -> int | None:
        steps = [event["step"] for event in self.events if event["event"] == "step"]
        return steps[-1] if steps else None

    def _find_stage(self) -> psutil.Process | None:
        """Return the stage's process, None where it is not there (yet, or any more)."""
        if self._stage is None:
            with suppress(psutil.Error):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    if "tasks" in child.cmdline() and self.chain.stage in child.cmdline():
                        self._stage, self._group = child, os.getpgid(child.pid)
        if self._stage is None:
            return None
        with suppress(psutil.Error):
            if self._stage.status() != psutil.STATUS_ZOMBIE:
                return self._stage
        return None

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        """Hold the stage still while one looks."""
        stage = self._find_stage()
        if stage is not None:
            with suppress(psutil.Error):
                stage.suspend()
                self._until_stopped(stage)
        try:
            yield
        finally:
            if stage is not None:
                with suppress(psutil.Error):
                    stage.resume()

    @staticmethod
    def _until_stopped(stage: psutil.Process) -> None:
        while stage.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.0002)

    def _strike(self, kill: Kill) -> bool:
        stage = self._find_stage()
        if stage is None and kill.moment != "commit":
            return False
        with suppress(ProcessLookupError):  # it ended in this very moment
            if kill.whom == "stage" and stage is not None:
                os.kill(stage.pid, signal.SIGKILL)
            elif kill.whom == "group":
                for group in {self._group, self.process.pid}:
                    os.killpg(group, signal.SIGKILL)
            else:
                os.kill(self._group, signal.SIGKILL)  # DVC leads its group
            return True
        return False

    def _members(self) -> list[str]:
        """Return what is still alive of the groups that the run was given."""
        groups, found = {self._group, self.process.pid}, []
        for process in psutil.process_iter(["cmdline", "status"]):
            with suppress(ProcessLookupError, psutil.Error):
                if os.getpgid(process.pid) in groups:
                    found.append(" ".join(process.info["cmdline"] or [process.info["status"]]))
        return found


def _half_written(states: Path) -> Iterator[Path]:
    """Return states that are being written: partial files, and files without their seal."""
    yield from states.glob("*/.step-*.partial")
    for path in states.glob("*/step-*.safetensors"):
        if not path.with_suffix(".sha256").exists():
            yield path


def victims(moment: str) -> tuple[str, ...]:
    """Return who can be killed at a moment: DVC's death alone lets the stage finish a save."""
    return {"commit": ("dvc", "group"), "save": ("stage", "group")}.get(moment, WHOM)


def planned(stage: str) -> list[Kill]:
    """Return a kill at each moment, two in a step; the victims take turns over the stages."""
    rng, place = random.Random(stage), TRAINED.index(stage)
    moments = ("start", "step", "save", "step", "evaluation", "end", "commit")
    return [
        Kill(stage, moment, victims(moment)[(place + turn) % len(victims(moment))], rng.random())
        for turn, moment in enumerate(moments)
    ]


def drawn(stage: str, kills: int, seed: int) -> list[Kill]:
    """Draw kills of one stage: moments, victims and delays at random."""
    rng = random.Random(f"{seed} {stage}")
    moments = [rng.choice(MOMENTS) for _ in range(kills)]
    return [Kill(stage, name, rng.choice(victims(name)), rng.random()) for name in moments]


def follow(first: Project, root: Path, plan: list[Kill]) -> Tally:
    """Kill one stage's training as planned, then let it end; return what came of it."""
    chain = Chain(first, root, plan[0].stage)
    for kill in plan:
        chain.kill(kill)
    chain.finish()
    return chain.tally


def follow_all(first: Project, root: Path, plans: list[list[Kill]]) -> dict[str, Future[Tally]]:
    """Follow plans of several stages, two at a time."""
    pool = ThreadPoolExecutor(2)
    made = {plan[0].stage: pool.submit(follow, first, root / plan[0].stage, plan) for plan in plans}
    pool.shutdown(wait=False)
    return made


def main(arguments: list[str]) -> int:
    """Kill so many times with a seed, in temporary folders, and print the counts."""
    compiled = arguments[2:] == ["compiled"]
    numbers = arguments[:2] if compiled else arguments
    if not 1 <= len(numbers) <= 2 or not all(word.isdigit() for word in numbers):
        print("usage: killing.py KILLS [SEED [compiled]], as at its head", file=sys.stderr)
        return 2
    kills, seed = int(numbers[0]), int(numbers[1]) if numbers[1:] else 0
    with tempfile.TemporaryDirectory() as folder:
        changes = {"runtime": {"compile": True}} if compiled else {}
        first = reference(Path(folder) / "reference", changes=changes)
        counts = [(kills + place) // len(TRAINED) for place in range(len(TRAINED))]
        plans = [drawn(name, n, seed) for name, n in zip(TRAINED, counts, strict=True) if n]
        total = Tally()
        for made in follow_all(first, Path(folder), plans).values():
            total += made.result()
        print(total)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
