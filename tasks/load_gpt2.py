"""load_gpt2: a folder of GPT-2 weights -> artifacts/load_gpt2 (our checkpoint, checked)."""

from pathlib import Path

import pandas as pd
from pydantic import Field

from gptmill.checkpoint import check_weights, load_causal_lm, save_causal_lm
from gptmill.model import GPT, GPTConfig
from gptmill.tokenizer import Tokenizer, read_vocabulary
from tasks._stage import Metrics, Run, Section, stage


class LoadGpt2(Section):
    """params.yaml `load_gpt2:`."""

    weights: str = Field(description="a folder in Hugging Face's layout, below the project root")


@stage
def load_gpt2(params: LoadGpt2, run: Run) -> Metrics:
    """Read GPT-2 weights from any folder that has their layout; fine-tuning starts from these.

    Every tensor's name and shape is checked before one is read, and the vocabulary against
    that of the text.
    """
    folder = run.path(params.weights)
    tokenizer = Tokenizer.from_folder(run.input("tokenize") / "tokenizer")
    config = check_weights(folder)
    check_vocabulary(folder, config, tokenizer)
    model = load_causal_lm(folder)
    save_causal_lm(run.out, model, tokenizer)
    run.show("tensors", tensor_table(model))
    return {
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "emb_dim": config.emb_dim,
        "context_length": config.context_length,
    }


def check_vocabulary(folder: Path, config: GPTConfig, tokenizer: Tokenizer) -> None:
    """Raise ValueError where the weights were trained on other ids than the text became."""
    if config.vocab_size != tokenizer.n_vocab:
        raise ValueError(
            f"{folder}: the weights know {config.vocab_size} ids, the tokenizer of `tokenize` has "
            f"{tokenizer.n_vocab}; use the vocabulary that the weights were trained with"
        )
    if read_vocabulary(folder) not in (None, tokenizer.ids()):
        raise ValueError(
            f"{folder}: its vocabulary gives other ids to tokens than the tokenizer of `tokenize`; "
            "use the vocabulary that the weights were trained with"
        )


def tensor_table(model: GPT) -> pd.DataFrame:
    """Return what was loaded, one row a kind of tensor: the blocks are alike."""
    rows = [
        {"tensor": name.replace(".h.0.", ".h.*."), "shape": " x ".join(map(str, tensor.shape))}
        for name, tensor in model.state_dict().items()
        if ".h." not in name or ".h.0." in name
    ]
    return pd.DataFrame(rows)
