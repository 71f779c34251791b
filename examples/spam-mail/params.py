"""The params of the example: params.toml, checked against the library's own config classes."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmill.data.parts import Fractions
from gptmill.files import checked
from gptmill.training.optimizers import OptimizerConfig


@dataclass(frozen=True)
class Pretraining:
    """Training on the text of all training mails."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Classification:
    """Training on the labels."""

    epochs: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Params:
    """The sections of params.toml."""

    seed: int
    characters: int
    vocabulary_size: int
    near_duplicates: float
    fractions: Fractions
    mails: dict[str, str]
    model: dict[str, Any]
    """The fields of `GPTConfig` without the vocabulary, which is learned."""
    pretraining: Pretraining
    classification: Classification
    optimizer: OptimizerConfig


def read_params(path: Path) -> Params:
    """Read params.toml; raise ValueError, naming the field, for a wrong value."""
    params: Params = checked(Params, tomllib.loads(path.read_text(encoding="utf-8")), path)
    return params
