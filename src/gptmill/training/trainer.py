"""The one training loop: pretraining, classification, LoRA and instructions all run it.

Stages differ by model, batches and objective, which they pass in. The loop is a generator of
frozen `Step` records: a task logs them, a test reads them, nothing is printed here.

It cannot be killed: everything is a function of numbers. Batch and dropout of step s depend on
(seed, s) and not on what ran before, so that weights, optimizer and a few plain values are the
whole state, and a training that goes on from one ends in the same bytes as one that was never
stopped.

Letters: B rows of a batch, T positions.
"""

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from gptmill.device import Device
from gptmill.model.objectives import Batch, Objective
from gptmill.training.distributed import SINGLE_PROCESS, World, is_lost
from gptmill.training.gradients import Gradients
from gptmill.training.guard import Guard
from gptmill.training.loader import LoadedBatch, Loader
from gptmill.training.optimizers import Optimizer, learning_rate_at
from gptmill.training.plan import (
    WATCHED,
    DivergedError,
    Plan,
    Progress,
    Step,
)
from gptmill.training.signals import uninterrupted
from gptmill.training.state.shards import for_ranks, handed_out
from gptmill.training.state.store import State, StateStore, StepRows


class Trainer:
    """Trains `model` in place: iterate over `steps()`, then the model has its final weights.

    `batches(i)` gives batch i, counted from 0, a pure function of i; `describe(i)` says which
    documents and rows it is made of. Only parameters that require gradients are trained.
    `evaluate` runs after every `evaluate_every` steps and after the last, `sample` after every
    `sample_every` (0: never), with the model in eval mode and without gradients. With a
    `store` the training goes on from the newest state in it, and saves states as it goes.
    """

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
        self.plan = plan
        self.device = device
        self.world = world
        self.store = for_ranks(store, world)
        self.rows: StepRows = []
        self.bad_batches: list[dict[str, Any]] = []
        """Each bad step of this process: what was wrong, and what its batch was made of."""
        self._evaluate = evaluate
        self._sample = sample
        self._describe = describe
        self._loader = Loader(batches, objective, world, pin=device.device == "cuda")
        self._gradients = Gradients(model, objective, device=device, world=world, seed=plan.seed)
        self._optimizer = Optimizer(model, plan.optimizer)
        self._progress = Progress(micro_batch=plan.micro_batch)
        self._guard = Guard(plan.guard)
        self._whole = True  # weights, optimizer and course belong to one step
        self._best: dict[str, Tensor] = {}
        self._earlier: State | None = None  # where a rollback goes
        found = None if self.store is None else self.store.load()
        found = handed_out(found, world, dict(self._trained()))
        if found is not None:
            self._restore(found)
        if plan.guard.action == "rollback" and self._earlier is None:
            self._mark()
        if world.reorders and self._progress.step < plan.steps:
            self.model.train()
            loaded = self._loader.get(self._progress.step + self._progress.shift)
            # what the moments will take is not to be taken for room
            spare = [] if self._optimizer.state() else self._optimizer.blank()
            self._progress.micro_batch = self._gradients.warm_up(loaded, self._progress.micro_batch)
            self._optimizer.zero_grad()
            del spare

    @property
    def resumed_at(self) -> int:
        """Return the step that the state found had done; 0 without one."""
        return self._progress.step

    def evaluation(self) -> dict[str, float]:
        """Return the evaluation of the weights that are kept; empty where none was made."""
        made = {row["step"]: row["evaluation"] for row in self.rows if row["evaluation"]}
        if self.plan.stopping.keep == "best" and self._progress.best_step is not None:
            return dict(made[self._progress.best_step])
        return dict(made[max(made)]) if made else {}

    def steps(self) -> Generator[Step, None, None]:
        """Yield each step, those of a state that was found first.

        Whatever ends this early but an error of ours (Ctrl-C, a signal turned into an
        exception, the caller), or a rank that is lost, first saves the state. A sharded one is
        written by all ranks, so there a signal waits for the end of its step, and a lost rank
        costs what came after the last state. Raises DivergedError where bad steps go on.
        """
        for row in self.rows:
            yield Step(**row, replayed=True)
        nothing: AbstractContextManager[list[int]] = nullcontext([])
        waiting = uninterrupted() if self.world.sharded else nothing
        try:
            with waiting as signals:
                yield from self._go_on(signals)
        except BaseException as stop:
            # an error of ours would come again; a lost rank, a signal and a caller who left do not
            if is_lost(stop) or not isinstance(stop, Exception):
                self._save_last()
            raise
        finally:
            self._loader.close()
            if self.store is not None:
                self.store.close()
        self._load_parameters(self._best)
        self.world.unwrap(self._gradients.forward)
        self.model.eval()

    def _go_on(self, signals: list[int]) -> Generator[Step, None, None]:
        while True:
            if self._progress.open is not None:
                yield self._close_step(self._progress.open)
            if self._progress.step == self.plan.steps or self._out_of_patience():
                break
            due = self.store is not None and self.store.due()
            stop, due = self.world.any_rank_if_sharded(bool(signals), due)
            if stop or due:
                self._save(wait=stop)
            if stop:
                if not signals:
                    signal.raise_signal(signal.SIGTERM)  # another rank's is this one's too
                return
            self._update()
        self._save(wait=True)

    def _save(self, *, wait: bool) -> None:
        """Save a state: the first rank alone, or all ranks their shares of a sharded one."""
        if self.store is not None:
            self.store.save(self._state(), wait=wait)

    def _save_last(self) -> None:
        if self._whole and not self.world.sharded:
            with uninterrupted():
                self._save(wait=True)

    # one step

    def _update(self) -> None:
        """Do the next step up to its update; what is then due of it waits in `open`."""
        started = time.perf_counter()
        number = self._progress.step
        loaded = self._loader.get(number + self._progress.shift)
        waited = time.perf_counter() - started
        rate = learning_rate_at(
            number, steps=self.plan.steps, peak=self.plan.learning_rate, config=self.plan.optimizer
        )
        self.model.train()
        loss, self._progress.micro_batch = self._gradients.backward(
            loaded, number, self._progress.micro_batch
        )
        norm = self.world.broadcast(self._optimizer.clip()).item()
        fault = self._guard.fault(loss, norm)
        if fault is not None:
            self._note(fault, loaded)
            if self.plan.guard.action == "rollback":
                self._roll_back(fault, rate)
                return
            if self._progress.bad_in_a_row + 1 == self.plan.guard.limit:
                raise DivergedError(self._why(fault, rate))
        with uninterrupted():
            self._whole = False
            if fault is None:
                self._optimizer.step(rate)
            self._optimizer.zero_grad()
            progress = self._progress
            progress.step += 1
            progress.tokens += loaded.tokens
            progress.bad_in_a_row = 0 if fault is None else progress.bad_in_a_row + 1
            seconds = time.perf_counter() - started
            progress.seconds += seconds
            progress.open = {
                "step": progress.step,
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": norm,
                "tokens": progress.tokens,
                "batch_number": loaded.index,
                "batch": loaded.digest,
                "fault": fault,
                "micro_batch": progress.micro_batch or loaded.rows,
                "tokens_per_second": loaded.tokens / seconds,
                "data_wait": waited,
            }
            self._whole = True

    def _close_step(self, row: dict[str, Any]) -> Step:
        """Evaluate and sample where that is due, and make the step's record."""
        step = row["step"]
        last = step == self.plan.steps
        evaluated = self._evaluate and (last or step % self.plan.evaluate_every == 0)
        sampled = self._sample and self.plan.sample_every
        sampled = sampled and (last or step % self.plan.sample_every == 0)
        evaluation, text = None, None
        self.model.eval()
        with torch.no_grad():
            if evaluated and self._evaluate:
                evaluation = self.world.broadcast_object(self._evaluate())
            if sampled and self._sample:
                text = self._sample(step)
            self.world.reshard(self.model)
        with uninterrupted():
            self._progress.open = None
            self.rows.append({**row, "evaluation": evaluation, "sample": text})
            if evaluation is not None:
                self._judge(evaluation.get(WATCHED, math.inf), step)
        return Step(**self.rows[-1])

    def _judge(self, value: float, step: int) -> None:
        """Keep what best weights and rollbacks need of an evaluation."""
        progress = self._progress
        if value < progress.best:
            progress.best, progress.best_step = value, step
            progress.evaluations_without_better = 0
            if self.plan.stopping.keep == "best":
                self._best = self._parameters()
        else:
            progress.evaluations_without_better += 1
        if self.plan.guard.action == "rollback":
            self._mark()

    def _mark(self) -> None:
        """Make this the place where a rollback goes."""
        self._earlier = None
        self._earlier = self._state()

    def _out_of_patience(self) -> bool:
        patience = self.plan.stopping.patience
        return 0 < patience <= self._progress.evaluations_without_better

    # bad steps

    def _note(self, fault: str, loaded: LoadedBatch) -> None:
        self._optimizer.zero_grad()
        self.bad_batches.append(
            {
                "step": self._progress.step + 1,
                "fault": fault,
                "batch_number": loaded.index,
                "digest": loaded.digest,
                "rows": self._loader.run_in_worker(lambda: self._describe(loaded.index)),
                "ids": loaded.batch[0].tolist(),
            }
        )

    def _roll_back(self, fault: str, rate: float) -> None:
        """Go back to the last evaluation, and leave out the data up to and with this batch."""
        progress = self._progress
        if progress.rollbacks + 1 > self.plan.guard.limit:
            raise DivergedError(self._why(fault, rate))
        assert self._earlier is not None
        index, rollbacks = progress.step + progress.shift, progress.rollbacks + 1
        seconds, micro_batch = progress.seconds, progress.micro_batch
        with uninterrupted():
            self._restore(self._earlier)
            self._progress.shift = index + 1 - self._progress.step
            self._progress.rollbacks, self._progress.seconds = rollbacks, seconds
            self._progress.micro_batch = micro_batch
            self._mark()

    def _why(self, fault: str, rate: float) -> str:
        limit, step = self.plan.guard.limit, self._progress.step + 1
        so_far = (
            f"after {limit} rollbacks, as many as guard.limit allows"
            if self.plan.guard.action == "rollback"
            else f"the bad step in a row at which guard.limit, {limit}, ends it"
        )
        return (
            f"training diverged at step {step:,} ({fault}, learning rate {rate:.3g}), {so_far}: "
            "lower learning_rate or lengthen warmup, and look at the batches that were kept"
        )

    # state

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def _parameters(self) -> dict[str, Tensor]:
        return {name: self.world.to_cpu(p) for name, p in self._trained()}

    def _load_parameters(self, values: dict[str, Tensor]) -> None:
        if values:
            with torch.no_grad():
                for name, parameter in self._trained():
                    parameter.copy_(self.world.to_device_like(values[name], parameter))

    def _moments(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the optimizer's tensors where those of their parameters are."""
        parameters = dict(self._trained())
        return {
            name: self.world.to_device_like(value, parameters[name.rpartition(".")[0]])
            for name, value in values.items()
        }

    def _state(self) -> State:
        optimizer = {n: self.world.to_cpu(value) for n, value in self._optimizer.state().items()}
        parts = {"model": self._parameters(), "optimizer": optimizer, "best": self._best}
        tensors = {f"{part}/{name}": v for part, held in parts.items() for name, v in held.items()}
        record = {
            "progress": asdict(self._progress),
            "norms": list(self._guard.norms),
            "device": self.device.record(),
        }
        if self._earlier is not None:
            earlier = self._earlier
            tensors |= {f"earlier/{name}": value for name, value in earlier.tensors.items()}
            record["earlier"] = {"record": earlier.record, "rows": len(earlier.rows)}
        return State(self._progress.step, tensors, record, list(self.rows))

    def _restore(self, state: State) -> None:
        held: dict[str, dict[str, Tensor]] = {}
        for name, value in state.tensors.items():
            part, rest = name.split("/", 1)
            held.setdefault(part, {})[rest] = value
        self._load_parameters(held["model"])
        self._optimizer.load(self._moments(held.get("optimizer", {})))
        self._best = held.get("best", {})
        self._progress = Progress(**state.record["progress"])
        self._guard = Guard(self.plan.guard, state.record["norms"])
        self.rows = list(state.rows)
        earlier = state.record.get("earlier")
        if earlier is not None:
            rows = self.rows[: earlier["rows"]]
            step = earlier["record"]["progress"]["step"]
            self._earlier = State(step, held["earlier"], earlier["record"], rows)
