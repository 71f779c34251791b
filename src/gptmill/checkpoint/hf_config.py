"""Hugging Face's config.json, read as the shape of a model and written.

A config with a variant that the model does not compute is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmill.checkpoint.families import FAMILIES
from gptmill.device import check_choice
from gptmill.files import read_object
from gptmill.model.gpt import INIT_STD, GPTConfig


@dataclass(frozen=True)
class SpecialIds:
    """The special ids in a config: begin of a text, all ends of a text, and padding."""

    bos: int
    eos: tuple[int, ...]
    pad: int

    def named(self) -> dict[str, int | list[int]]:
        """Return the ids by their keys in config.json and generation_config.json."""
        eos = self.eos[0] if len(self.eos) == 1 else list(self.eos)
        return {"bos_token_id": self.bos, "eos_token_id": eos, "pad_token_id": self.pad}


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a config.json; raise ValueError for a missing file and for anything but an object."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; a Hugging Face folder has one")
    return read_object(path)


def read_config(folder: Path) -> GPTConfig:
    """Read the shape of the model in `folder`; raise ValueError for an unknown family."""
    path = folder / "config.json"
    content = read_config_file(path)
    name = content.get("model_type", "gpt2")
    try:
        check_choice("model_type", name, FAMILIES)
        return FAMILIES[name].read_config(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def to_hugging_face(config: GPTConfig, ids: SpecialIds, dtype: str) -> dict[str, Any]:
    """Return the config.json of a model, without the architecture class."""
    return {
        **FAMILIES[config.family].write_config(config),
        **ids.named(),
        "initializer_range": INIT_STD,
        "tie_word_embeddings": config.tie_weights,
        "use_cache": True,
        "dtype": dtype,
    }
