"""A training's course: what is planned, what a step did, and where it stands."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from gptmill.training.guard import GuardConfig
from gptmill.training.optimizers import OptimizerConfig

WATCHED = "val/loss"
"""The figure of an evaluation that decides which weights are best; less is better."""

Keep = Literal["last", "best"]


@dataclass(frozen=True)
class StoppingConfig:
    """When training ends before its last step, and whose weights it leaves."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    patience: int
    """Evaluations without a better validation loss before training ends; 0 trains to the end."""
    keep: Keep
    """The last weights, or those of the evaluation with the lowest validation loss."""

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience}; it must be 0 or more")
        if self.keep not in get_args(Keep):
            raise ValueError(f"keep is {self.keep!r}; allowed are {', '.join(get_args(Keep))}")


@dataclass(frozen=True)
class Plan:
    """What a training's course is a function of, besides its model and its data."""

    steps: int
    learning_rate: float
    optimizer: OptimizerConfig
    seed: int
    evaluate_every: int
    sample_every: int
    stopping: StoppingConfig
    guard: GuardConfig
    micro_batch: int | None
    """StepRows of a forward pass; None takes the whole step's, and half as many out of memory."""


@dataclass(frozen=True)
class Step:
    """What one step did. `step` counts from 1; `loss` is the batch's, before the update."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    """Positions read by the model since the first step, padding included."""
    batch_number: int
    """Which batch, counted from 0: the step's, or a later one after a rollback."""
    batch: str
    """Digest of the batch's content: two trainings that saw the same data have the same ones."""
    fault: str | None
    """Why this step changed no weight; None for a good one."""
    micro_batch: int
    """StepRows of a forward pass."""
    tokens_per_second: float
    """Of this step alone, evaluation left out."""
    data_wait: float
    """Seconds that the device waited for the batch."""
    evaluation: dict[str, float] | None
    """What `evaluate` returned, on the steps where it ran."""
    sample: str | None
    """What `sample` returned, on the steps where it ran."""
    replayed: bool = False
    """It was done before this process began, and comes from the state."""


class DivergedError(ValueError):
    """Bad steps went on, and training was stopped."""


@dataclass
class Progress:
    """Where a training is: with the tensors, all that a state holds."""

    step: int = 0
    """Steps done."""
    open: dict[str, Any] | None = None
    """The last step's row where its evaluation is still to come."""
    shift: int = 0
    """How much further the data are than the steps: what rollbacks left out."""
    tokens: int = 0
    seconds: float = 0.0
    micro_batch: int | None = None
    bad_in_a_row: int = 0
    rollbacks: int = 0
    best_step: int | None = None
    best: float = math.inf
    evaluations_without_better: int = 0
