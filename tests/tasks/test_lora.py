"""The stage `lora`: its adapter, put on the base by PEFT, is the classifier that it merged."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from tasks.lora import lora
from tests.support.fakes import FakeRun
from tests.tasks.test_classify import LORA
from tests.tasks.test_classify import project as project

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # PEFT's


def test_the_adapter_on_the_base_is_the_merged_classifier(project: Path) -> None:
    run = FakeRun(project, project / "artifacts" / "lora")
    metrics = lora.body(LORA, run)  # type: ignore[arg-type]
    assert metrics["trainable_parameters"] < metrics["parameters"]
    merged = AutoModelForSequenceClassification.from_pretrained(run.out / "merged").eval()
    base = AutoModelForSequenceClassification.from_pretrained(
        project / "artifacts/load_gpt2", num_labels=2, pad_token_id=merged.config.pad_token_id
    )
    adapted = PeftModel.from_pretrained(base, run.out / "adapter").eval()
    texts = pd.read_csv(project / "artifacts/split/labelled/test.csv")["text"]
    ids = torch.tensor([[len(text) % 50 + 1, 7, 9] for text in texts])
    with torch.no_grad():
        assert torch.allclose(adapted(ids).logits, merged(ids).logits, atol=1e-5)
