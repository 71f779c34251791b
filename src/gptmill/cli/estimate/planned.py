"""The planned training: params.yaml, a preset of configs/ over params.yaml, and the options."""

import copy
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptmill.device import RuntimeConfig
from gptmill.figures import read_figures
from gptmill.files import checked
from gptmill.model.gpt import SIZES, GPTConfig, Size
from gptmill.training.optimizers import OptimizerConfig
from gptmill.training.plan import StoppingConfig

# YAML is read in a process of its own, since the library works without YAML otherwise.
SCRIPT = """
import json, sys
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
try:
    print(json.dumps(YAML(typ="safe").load(sys.stdin.buffer), default=str))
except (YAMLError, UnicodeDecodeError) as error:
    sys.exit(" ".join(str(error).split()))
"""
PARAMS = Path("params.yaml")
GPT2_IDS = 50_257


@dataclass(frozen=True)
class _Windows:
    max_length: int


@dataclass(frozen=True)
class _Sample:
    windows: _Windows


@dataclass(frozen=True)
class _Tokenize:
    vocabulary: str
    vocabulary_size: int


@dataclass(frozen=True)
class _Pretrain:
    start: str
    shape: str | dict[str, int]
    drop_rate: float
    qkv_bias: bool
    tie_weights: bool
    steps: int
    batch_tokens: int
    optimizer: OptimizerConfig
    stopping: StoppingConfig


@dataclass(frozen=True)
class _Resume:
    keep: int


@dataclass(frozen=True)
class Params:
    """The sections of params.yaml that an estimate needs."""

    runtime: RuntimeConfig
    resume: _Resume
    tokenize: _Tokenize
    sample: _Sample
    pretrain: _Pretrain


def read_params(config: Path | None) -> Params:
    """Load params.yaml, with the values of a preset in `config`, or a whole file in its place.

    Raises ValueError where a file or a value does not fit.
    """
    path = PARAMS if config is None else config
    content = _yaml(path)
    if config is not None and "params" in content:
        content = _with_preset(_yaml(PARAMS), content["params"], config)
    params: Params = checked(Params, content, path)
    return params


def _with_preset(content: dict[str, Any], changes: Any, file: Path) -> dict[str, Any]:
    """Return params with the values under a preset's dotted keys."""
    content = copy.deepcopy(content)
    for key, value in checked(dict[str, Any], changes, f"{file}: params").items():
        *parts, last = key.split(".")
        section: Any = content
        for part in parts:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            raise ValueError(f"{file}: {PARAMS} has no {key}; correct or remove the key")
        section[last] = value
    return content


def _yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist: run the command in the project's folder, or name a file with "
            "--config"
        ) from None
    done = subprocess.run([sys.executable, "-P", "-c", SCRIPT], input=text, capture_output=True)
    if done.returncode:
        raise ValueError(f"{path} is not YAML: {done.stderr.decode(errors='replace').strip()}")
    content: dict[str, Any] = checked(dict[str, Any], json.loads(done.stdout), path)
    return content


def model_of(params: Params, shape: str | None) -> GPTConfig:
    """Return the model to be trained: `shape`, or the shape in params, or the first weights'.

    Raises ValueError for an unknown shape, and for weights that are not here.
    """
    section = params.pretrain
    if section.start != "random" and shape is None:
        return _config_of(section.start)
    size = _size(section.shape if shape is None else shape)
    return GPTConfig(
        **size._asdict(),
        vocab_size=_vocabulary(params.tokenize),
        context_length=params.sample.windows.max_length,
        drop_rate=section.drop_rate,
        qkv_bias=section.qkv_bias,
        tie_weights=section.tie_weights,
    )


def _size(shape: str | dict[str, int]) -> Size:
    if isinstance(shape, dict):
        return Size(**checked(dict[str, int], shape, "pretrain.shape"))
    numbers = shape.split("x")
    if shape not in SIZES and (len(numbers) != 3 or not all(n.isdecimal() for n in numbers)):
        raise ValueError(
            f"the shape is {shape!r}; allowed are {', '.join(SIZES)}, or width, layers and heads, "
            "such as 768x12x12"
        )
    return SIZES[shape] if shape in SIZES else Size(*map(int, numbers))


def _vocabulary(tokenize: _Tokenize) -> int:
    """Return the number of ids: GPT-2's, a learned vocabulary's, or that of weights."""
    known = {"data/bpe": GPT2_IDS, "data/text": tokenize.vocabulary_size}
    name = tokenize.vocabulary
    return known[name] if name in known else _config_of(name).vocab_size


def _config_of(weights: str) -> GPTConfig:
    """Return the config of weights."""
    from gptmill.formats.importing import check_model

    if not Path(weights).exists():
        raise ValueError(f"{weights} does not exist: run `make data` first, or name a --shape")
    return check_model(Path(weights))


def tokenized() -> int | None:
    """Return the training tokens that `make tokenize` counted; None before."""
    folder = Path("artifacts/tokenize")
    figures = read_figures(folder)
    return checked(int, figures.get("training_tokens"), folder) if figures else None
