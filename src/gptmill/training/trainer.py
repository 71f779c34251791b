"""The training loop: pretraining, classification, LoRA and instruction fine-tuning all run it.

Stages pass in the model, the batches and the objective. The loop is a generator of frozen `Step`
records: a task logs them, a test reads them, the library prints nothing.

Training survives any kill with equal bytes, because everything is a function of numbers: batch
and dropout of step s depend on (seed, s) and not on earlier steps. Weights, optimizer moments and a
few plain values are the whole state.

Letters: B rows of a batch, T positions.
"""

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gptmill.device import Device, release_freed_memory
from gptmill.model.objectives import Batch, Objective
from gptmill.training.distributed import SINGLE_PROCESS, World, is_lost
from gptmill.training.gradients import Gradients
from gptmill.training.guard import Guard
from gptmill.training.loader import LoadedBatch, Loader
from gptmill.training.optimizers import Optimizer, learning_rate_at
from gptmill.training.plan import WATCHED, DivergedError, Plan, Progress, Step
from gptmill.training.signals import uninterrupted
from gptmill.training.state.shards import for_ranks, handed_out
from gptmill.training.state.snapshot import (
    Snapshot,
    load_moments,
    load_parameters,
    moments_to_cpu,
    parameters_to_cpu,
    trainable,
)
from gptmill.training.state.store import LARGE, BestFile, State, StateStore, StepRows


