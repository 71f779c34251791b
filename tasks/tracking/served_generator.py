"""MLflow model of a pretrained language model: prompts in, continuations out.

MLflow stores this file and gptmill with the model, so the file imports no further project code.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.records import check_stamps
from gptmill.tokenizer.tokenizer import Tokenizer


class Generator(PythonModel):
    """Generator of continuations, with draws decided by the seed.

    The checkpoint folder is loaded once.
    """

    def load_context(self, context: Any) -> None:
        """Load the model and the tokenizer."""
        folder = Path(context.artifacts["checkpoint"])
        check_stamps(folder, Path(context.artifacts["record"]) / "files.json")
        self.model = load_causal_lm(folder)
        self.tokenizer = Tokenizer.from_folder(folder)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return the column `text`, the continuation of each row's `prompt`.

        An empty prompt starts a new document.
        """
        assert params is not None, "mlflow fills in the params of the signature"
        end = self.tokenizer.eot_id
        prompts = [self.tokenizer.encode(prompt) or [end] for prompt in model_input["prompt"]]
        config = GenerationConfig(
            max_new_tokens=int(params["max_new_tokens"]),
            temperature=float(params["temperature"]),
            top_k=int(params["top_k"]),
            top_p=1.0,
        )
        rows = generate(self.model, prompts, config, stop_ids={end}, seed=int(params["seed"]))
        return pd.DataFrame({"text": [self.tokenizer.decode(ids) for ids in rows]})


set_model(Generator())
