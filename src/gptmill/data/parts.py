"""The three parts of a split: names, fractions, and the part of a key."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Fractions:
    """The fraction of rows per part. Fractions sum to 1."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    train: float
    validation: float
    test: float

    def __post_init__(self) -> None:
        fractions = (self.train, self.validation, self.test)
        if not (min(fractions) > 0 and abs(sum(fractions) - 1) < 1e-9):
            raise ValueError(
                f"fractions are train {self.train}, validation {self.validation}, test {self.test};"
                " each must be above 0 and together they must be 1"
            )

    def part(self, draw: float) -> str:
        """Return the part of a draw from [0, 1): test lowest, then validation, then train."""
        if draw < self.test:
            return "test"
        return "validation" if draw < self.test + self.validation else "train"

    def distance(self, draw: float, part: str) -> float:
        """Return the distance of a draw to the draws of a part; 0 inside."""
        low, high = {
            "test": (0.0, self.test),
            "validation": (self.test, self.test + self.validation),
            "train": (self.test + self.validation, 1.0),
        }[part]
        return max(low - draw, draw - high, 0.0)


def draw(key: str, *, seed: int) -> float:
    """Return a number in [0, 1), a pure function of key and seed."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