class Trainer:
    """Trains `model` in place: iterate over `steps()`, then the model has its final weights.

    `batches(i)` returns batch i, counted from 0, a pure function of i; `describe(i)` returns its
    documents and rows. Only parameters that require gradients are trained. `evaluate` runs every
    `evaluate_every` steps and after the last step, `sample` every `sample_every` steps (0: never),
    both with the model in eval mode and without gradients. With a `store`, training resumes from
    the newest state and saves states.
    """

    store: StateStore | None
    _gradients: Gradients
    _optimizer: Optimizer

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: Callable[[int], Batch],
        *,
        plan: Plan,
        device: Device,
        evaluate: Callable[[], dict[str, float]] | None = None,
        sample: Callable[[int], str] | None = None,
        describe: Callable[[int], Any] = lambda index: {"batch": index},
        store: StateStore | None = None,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self.model = model
        self.objective = objective
        self.plan = plan
        self.device = device
        self.world = world
        self.store = store
        self.rows: StepRows = []
        self.bad_batches: list[dict[str, Any]] = []
        """The bad steps of this process: the fault, and the content of the batch."""
        self._evaluate = evaluate
        self._sample = sample
        self._describe = describe
        self._loader = Loader(batches, objective, world, pin=device.device == "cuda")
        self._progress = Progress(micro_batch=plan.micro_batch)
        self._guard = Guard(plan.guard)
        self._best: dict[str, Tensor] = {}
        self._best_file: BestFile | None = None
        self._before: dict[str, float] | None = None  # the evaluation before step 1
        self._earlier: State | None = None  # the target of a rollback
        self._restored = False
        self._consistent = True  # weights, moments and progress belong to one step

    @property
    def resumed_at(self) -> int:
        """Return the step of the restored state; 0 without a state."""
        return self._progress.step

    def evaluation(self) -> dict[str, float]:
        """Return the evaluation of the final weights; empty without evaluations."""
        evaluations = {row["step"]: row["evaluation"] for row in self.rows if row["evaluation"]}
        if self.plan.stopping.keep == "best" and self._progress.best_step is not None:
            return dict(evaluations[self._progress.best_step])
        return dict(evaluations[max(evaluations)]) if evaluations else {}

    def restore(self) -> None:
        """Put the model on its device and load the newest state; `steps` does it if needed."""
        if self._restored:
            return
        self._restored = True
        device, world = self.device, self.world
        self.store = for_ranks(self.store, world)
        self._gradients = Gradients(
            self.model, self.objective, device=device, world=world, seed=self.plan.seed
        )
        self._optimizer = Optimizer(self.model, self.plan.optimizer)
        newest = None if self.store is None else self.store.load()
        state = handed_out(newest, world, dict(trainable(self.model)))
        if state is not None:
            snapshot = self._load(state)
            self._best = dict(snapshot.best)
            self._best_file = None if world.sharded else snapshot.best_file
        if self.plan.guard.action == "rollback" and self._earlier is None:
            self._mark()

    def steps(self) -> Generator[Step, None, None]:
        """Train; yield each step, first the steps of a restored state.

        A signal, a caller who closes the generator, or a lost rank ends training early: the state
        is saved first. An error of our own is not: it would only come again. All ranks write a
        sharded state together, so there a signal waits for the end of its step, and a lost rank
        costs the steps since the last state. Raises DivergedError after too many bad steps.
        """
        self.restore()
        self._warm_up()
        for row in self.rows:
            yield Step(**row, replayed=True)
        with self._saved_on_exit() as signals:
            # An update is saved before its evaluation, as an open step: a kill during a long
            # evaluation then neither loses the update nor applies it twice.
            if self._progress.open is not None:
                yield self._close_step(self._progress.open)
            while not self._is_finished():
                if self._save_or_stop(signals):
                    return
                self._evaluate_first()
                started = time.perf_counter()
                loaded = self._loader.get(self._progress.step + self._progress.shift)
                waited = time.perf_counter() - started
                loss = self._backward(loaded)
                norm = self.world.broadcast(self._optimizer.clip()).item()
                rate = self._learning_rate()
                fault = self._guard.fault(loss, norm)
                if fault is not None and self._rolls_back(fault, loaded, rate):
                    continue
                with uninterrupted():  # a signal waits until all that belongs to the step agrees
                    self._consistent = False
                    if fault is None:
                        self._optimizer.step(rate)
                    self._optimizer.zero_grad()
                    figures = {"loss": loss, "learning_rate": rate, "grad_norm": norm}
                    costs = {"seconds": time.perf_counter() - started, "data_wait": waited}
                    row = self._open_step(loaded, fault, **figures, **costs)
                    self._consistent = True
                yield self._close_step(row)
            self._save(wait=True)
        self._finish()

    # one step

    def _warm_up(self) -> None:
        """Run one step without an update where DDP settles its order of summation in it."""
        if not self.world.reorders or self._progress.step >= self.plan.steps:
            return
        self.model.train()
        loaded = self._loader.get(self._progress.step + self._progress.shift)
        # reserve the memory of the moments, so that the warm-up does not count it as free
        reserved = [] if self._optimizer.state() else self._optimizer.blank()
        self._progress.micro_batch = self._gradients.warm_up(loaded, self._progress.micro_batch)
        self._optimizer.zero_grad()
        del reserved

    def _is_finished(self) -> bool:
        patience = self.plan.stopping.patience
        impatient = 0 < patience <= self._progress.evaluations_without_better
        return impatient or self._progress.step == self.plan.steps

    def _learning_rate(self) -> float:
        return learning_rate_at(
            self._progress.step,
            steps=self.plan.steps,
            peak=self.plan.learning_rate,
            config=self.plan.optimizer,
        )

    def _backward(self, loaded: LoadedBatch) -> float:
        """Compute the gradients of the next step; return the loss."""
        self.model.train()
        loss, self._progress.micro_batch = self._gradients.backward(
            loaded, self._progress.step, self._progress.micro_batch
        )
        return loss

    def _open_step(
        self, loaded: LoadedBatch, fault: str | None, *, seconds: float, **figures: float
    ) -> dict[str, Any]:
        """Count the step and return its row, complete but for the evaluation."""
        progress = self._progress
        progress.step += 1
        progress.tokens += loaded.tokens
        progress.bad_in_a_row = 0 if fault is None else progress.bad_in_a_row + 1
        progress.seconds += seconds
        progress.open = {
            "step": progress.step,
            "tokens": progress.tokens,
            "batch_number": loaded.index,
            "batch": loaded.digest,
            "fault": fault,
            "micro_batch": self._gradients.rows(loaded, progress.micro_batch),
            "tokens_per_second": loaded.tokens / seconds,
            **figures,
        }
        if progress.step == 1 and self._before is not None:
            progress.open["before"] = self._before
        return progress.open

    def _evaluate_first(self) -> None:
        """Evaluate the weights before step 1 if the plan says so."""
        if not self.plan.stopping.evaluate_first or self._progress.step or self._before is not None:
            return
        if self._evaluate is not None:
            self.model.eval()
            with torch.no_grad():
                self._before = self.world.broadcast_object(self._evaluate())
                self.world.reshard(self.model)

    def _close_step(self, row: dict[str, Any]) -> Step:
        """Evaluate and sample where due, and record the step."""
        step = row["step"]
        self.model.eval()
        evaluation, text = None, None
        with torch.no_grad():
            if self._evaluate is not None and self._is_due(step, self.plan.evaluate_every):
                release_freed_memory()
                evaluation = self.world.broadcast_object(self._evaluate())
            if self._sample is not None and self._is_due(step, self.plan.sample_every):
                text = self._sample(step)
            self.world.reshard(self.model)
        with uninterrupted():
            self._progress.open = None
            self.rows.append({**row, "evaluation": evaluation, "sample": text})
            if evaluation is not None:
                self._judge(evaluation.get(WATCHED, math.inf), step)
        return Step(**self.rows[-1])

    def _is_due(self, step: int, every: int) -> bool:
        return bool(every) and (step == self.plan.steps or step % every == 0)

    def _judge(self, value: float, step: int) -> None:
        """Compare an evaluation with the best; keep the weights that are needed later."""
        progress = self._progress
        if value < progress.best:
            progress.best, progress.best_step = value, step
            progress.evaluations_without_better = 0
            if self.plan.stopping.keep == "best":
                self._keep_best(step)
        else:
            progress.evaluations_without_better += 1
        if self.plan.guard.action == "rollback":
            self._mark()

    def _keep_best(self, step: int) -> None:
        """Keep the present weights: in a file beside the states, or in memory without a store."""
        if self.store is None or self.world.sharded:  # shards stay a part of the state
            self._best = parameters_to_cpu(self.model, self.world)
        else:
            present = parameters_to_cpu(self.model, self.world, copy=False)
            self._best_file, self._best = self.store.keep_best(step, present)

    def _finish(self) -> None:
        """Leave the final weights in a plain model in eval mode."""
        if self._best:
            load_parameters(self.model, self._best, self.world)
        self.world.unwrap(self._gradients.forward)
        self.model.eval()
        self._optimizer.zero_grad()
        release_freed_memory()

    # bad steps

    def _rolls_back(self, fault: str, loaded: LoadedBatch, rate: float) -> bool:
        """Note a bad step; return whether training went back to the last evaluation.

        Raises DivergedError at the limit of bad steps in a row, or of rollbacks.
        """
        self._optimizer.zero_grad()
        progress, guard = self._progress, self.plan.guard
        self.bad_batches.append(
            {
                "step": progress.step + 1,
                "fault": fault,
                "batch_number": loaded.index,
                "digest": loaded.digest,
                "rows": self._loader.run_in_worker(lambda: self._describe(loaded.index)),
                "ids": loaded.batch[0].tolist(),
            }
        )
        if guard.action == "skip":
            if progress.bad_in_a_row + 1 == guard.limit:
                raise DivergedError(self._diverged(fault, rate))
            return False
        if progress.rollbacks + 1 > guard.limit:
            raise DivergedError(self._diverged(fault, rate))
        with uninterrupted():
            self._roll_back()
        return True

    def _roll_back(self) -> None:
        """Restore the last evaluation's state, and skip the data up to and with this batch.

        The best weights stay: the last evaluation has already been compared with them.
        """
        assert self._earlier is not None
        before = self._progress
        self._load(self._earlier)
        progress = self._progress
        progress.shift = before.step + before.shift + 1 - progress.step
        progress.rollbacks, progress.seconds = before.rollbacks + 1, before.seconds
        progress.micro_batch = before.micro_batch
        self._mark()

    def _mark(self) -> None:
        """Make the present state the target of the next rollback."""
        self._earlier = None
        self._earlier = self._state()

    def _diverged(self, fault: str, rate: float) -> str:
        limit, step = self.plan.guard.limit, self._progress.step + 1
        cause = (
            f"after {limit} rollbacks, the most that guard.limit allows"
            if self.plan.guard.action == "rollback"
            else f"after {limit} bad steps in a row, the most that guard.limit allows"
        )
        return (
            f"training diverged at step {step:,} ({fault}, learning rate {rate:.3g}) {cause}: "
            "lower learning_rate, lengthen warmup, or look at the saved bad batches"
        )

    # state

    @contextmanager
    def _saved_on_exit(self) -> Iterator[list[int]]:
        """Yield the list of held-back signals; save the state where training ends early."""
        nothing: AbstractContextManager[list[int]] = nullcontext([])
        try:
            with uninterrupted() if self.world.sharded else nothing as signals:
                yield signals
        except BaseException as error:
            if is_lost(error) or not isinstance(error, Exception):
                self._save_last()
            raise
        finally:
            self._loader.close()
            if self.store is not None:
                self.store.close()

    def _save_or_stop(self, signals: list[int]) -> bool:
        """Save a state where due; return whether a signal on any rank ends training."""
        due = self.store is not None and self.store.due()
        stop, due = self.world.any_rank_if_sharded(bool(signals), due)
        if stop or due:
            self._save(wait=stop)
        if stop and not signals:
            signal.raise_signal(signal.SIGTERM)  # the signal of another rank ends all ranks
        return stop

    def _save(self, *, wait: bool) -> None:
        """Save a state: on the first rank alone, or each rank's shards."""
        if self.store is not None:
            wait = wait or self._is_large_here()
            self.store.save(self._state(copy=not wait), wait=wait)

    def _is_large_here(self) -> bool:
        """Return whether a copy for a save in the background would take much of the CPU's memory.

        The state is then saved while training waits.
        """
        weights = sum(p.numel() * p.element_size() for _, p in trainable(self.model))
        return self.device.device == "cpu" and 3 * weights > LARGE

    def _save_last(self) -> None:
        if self._consistent and not self.world.sharded:
            with uninterrupted():
                self._save(wait=True)

    def _state(self, *, copy: bool = True) -> State:
        snapshot = Snapshot(
            progress=self._progress,
            model=parameters_to_cpu(self.model, self.world, copy=copy),
            optimizer=moments_to_cpu(self._optimizer, self.world, copy=copy),
            best=self._best,
            best_file=self._best_file,
            norms=list(self._guard.norms),
            rows=self.rows,
            earlier=self._earlier,
        )
        return snapshot.to_state(self.device.record())

    def _load(self, state: State) -> Snapshot:
        snapshot = Snapshot.from_state(state)
        load_parameters(self.model, snapshot.model, self.world)
        load_moments(self._optimizer, snapshot.optimizer, self.model, self.world)
        self._progress = snapshot.progress
        self._guard = Guard(self.plan.guard, snapshot.norms)
        self.rows = snapshot.rows
        if snapshot.earlier is not None:
            self._earlier = snapshot.earlier
        return snapshot
