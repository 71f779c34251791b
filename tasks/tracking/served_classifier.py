"""MLflow model of a classifier: texts in, labels and class probabilities out.

MLflow stores this file and gptmill with the model, so the file imports no further project code.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from gptmill.checkpoint.checkpoint import load_classifier
from gptmill.finetuning.classification import encode, predict
from gptmill.records import check_stamps
from gptmill.tokenizer.tokenizer import Tokenizer


class Classifier(PythonModel):
    """Classifier in float32 on the CPU.

    The checkpoint folder is loaded once.
    """

    def load_context(self, context: Any) -> None:
        """Load the model, the class names and the tokenizer."""
        folder = Path(context.artifacts["checkpoint"])
        check_stamps(folder, Path(context.artifacts["record"]) / "files.json")
        self.model, self.class_names = load_classifier(folder)
        self.tokenizer = Tokenizer.from_folder(folder)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return the columns `label` and `p_CLASS` for each row's `text`."""
        texts = list(model_input["text"])
        rows, _ = encode(texts, self.tokenizer, self.model.config.context_length)
        pad_id = self.tokenizer.eot_id
        probabilities = predict(self.model, rows, batch_size=32, pad_id=pad_id, device="cpu")
        table = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in self.class_names])
        table.insert(0, "label", [self.class_names[best] for best in probabilities.argmax(axis=1)])
        return table


set_model(Classifier())
