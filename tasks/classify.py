"""classify: load_gpt2, split/labelled -> artifacts/classify (a classifier)."""

import torch

from gptmill.checkpoint.checkpoint import load_causal_lm, save_classifier
from gptmill.finetuning.classification import Trainable, set_trainable
from gptmill.model.gpt import GPTClassifier
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


class Classify(ClassifierTraining):
    """params.yaml `classify:`."""

    trainable: Trainable


@stage
def classify(params: Classify, run: Run) -> Metrics:
    """Train a class head and the base, or parts of the base, on labelled texts."""
    folder = run.input("load_gpt2")
    base, tokenizer = load_causal_lm(folder), Tokenizer.from_folder(folder)
    data = Labelled.read(run.input("split/labelled"), tokenizer, base.config.context_length)

    head = torch.Generator().manual_seed(run.seed)
    model = GPTClassifier.from_gpt(base, len(data.class_names), generator=head)
    set_trainable(model, params.trainable)
    trained = fit(params, run, model, data=data)

    save_classifier(run.out, model, tokenizer, class_names=data.class_names)
    metrics = trained | predict_test(params, run, model, data=data)
    tuned_card("classify", run.out, run, run.input("split/labelled") / "train.csv", metrics)
    run.log_model("classifier", run.out)
    return metrics
