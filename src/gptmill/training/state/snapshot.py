"""Snapshots of a training: from model and optimizer to tensors on the CPU, and back.

Every rank calls these functions. Unsharded, the first rank holds all tensors and the rest only
shapes; sharded, each rank holds shards.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gptmill.files import checked
from gptmill.training.distributed import World
from gptmill.training.optimizers import Optimizer
from gptmill.training.plan import Progress
from gptmill.training.state.store import BEST, BestFile, State, StepRows

PARTS = {"model", "optimizer", "best", "earlier"}
"""The parts of a state's tensors, in front of their names."""


@dataclass
class Snapshot:
    """Everything needed to resume a training."""

    progress: Progress
    model: Mapping[str, Tensor]
    """The trainable parameters by name."""
    optimizer: Mapping[str, Tensor]
    """The moments by PARAMETER.MOMENT."""
    best: Mapping[str, Tensor]
    """The parameters of the best evaluation; empty if the last parameters are kept."""
    best_file: BestFile | None
    """The file with `best`, which the state then only names."""
    norms: list[float]
    """The gradient norms for the guard's median."""
    rows: StepRows = field(default_factory=list)
    earlier: State | None = None
    """The state of the last evaluation, for a rollback."""

    def to_state(self, device: Mapping[str, Any]) -> State:
        """Return the state to save; `device` records the hardware that computed it."""
        parts = {"model": self.model, "optimizer": self.optimizer}
        record = {"progress": asdict(self.progress), "norms": self.norms, "device": device}
        if self.best_file is None:
            parts["best"] = self.best
        else:
            record[BEST] = asdict(self.best_file)
        if self.earlier is not None:
            parts["earlier"] = {  # with the same best weights
                name: tensor
                for name, tensor in self.earlier.tensors.items()
                if not name.startswith(f"{BEST}/")
            }
            record["earlier"] = {"record": self.earlier.record, "rows": len(self.earlier.rows)}
        tensors = {
            f"{part}/{name}": t for part, named in parts.items() for name, t in named.items()
        }
        return State(self.progress.step, tensors, record, list(self.rows))

    @classmethod
    def from_state(cls, state: State) -> "Snapshot":
        """Return the snapshot of a state, the inverse of `to_state`.

        Raises ValueError for a state that another version of the code has written.
        """
        where = f"the state of step {state.step} (remove the state to start again)"
        checked(_Record, state.record, where)
        parts: dict[str, dict[str, Tensor]] = {"model": {}}
        for name, tensor in state.tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        if not parts.keys() <= PARTS or ("earlier" in parts) != ("earlier" in state.record):
            raise ValueError(
                f"{where}: the tensors are of {', '.join(sorted(parts))}; allowed are "
                f"{', '.join(sorted(PARTS))}"
            )
        rows = list(state.rows)
        earlier = None
        if "earlier" in state.record:
            inner = state.record["earlier"]
            step = inner["record"]["progress"]["step"]
            earlier = State(step, parts["earlier"], inner["record"], rows[: inner["rows"]])
        return cls(
            progress=Progress(**state.record["progress"]),
            model=parts["model"],
            optimizer=parts.get("optimizer", {}),
            best=parts.get(BEST, {}),
            best_file=None if BEST not in state.record else BestFile(**state.record[BEST]),
            norms=list(state.record["norms"]),
            rows=rows,
            earlier=earlier,
        )


@dataclass(frozen=True)
class _Earlier:
    """The record of the last evaluation's state, and its number of rows."""

    record: "_Record"
    rows: int


@dataclass(frozen=True)
class _Record:
    """The record of a state."""

    progress: Progress
    norms: list[float]
    earlier: _Earlier | None = None


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trainable parameters by name."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def parameters_to_cpu(model: nn.Module, world: World, *, copy: bool = True) -> dict[str, Tensor]:
    """Return the trainable parameters, or copies of them."""
    return {name: world.to_cpu(parameter, copy=copy) for name, parameter in trainable(model)}


def load_parameters(model: nn.Module, tensors: Mapping[str, Tensor], world: World) -> None:
    """Copy tensors of `parameters_to_cpu` to the model."""
    with torch.no_grad():
        for name, parameter in trainable(model):
            parameter.copy_(world.to_device_like(tensors[name], parameter))


def moments_to_cpu(optimizer: Optimizer, world: World, *, copy: bool = True) -> dict[str, Tensor]:
    """Return the optimizer's moments, or copies of them."""
    return {name: world.to_cpu(moment, copy=copy) for name, moment in optimizer.state().items()}


def load_moments(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], model: nn.Module, world: World
) -> None:
    """Load tensors of `moments_to_cpu`, each on the device of the parameter."""
    parameters = dict(trainable(model))
    optimizer.load(
        {
            name: world.to_device_like(moment, parameters[name.rpartition(".")[0]])
            for name, moment in tensors.items()
        }
    )
