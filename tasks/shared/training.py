"""Training in a stage: params, resuming, and reports."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import nn

from gptmill.device import peak_memory
from gptmill.files import write_csv
from gptmill.model.objectives import Batch, Objective
from gptmill.training.flops import datasheet_peak, measured_peak
from gptmill.training.guard import GuardConfig
from gptmill.training.optimizers import OptimizerConfig
from gptmill.training.plan import Plan, Step, StoppingConfig
from gptmill.training.trainer import Trainer
from tasks.frame.run import Inputs, Run
from tasks.frame.stage import Section
from tasks.tracking import plots

if TYPE_CHECKING:
    import pandas as pd

Steps = Generator[Step, None, None]


class TrainingSection(Section, ABC):
    """The params that every stage with a training loop has."""

    learning_rate: float = Field(gt=0, description="the peak, after warmup")
    optimizer: OptimizerConfig
    stopping: StoppingConfig
    guard: GuardConfig

    @abstractmethod
    def describe_batch(self, inputs: Inputs, number: int) -> list[dict[str, Any]]:
        """Return the rows of training batch `number`, counted from 0."""

    def plan(self, run: Run, *, steps: int, evaluate_every: int, sample_every: int = 0) -> Plan:
        """Return the plan of a training of `steps` steps."""
        micro_batch = run.runtime.micro_batch
        return Plan(
            steps=steps,
            learning_rate=self.learning_rate,
            optimizer=self.optimizer,
            seed=run.seed,
            evaluate_every=evaluate_every,
            sample_every=sample_every,
            stopping=self.stopping,
            guard=self.guard,
            micro_batch=None if micro_batch == "auto" else micro_batch,
        )


@dataclass
class Report:
    """Reports each step, and collects the tables of steps and of evaluations."""

    run: Run
    steps: int
    ceilings: Mapping[str, float]
    """Peak FLOP/s by name, the denominators of MFU."""
    flops_per_token: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    """The evaluations by step; step 0 is before training."""
    costs: list[dict[str, float]] = field(default_factory=list)
    samples: dict[int, str] = field(default_factory=dict)
    _begun: tuple[float, int] | None = None

    def add(self, step: Step) -> None:
        """Record a step; after a rollback, drop the undone steps first."""
        self._drop_undone(step.step)
        figures = {
            "train/loss": step.loss,
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
        }
        if step.before is not None:
            self.run.step(0, self.steps, step.before, replayed=step.replayed)
            self.evaluations[0] = step.before
        if step.evaluation is not None:
            self.evaluations[step.step] = step.evaluation
        costs = self._costs(step)
        skipped = {} if step.fault is None else {"skipped": 1.0}
        shown = figures | (step.evaluation or {}) | skipped
        self.run.step(step.step, self.steps, shown, costs=costs, replayed=step.replayed)
        fault = step.fault or ""
        data = {"batch_number": step.batch_number, "batch": step.batch}
        self.rows.append({"step": step.step, **_as_columns(figures), **data, "fault": fault})
        self.costs.append({"step": step.step, **costs})
        if step.sample is not None:
            self.samples[step.step] = step.sample

    def _drop_undone(self, step: int) -> None:
        """Drop the records of a step and of later steps."""
        del self.rows[step - 1 :], self.costs[step - 1 :]
        self.evaluations = {known: row for known, row in self.evaluations.items() if known < step}

    def tables(self) -> "tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]":
        """Return a row per step, a row per evaluation, and the costs of each step.

        pandas takes 70 MB, and is not needed while training.
        """
        import pandas as pd

        evaluations = [{"step": step, **_as_columns(row)} for step, row in self.evaluations.items()]
        return pd.DataFrame(self.rows), pd.DataFrame(evaluations), pd.DataFrame(self.costs)

    def _costs(self, step: Step) -> dict[str, float]:
        """Return rates and memory of a step: they vary between runs, so no artifact holds them."""
        rate = step.tokens_per_second
        costs = {"tokens_per_second": rate, "data_wait": step.data_wait}
        costs["micro_batch"] = step.micro_batch
        for name, ceiling in self.ceilings.items():
            costs[name] = rate * self.flops_per_token / ceiling
        if not step.replayed:
            costs["peak_memory_gb"] = peak_memory() / 1e9
            now = time.monotonic()
            self._begun = self._begun or (now, step.step)
            steps = step.step - self._begun[1]
            if steps:
                costs["seconds_left"] = (now - self._begun[0]) / steps * (self.steps - step.step)
        return costs


def _as_columns(figures: Mapping[str, float]) -> dict[str, float]:
    return {name.replace("/", "_"): value for name, value in figures.items()}


@dataclass(frozen=True)
class Trained:
    """The results of a training besides the weights."""

    table: "pd.DataFrame"
    """One row per step, equal in every repetition."""
    samples: list[str]
    evaluation: dict[str, float]
    """The evaluation of the final weights."""

    @property
    def steps(self) -> int:
        """Return the number of steps, fewer than planned after early stopping."""
        return len(self.table)

    @property
    def skipped(self) -> int:
        """Return the number of steps without an update."""
        return int((self.table["fault"] != "").sum())


def train(
    run: Run,
    model: nn.Module,
    objective: Objective,
    batches: Callable[[int], Batch],
    *,
    plan: Plan,
    evaluate: Callable[[], dict[str, float]],
    describe: Callable[[int], Any],
    sample: Callable[[int], str] | None = None,
    flops_per_token: float = 0.0,
) -> Trained:
    """Train to the end, or resume; report each step and write both tables.

    All ranks call this. The first one writes and reports.
    """
    store = run.store() if run.is_first_rank else None
    trainer = Trainer(
        model,
        objective,
        batches,
        plan=plan,
        device=run.device(),
        evaluate=evaluate,
        sample=sample,
        describe=describe,
        store=store,
        world=run.world,
    )
    trainer.restore()
    for note in store.notes if store is not None else ():
        run.log(note)
    if trainer.resumed_at:
        run.log(f"resumes from step {trainer.resumed_at:,} of {plan.steps:,}")
        run.tag("resumed_at", str(trainer.resumed_at))
    ceilings = _ceilings(run) if flops_per_token else {}
    report = Report(run, plan.steps, ceilings, flops_per_token)
    with closing(trainer.steps()) as steps:
        for step in _with_bad_batches(run, trainer, steps):
            report.add(step)
    table, evaluations, costs = report.tables()
    if run.is_first_rank:
        write_csv(run.out / "training.csv", table)
        write_csv(run.out / "evaluations.csv", evaluations)
        run.figure("training", plots.curves(table, evaluations))
        run.figure("learning_rate", plots.line(table, "learning_rate"))
        run.figure("throughput", plots.line(costs, "tokens_per_second"))
    return Trained(table, list(report.samples.values()), trainer.evaluation())


def _with_bad_batches(
    run: Run, trainer: Trainer, steps: Generator[Step, None, None]
) -> Generator[Step]:
    """Yield the steps, and save each bad batch with its documents for inspection."""
    saved = 0

    def save() -> None:
        nonlocal saved
        for bad in trainer.bad_batches[saved:]:
            run.save_beside_state(
                f"bad_batches/step-{bad['step']:09d}-batch-{bad['batch_number']:09d}.json", bad
            )
            run.log(f"step {bad['step']:,} skipped: {bad['fault']}; the batch is saved")
        saved = len(trainer.bad_batches)
        if saved:
            run.tag("bad_batches", str(saved))

    try:
        for step in steps:
            save()
            yield step
    finally:
        save()


def _ceilings(run: Run) -> dict[str, float]:
    """Return the measured peak FLOP/s of the devices, and the peak on their datasheet.

    The first rank measures its own device, and assumes equal devices on all ranks.
    """
    if run.world.rank:
        return {}
    device = run.device()
    peaks = {"mfu": measured_peak(device.device, device.precision)}
    published = datasheet_peak(device.model)
    if published is not None:
        peaks["mfu_datasheet"] = published
    return {name: flops * run.world.size for name, flops in peaks.items()}
