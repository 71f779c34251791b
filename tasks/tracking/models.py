"""Checkpoint folders as MLflow models.

`mlflow.pyfunc` loads a logged model and `mlflow models` serves the model. A logged model consists
of the folder, gptmill's code and a `served_*.py` file, run by MLflow to load the model. No part
is a pickle.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from gptmill.checkpoint.checkpoint import read_class_names
from gptmill.files import write_json
from gptmill.records import stamps
from tasks.project.environment import ROOT
from tasks.project.hashes import known
from tasks.tracking.links import linked_files
from tasks.tracking.runs import MODEL_TAG, maker

ServedKind = Literal["generator", "classifier", "assistant"]

NO_STEP = -1  # MLflow copies all figures of the step to the model, those of the machine too
CODE = ROOT / "src" / "gptmill"
# Packages imported by a served file and gptmill for prediction alone; mlflow adds itself.
PACKAGES = ("jinja2", "numpy", "pandas", "tiktoken", "tokenizers", "torch")


@dataclass(frozen=True)
class Served:
    """Signature of a kind of model: inputs, outputs, params, example."""

    inputs: Schema
    outputs: Callable[[Path], Schema]
    params: ParamSchema
    example: pd.DataFrame | tuple[pd.DataFrame, dict[str, int]]


def _columns(*names: str, optional: tuple[str, ...] = ()) -> Schema:
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, name, required=name not in optional)
        for name in (*names, *optional)
    ]
    return Schema(columns)


def _classes(folder: Path) -> Schema:
    shares = [ColSpec(DataType.double, f"p_{name}") for name in read_class_names(folder)]
    return Schema([ColSpec(DataType.string, "label"), *shares])


_TOKENS = ParamSpec("max_new_tokens", DataType.long, 64)
_SHORT = {"max_new_tokens": 8}  # MLflow runs the example on logging: a proof, and a fast proof
SERVED: dict[ServedKind, Served] = {
    "classifier": Served(
        inputs=_columns("text"),
        outputs=_classes,
        params=ParamSchema([]),
        example=pd.DataFrame({"text": ["You have won a prize, call now", "See you at lunch"]}),
    ),
    "assistant": Served(
        inputs=_columns("instruction", optional=("input",)),
        outputs=lambda folder: _columns("answer"),
        params=ParamSchema([_TOKENS]),
        example=(
            pd.DataFrame({"instruction": ["Give a synonym of the word."], "input": ["happy"]}),
            _SHORT,
        ),
    ),
    "generator": Served(
        inputs=_columns("prompt"),
        outputs=lambda folder: _columns("text"),
        params=ParamSchema(
            [
                _TOKENS,
                ParamSpec("temperature", DataType.double, 0.8),
                ParamSpec("top_k", DataType.long, 50),
                ParamSpec("seed", DataType.long, 0),
            ]
        ),
        example=(pd.DataFrame({"prompt": ["In the beginning"]}), _SHORT),
    ),
}


def log_model(kind: ServedKind, folder: Path, *, name: str) -> Any:
    """Log a checkpoint folder as a model of the active run.

    Files in a local store are links: the model also records their hashes, to notice an edit before
    use. Returns MLflow's record of the model.
    """
    served = SERVED[kind]
    with linked_files(), tempfile.TemporaryDirectory() as temporary:
        record = Path(temporary) / "record"
        record.mkdir()
        write_json(record / "files.json", stamps(folder, hasher=known().md5))
        return mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(__file__).with_name(f"served_{kind}.py")),
            artifacts={"checkpoint": str(folder), "record": str(record)},
            code_paths=[str(CODE)],
            pip_requirements=requirements(),
            signature=ModelSignature(served.inputs, served.outputs(folder), served.params),
            input_example=served.example,
            step=NO_STEP,
        )


def requirements() -> list[str]:
    """Return a served model's packages, pinned to the installed versions.

    A build suffix like "+cpu" is left out: package indexes know the plain version.
    """
    return [f"{package}=={version(package).split('+')[0]}" for package in PACKAGES]


def log_adopted(stage: str) -> None:
    """Log the model of an adopted trial with the trial's run.

    A trial tags the run that wrote the stage's folder with the kind of model, but logs no model.
    """
    folder = ROOT / "artifacts" / stage
    run = maker({f"artifacts/{stage}": known().content_hash(folder)})
    if run is None:
        return
    kind = mlflow.MlflowClient().get_run(run).data.tags.get(MODEL_TAG)
    if kind is not None:
        with mlflow.start_run(run_id=run):
            log_model(cast("ServedKind", kind), folder, name=stage)
            mlflow.delete_tag(MODEL_TAG)
