"""Detection of bad training steps, and the response.

A step is bad if the loss or the gradient norm is not finite, or if the gradient norm is far above
the recent norms. A single bad batch can undo hours of training. A bad step changes no weight; the
response follows a fixed rule, so that a killed and resumed run does the same. PaLM's authors also
skipped batches (https://arxiv.org/abs/2204.02311, section 5.1), restarting some steps before.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Literal, get_args

from gptmill.device import check_choice

REMEMBERED = 100
"""Number of recent good steps compared with the next gradient norm."""

Action = Literal["skip", "rollback"]


@dataclass(frozen=True)
class GuardConfig:
    """Criteria for bad steps, and the response to bad steps."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    spike: float
    """Multiple of the median recent norm above which a gradient norm is a spike; 0 is off."""
    action: Action
    """Skip the batch, or roll back to the last evaluation and skip all batches since."""
    limit: int
    """Number of consecutive bad steps, or of rollbacks, to end the training."""

    def __post_init__(self) -> None:
        if not (self.spike == 0 or 1 < self.spike < math.inf):
            raise ValueError(
                f"spike is {self.spike} but must be above 1, or 0 to turn detection off"
            )
        check_choice("action", self.action, get_args(Action))
        if self.limit < 1:
            raise ValueError(f"limit is {self.limit} but must be at least 1")


class Guard:
    """Detector of bad steps, based on recent gradient norms.

    The remembered norms are a part of the training's state.
    """

    def __init__(self, config: GuardConfig, norms: Iterable[float] = ()) -> None:
        self.config = config
        self.norms = deque(norms, maxlen=REMEMBERED)

    def fault(self, loss: float, norm: float) -> str | None:
        """Return the fault of a bad step, or None.

        The norm of a good step is remembered. Spikes are detected only once the memory of
        `REMEMBERED` norms is full: the first steps of a training have no usual norm.
        """
        if not math.isfinite(loss):
            return f"loss {loss}"
        if not math.isfinite(norm):
            return f"gradient norm {norm}"
        if self.config.spike and len(self.norms) == REMEMBERED:
            usual = median(self.norms)
            if norm > self.config.spike * usual:
                return f"gradient norm {norm:.3g}, {norm / usual:.1f} times the usual {usual:.3g}"
        self.norms.append(norm)
        return None
