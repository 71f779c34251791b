"""The plan of a training, the record of a step, and the progress so far."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from gptmill.device import check_choice
from gptmill.training.guard import GuardConfig
from gptmill.training.optimizers import OptimizerConfig

WATCHED = "val/loss"
"""The evaluation figure that selects the best weights; lower is better."""

Keep = Literal["last", "best"]


@dataclass(frozen=True)
class StoppingConfig:
    """Evaluations for early stopping, and the choice of the final weights."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    patience: int
    """Evaluations without a lower validation loss before training stops; 0 trains to the end."""
    keep: Keep
    """The last weights, or the weights with the lowest validation loss."""
    evaluate_first: bool = False
    """Evaluate the weights before step 1 too; the result stops and selects nothing."""

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience} but must be 0 or more")
        check_choice("keep", self.keep, get_args(Keep))


@dataclass(frozen=True)
class Plan:
    """Everything besides model and data that determines a training."""

    steps: int
    learning_rate: float
    optimizer: OptimizerConfig
    seed: int
    evaluate_every: int
    sample_every: int
    stopping: StoppingConfig
    guard: GuardConfig
    micro_batch: int | None
    """Rows per forward pass; None: all on a GPU, a bounded part on a CPU, half out of memory."""


@dataclass(frozen=True)
class Step:
    """The record of a step. `step` counts from 1; `loss` is measured before the update."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    """Positions read since the first step, padding included."""
    batch_number: int
    """The batch, counted from 0: the step's own, or a later batch after a rollback."""
    batch: str
    """Digest of the batch: two trainings on equal data have equal digests."""
    fault: str | None
    """The reason for skipping the update; None for a good step."""
    micro_batch: int
    """Rows per forward pass."""
    tokens_per_second: float
    """Speed of this step alone, without evaluation."""
    data_wait: float
    """Seconds of waiting for the batch."""
    evaluation: dict[str, float] | None
    """The result of `evaluate`, on steps with an evaluation."""
    sample: str | None
    """The result of `sample`, on steps with a sample."""
    before: dict[str, float] | None = None
    """The result of `evaluate` before step 1, with `evaluate_first`."""
    replayed: bool = False
    """The step comes from a restored state, not from this process."""


class DivergedError(ValueError):
    """Training stopped after too many bad steps."""


@dataclass
class Progress:
    """The progress of a training; with the tensors, the whole state."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    step: int = 0
    """Completed updates."""
    open: dict[str, Any] | None = None
    """The row of the last step, until its evaluation."""
    shift: int = 0
    """Batches skipped by rollbacks: the lead of the data over the steps."""
    tokens: int = 0
    seconds: float = 0.0
    micro_batch: int | None = None
    bad_in_a_row: int = 0
    rollbacks: int = 0
    best_step: int | None = None
    best: float = math.inf
    evaluations_without_better: int = 0
