"""A pretrained model as MLflow serves it: rows of prompts in, their continuations out.

MLflow keeps this file and gptmill with the model, so it imports nothing else of the project.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.tokenizer.tokenizer import Tokenizer


class Generator(PythonModel):
    """Loads the checkpoint folder once, then continues prompts; the seed decides the draws."""

    def load_context(self, context: Any) -> None:
        """Read model and tokenizer."""
        folder = Path(context.artifacts["checkpoint"])
        self.model = load_causal_lm(folder)
        self.tokenizer = Tokenizer.from_folder(folder)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return the column text: what follows each row's `prompt`; an empty one starts anew."""
        assert params is not None, "mlflow fills in what the signature has"
        end = self.tokenizer.eot_id
        prompts = [self.tokenizer.encode(prompt) or [end] for prompt in model_input["prompt"]]
        config = GenerationConfig(
            max_new_tokens=int(params["max_new_tokens"]),
            temperature=float(params["temperature"]),
            top_k=int(params["top_k"]),
            top_p=1.0,
        )
        found = generate(self.model, prompts, config, stop_ids={end}, seed=int(params["seed"]))
        return pd.DataFrame({"text": [self.tokenizer.decode(ids) for ids in found]})


set_model(Generator())
