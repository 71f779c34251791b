"""Facts about a run that its artifacts do not hold: dates, commits, cost, hashes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gptmill.comparing.side import Change
from gptmill.origins import Origin

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Making:
    """The date, code and cost of one stage's outputs; empty or None where nothing is recorded."""

    stage: str
    date: str = UNKNOWN
    commit: str = ""
    device: str = ""
    seconds: float | None = None
    cpu_seconds: float | None = None
    memory_gb: float | None = None
    """The peak memory of the process, or of the GPU."""
    link: str = ""
    """The address of the stage's MLflow run."""


@dataclass(frozen=True)
class Facts:
    """Facts about a run."""

    title: str
    date: str = UNKNOWN
    commit: str = UNKNOWN
    base: str = UNKNOWN
    """The weights that fine-tuning started from."""
    reference: str = ""
    """The params with which the params of the run are compared."""
    params: Sequence[Change] = ()
    """Params of the run (second) that differ from the reference (first)."""
    are_params_known: bool = False
    origins: Sequence[Origin] = ()
    """Sources of raw data."""
    making: Sequence[Making] = ()
    energy: Mapping[str, str] = field(default_factory=dict)
    """Energy in all and by part, as text; empty where no device told any."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """DVC's hash of each output."""
    models: Mapping[str, str] = field(default_factory=dict)
    """The registered version of each kind of model, by its URI: the state of the version."""
