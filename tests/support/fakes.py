"""Stand-ins: what a stage's body needs of a run, on folders of its own and with no tracking."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptmill.device import Device, RuntimeConfig, pick
from gptmill.origins import Origin, manifest_origins
from gptmill.training.distributed import SINGLE_PROCESS
from gptmill.training.state.store import StateStore

CPU = RuntimeConfig(
    device="cpu", precision="fp32", compile=False, micro_batch="auto", recompute=False
)


class FakeRun:
    """A run whose project is a folder; it keeps what the body reports."""

    def __init__(self, root: Path, out: Path) -> None:
        self.root = root
        self.out = out
        self.seed = 1
        self.runtime = CPU
        self.world = SINGLE_PROCESS
        self.tags: dict[str, str] = {}
        self.saved: dict[str, object] = {}
        self.shown: dict[str, object] = {}
        self.said: list[str] = []
        self.steps: list[Mapping[str, float]] = []
        self.models: list[str] = []
        out.mkdir(parents=True)

    def input(self, stage: str) -> Path:
        return self.root / "artifacts" / stage

    def origins(self, path: str) -> list[Origin]:
        return manifest_origins(self.root / "data", path)

    def path(self, path: str) -> Path:
        return self.root / path

    def data(self, name: str) -> Path:
        return self.root / "data" / name

    def device(self, *, flops: float = 0.0, one_shape: bool = False) -> Device:
        return pick(CPU, flops=flops, one_shape=one_shape)

    def store(self) -> StateStore:
        return StateStore(self.out.with_name(f"{self.out.name}-state"), every=60, keep=2)

    @property
    def shards(self) -> Path:
        return self.out.with_name(f"{self.out.name}-shards")

    is_first_rank = True

    def save_beside_state(self, name: str, content: object) -> None:
        self.saved[name] = content

    def kept(
        self, inputs: Sequence[str], params: Mapping[str, Any], make: Callable[[], object]
    ) -> object:
        return make()

    def tag(self, name: str, value: str) -> None:
        self.tags[name] = value

    def show(self, title: str, content: object) -> None:
        self.shown[title] = content

    def log(self, text: str) -> None:
        self.said.append(text)

    def step(
        self,
        step: int,
        steps: int,
        figures: Mapping[str, float],
        *,
        costs: Mapping[str, float] | None = None,
        note: str = "",
        replayed: bool = False,
    ) -> None:
        self.steps.append(figures)

    def figure(self, name: str, figure: object) -> None:
        self.shown[name] = figure

    def log_model(self, kind: str, folder: Path) -> None:
        self.models.append(kind)
