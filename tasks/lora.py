"""lora: load_gpt2, split/labelled -> artifacts/lora (an adapter, and it merged)."""

import torch

from gptmill.checkpoint.adapter import save_adapter
from gptmill.checkpoint.checkpoint import load_causal_lm, save_classifier
from gptmill.model.gpt import GPTClassifier
from gptmill.model.lora import LoRAConfig, add_lora, merge
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.frame.run import Metrics, Run
from tasks.frame.stage import stage
from tasks.shared.cards import tuned_card
from tasks.shared.classifier import (
    ClassifierTraining,
    Labelled,
    fit,
    predict_test,
)

BASE = "artifacts/load_gpt2"  # as the adapter names it: its place in the project


class Lora(ClassifierTraining):
    """params.yaml `lora:`."""

    adapter: LoRAConfig


@stage
def lora(params: Lora, run: Run) -> Metrics:
    """Train a class head and low-rank additions to the frozen base on labelled texts."""
    folder = run.path(BASE)
    base, tokenizer = load_causal_lm(folder), Tokenizer.from_folder(folder)
    data = Labelled.read(run.input("split/labelled"), tokenizer, base.config.context_length)

    generator = torch.Generator().manual_seed(run.seed)
    model = GPTClassifier.from_gpt(base, len(data.class_names), generator=generator)
    add_lora(model, params.adapter, generator=generator)
    trained = fit(params, run, model, data=data)

    save_adapter(run.out / "adapter", model, params.adapter, base=BASE)
    merge(model)
    save_classifier(run.out / "merged", model, tokenizer, class_names=data.class_names)
    metrics = trained | predict_test(params, run, model, data=data)
    tuned_card("lora", run.out / "merged", run, run.input("split/labelled") / "train.csv", metrics)
    run.log_model("classifier", run.out / "merged")
    return metrics
