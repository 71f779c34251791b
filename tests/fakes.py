"""Stand-ins: what a stage's body needs of a run, on folders of its own and with no tracking."""

from collections.abc import Mapping
from pathlib import Path

from gptmill.device import Device, RuntimeConfig, pick

CPU = RuntimeConfig(device="cpu", precision="fp32", compile=False)


class FakeRun:
    """A run whose project is a folder; it keeps what the body reports."""

    def __init__(self, root: Path, out: Path) -> None:
        self.root = root
        self.out = out
        self.seed = 1
        self.shown: dict[str, object] = {}
        self.said: list[str] = []
        self.steps: list[Mapping[str, float]] = []
        self.models: list[str] = []
        out.mkdir(parents=True)

    def input(self, stage: str) -> Path:
        return self.root / "artifacts" / stage

    def data(self, name: str) -> Path:
        return self.root / "data" / name

    def device(self) -> Device:
        return pick(CPU)

    def show(self, title: str, content: object) -> None:
        self.shown[title] = content

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(
        self,
        step: int,
        steps: int,
        figures: Mapping[str, float],
        *,
        tokens_per_second: float | None = None,
        note: str = "",
    ) -> None:
        self.steps.append(figures)

    def figure(self, name: str, figure: object) -> None:
        self.shown[name] = figure

    def log_model(self, kind: str, folder: Path) -> None:
        self.models.append(kind)
