"""When a step is bad: a loss or gradient that is no number, or a gradient norm far above the last.

One bad batch can undo hours of training. A bad step changes no weight; what happens next is a
rule, so that a run that is killed and continued does the same. Skipping the batch is what PaLM's
authors did (https://arxiv.org/abs/2204.02311, section 5.1), from a state some steps before.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Literal, get_args

REMEMBERED = 100
"""Gradient norms of so many good steps are what the next is compared with."""

Action = Literal["skip", "rollback"]


@dataclass(frozen=True)
class GuardConfig:
    """What makes a step bad, and what is done about it."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    spike: float
    """A gradient norm above so many times the median of the last is a spike; 0 looks for none."""
    action: Action
    """Leave the batch out, or go back to the last evaluation and leave out all since then."""
    limit: int
    """So many bad steps in a row end the training; so do so many rollbacks."""

    def __post_init__(self) -> None:
        if not (self.spike == 0 or 1 < self.spike < math.inf):
            raise ValueError(f"spike is {self.spike}; it must be above 1, or 0 to look for none")
        if self.action not in get_args(Action):
            raise ValueError(
                f"action is {self.action!r}; allowed are {', '.join(get_args(Action))}"
            )
        if self.limit < 1:
            raise ValueError(f"limit is {self.limit}; it must be at least 1")


class Guard:
    """Judges steps by those before them; what it remembers is a part of the training's state."""

    def __init__(self, config: GuardConfig, norms: Iterable[float] = ()) -> None:
        self.config = config
        self.norms = deque(norms, maxlen=REMEMBERED)

    def fault(self, loss: float, norm: float) -> str | None:
        """Say what is wrong with a step, or remember its norm and return None.

        Spikes are looked for once as many norms are known as are remembered: the first steps
        of a training have none that is usual.
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
