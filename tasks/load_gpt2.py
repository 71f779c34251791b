"""load_gpt2: pretrained weights in any format -> artifacts/load_gpt2 (a checked checkpoint)."""

from pathlib import Path

import pandas as pd
from pydantic import Field

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.checkpoint.model_card import read_card_origins
from gptmill.files import read_json
from gptmill.formats.importing import import_model
from gptmill.model.gpt import GPT
from gptmill.origins import Origin, write_origins
from tasks.frame.run import Metrics, Run
from tasks.frame.stage import Section, stage
from tasks.shared.cards import stage_card


class LoadGpt2(Section):
    """params.yaml `load_gpt2:`."""

    weights: str = Field(description="a folder or file of weights, below the project root")


@stage
def load_gpt2(params: LoadGpt2, run: Run) -> Metrics:
    """Load pretrained weights of a GPT-2 or a Llama, the start of all fine-tuning.

    The names and shapes of all tensors are checked before any tensor is read. Weights without a
    tokenizer get GPT-2's.
    """
    imported = import_model(
        str(run.path(params.weights)),
        run.out,
        otherwise=run.data("bpe"),
        classifiers=False,
    )
    run.show("tensors", tensor_table(load_causal_lm(run.out)))
    files = [{"file": name, "sha256": digest} for name, digest in imported.files.items()]
    run.show("files", pd.DataFrame(files))
    config = imported.config
    metrics: Metrics = {
        "family": config.family,
        "n_parameters": imported.n_parameters,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "emb_dim": config.emb_dim,
        "context_length": config.context_length,
    }
    weights = [path for path in _files(run.path(params.weights)) if path.name in imported.files]
    origins, licence = origins_of(params.weights, run)
    write_origins(run.out / "origins.json", origins)
    stage_card(
        "load_gpt2",
        run.out,
        read={path.name: path for path in weights},
        origins=origins,
        metrics=metrics,
        licence=licence,
    )
    return metrics


def origins_of(weights: str, run: Run) -> tuple[list[Origin], str | None]:
    """Return the raw data behind weights, and the licence of the weights if known.

    Weights in data/ are raw data themselves; weights of a stage come from the raw data in the
    weights' card, and from the weights behind a continued training; the origin of any further
    weights is unknown.
    """
    top, _, below = weights.partition("/")
    if top == "artifacts":
        folder = run.path(weights)
        start = read_json(folder / "details.json").get("start")
        first = run.origins(start.removeprefix("data/")) if start else []
        return [*read_card_origins(folder), *first], None
    origins = run.origins(below) if top == "data" else []
    return origins, origins[0].licence if len(origins) == 1 else None


def _files(source: Path) -> list[Path]:
    return sorted(source.iterdir()) if source.is_dir() else [source]


def tensor_table(model: GPT) -> pd.DataFrame:
    """Return names and shapes of the tensors, with one row for all blocks."""
    rows = [
        {"tensor": name.replace(".h.0.", ".h.*."), "shape": " x ".join(map(str, tensor.shape))}
        for name, tensor in model.state_dict().items()
        if ".h." not in name or ".h.0." in name
    ]
    return pd.DataFrame(rows)
