"""`make shards`: encode the text in several processes, on one machine or many.

datatrove's executors run the shards: `local` in processes of this machine, `ray` on the cluster of
`RAY_ADDRESS` or else on a Ray of this machine, `slurm` as an array of jobs. All machines see this
folder under the same path. Shards lie in `.state`; `make tokenize` puts them together.
"""

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.commands.arguments import named
from flows.dvc.repro import stale_stages
from gptmill.data.documents import read_documents, split_documents
from gptmill.data.token_shards import begin, files_of_shard, unfinished, write_shard
from gptmill.files import atomic_folder
from gptmill.tokenizer.bpe_engines import EncodingError
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.frame import resume
from tasks.frame.run import Inputs
from tasks.processes import locks
from tasks.project.environment import ROOT
from tasks.project.graph import check_inputs, stages
from tasks.tokenize import CONTEXT_LENGTH, keep_together, mix, tokenize, vocabulary

USAGE = (
    "usage: make shards EXECUTOR=local|ray|slurm SHARDS=8 WORKERS=2 "
    "OPTIONS='time=2:00:00 partition=cpu', options of datatrove's executor"
)
EXECUTORS = {
    "local": "LocalPipelineExecutor",
    "ray": "RayPipelineExecutor",
    "slurm": "SlurmPipelineExecutor",
}
NEEDS = {"local": ("datatrove",), "ray": ("datatrove", "ray"), "slurm": ("datatrove",)}


@dataclass(frozen=True)
class ShardStep:
    """A step of a datatrove pipeline: the task of rank k writes shard k."""

    texts: Path
    folder: Path

    def __call__(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write a shard; datatrove passes the rank and the number of tasks."""
        tokenizer = Tokenizer.from_folder(self.folder / "tokenizer")
        try:
            write_shard(self.texts, self.folder, tokenizer, shard=rank, shards=world_size)
        except EncodingError as error:
            path = files_of_shard(self.texts, shard=rank, shards=world_size)[error.index]
            raise ValueError(f"{path}: {error}") from None


def main(arguments: list[str]) -> int:
    """Write all shards of the text, or submit the jobs that write them."""
    given = named(arguments, ("EXECUTOR", "SHARDS", "WORKERS", "OPTIONS"), USAGE)
    name = given.get("EXECUTOR", "")
    shards, workers = given.get("SHARDS", ""), given.get("WORKERS", given.get("SHARDS", ""))
    if name not in EXECUTORS or not (shards.isdecimal() and workers.isdecimal()):
        raise ValueError(f"{USAGE}; given: {' '.join(arguments)}")
    _check_packages(name)
    if not stale_stages(["tokenize"]):
        print("tokenize is up to date: no shards are needed")
        return 0
    options = {"tasks": int(shards), "workers": int(workers), **_options(given.get("OPTIONS", ""))}
    make = _executor(name, options)
    with locks.project("make shards"):
        folder = prepare(int(shards))
        run(name, make, ShardStep(ROOT / "data" / "text", folder), **options)
    missing = unfinished(folder, int(shards))
    if name == "slurm":
        print(f"{shards} shards are submitted: run `make tokenize` after the last job")
    elif missing:
        print(
            f"{len(missing)} of {shards} shards are unfinished (logs: {folder}/logs): run the same "
            "command again to finish them",
            file=sys.stderr,
        )
        return 1
    else:
        print(f"{shards} shards are finished: run `make tokenize`")
    return 0


def prepare(shards: int) -> Path:
    """Check the inputs, save the tokenizer of all shards; return the folder of the shards."""
    inputs = Inputs("tokenize")
    folder = resume.training("tokenize", stages()["tokenize"], check_inputs("tokenize")).shards
    documents = read_documents(inputs.data("text"))
    files_of_shard(inputs.data("text"), shard=0, shards=shards)  # checks the number
    folder.mkdir(parents=True, exist_ok=True)
    begin(folder, shards)
    if not (folder / "tokenizer").exists():
        params = tokenize.params()
        together, _ = keep_together(inputs, documents)
        train, _ = split_documents(together, params.validation_fraction)
        tokenizer = vocabulary(params, inputs, mix(inputs, train)[0])
        with atomic_folder(folder / "tokenizer") as partial:
            tokenizer.save(partial, context_length=CONTEXT_LENGTH)
    return folder


def run(name: str, make: Callable[..., Any], step: ShardStep, **options: Any) -> None:
    """Run a step by an executor of datatrove, and wait for all but the jobs of SLURM."""
    path = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))  # for the workers
    if name == "ray":
        import ray

        ray.init()
    make(pipeline=[step], logging_dir=str(step.folder / "logs"), **options).run()


def _executor(name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a class of datatrove; raise ValueError for options that the class has not."""
    from datatrove import executor

    make: Callable[..., Any] = getattr(executor, EXECUTORS[name])
    signature = inspect.signature(make)
    try:
        signature.bind(pipeline=[], logging_dir="", **options)
    except TypeError as error:
        raise ValueError(
            f"OPTIONS of EXECUTOR={name}: {error}; allowed are {', '.join(signature.parameters)}"
        ) from None
    return make


def _check_packages(name: str) -> None:
    missing = [package for package in NEEDS[name] if find_spec(package) is None]
    if missing:
        raise ValueError(
            f"EXECUTOR={name} needs the package {' and '.join(missing)}: run "
            "`.venv/bin/python -m pip install -e '.[shards]' -c configs/constraints.txt`"
        )


def _options(text: str) -> dict[str, Any]:
    """Return NAME=value words as arguments; digits become numbers."""
    words: Sequence[str] = text.split()
    pairs = named(words, [word.partition("=")[0] for word in words], USAGE)
    return {name: int(value) if value.isdecimal() else value for name, value in pairs.items()}
