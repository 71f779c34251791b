"""MLflow model of an assistant: instructions and inputs in, answers out.

MLflow stores this file and gptmill with the model, so the file imports no further project code.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.finetuning.instructions import answers, read_template
from gptmill.records import check_stamps
from gptmill.tokenizer.tokenizer import Tokenizer


class Assistant(PythonModel):
    """Assistant that answers through the template used for training.

    The checkpoint folder is loaded once.
    """

    def load_context(self, context: Any) -> None:
        """Load the model, the tokenizer and the template."""
        folder = Path(context.artifacts["checkpoint"])
        check_stamps(folder, Path(context.artifacts["record"]) / "files.json")
        self.model = load_causal_lm(folder)
        self.tokenizer = Tokenizer.from_folder(folder)
        self.template = read_template(folder, self.tokenizer)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return the column `answer` for each `instruction` and optional `input`."""
        assert params is not None, "mlflow fills in the params of the signature"
        columns = ["instruction", "input"]
        rows = model_input.reindex(columns=columns, fill_value="").fillna("")
        records = [
            {"instruction": instruction, "input": input_text}
            for instruction, input_text in rows.to_numpy()
        ]
        replies = answers(
            self.model,
            records,
            self.tokenizer,
            self.template,
            max_new_tokens=int(params["max_new_tokens"]),
        )
        return pd.DataFrame({"answer": [reply.text for reply in replies]})


set_model(Assistant())
