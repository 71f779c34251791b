"""An assistant as MLflow serves it: rows of instruction and input in, answers out.

MLflow keeps this file and gptmill with the model, so it imports nothing else of the project.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.finetuning.instructions import answers, read_template
from gptmill.tokenizer.tokenizer import Tokenizer


class Assistant(PythonModel):
    """Loads the checkpoint folder once, then answers through the template it was trained with."""

    def load_context(self, context: Any) -> None:
        """Read model and tokenizer."""
        folder = Path(context.artifacts["checkpoint"])
        self.model = load_causal_lm(folder)
        self.tokenizer = Tokenizer.from_folder(folder)
        self.template = read_template(folder, self.tokenizer)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return the column answer for each row's `instruction` and `input`, if it has one."""
        assert params is not None, "mlflow fills in what the signature has"
        columns = ["instruction", "input"]
        rows = model_input.reindex(columns=columns, fill_value="").fillna("")
        records = [{"instruction": asked, "input": given} for asked, given in rows.to_numpy()]
        found = answers(
            self.model,
            records,
            self.tokenizer,
            self.template,
            max_new_tokens=int(params["max_new_tokens"]),
        )
        return pd.DataFrame({"answer": found})


set_model(Assistant())
