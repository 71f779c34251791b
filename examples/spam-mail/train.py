"""Train a GPT on mails, then a spam filter from that GPT: `python train.py`.

Writes out/generator and out/classifier, two Hugging Face folders, and the tables that the notebook
plots: out/training.csv, out/test.csv and out/results.json.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from mails import load_mails
from params import Params, read_params
from torch import nn

from gptmill.checkpoint.checkpoint import save_causal_lm, save_classifier
from gptmill.data.batching import RowOrder
from gptmill.data.splits import split_labelled
from gptmill.data.token_file import TokenFile
from gptmill.data.windows import TextWindows, WindowConfig, WindowIndex
from gptmill.device import RuntimeConfig, pick
from gptmill.evaluation.classifier import (
    bag_of_words_probabilities,
    f1_difference,
    score_classifier,
)
from gptmill.files import write_csv, write_json
from gptmill.finetuning.classification import CLASSES, batch, encode_rows, measure, predict
from gptmill.model.gpt import GPT, GPTClassifier, GPTConfig
from gptmill.model.objectives import LANGUAGE, Batch, Objective
from gptmill.tokenizer.learning import learn_tokenizer
from gptmill.tokenizer.tokenizer import Tokenizer
from gptmill.training.guard import GuardConfig
from gptmill.training.plan import Plan, StoppingConfig
from gptmill.training.trainer import Trainer

OUT = Path("out")
CLASS_NAMES = ["ham", "spam"]
SPAM = CLASS_NAMES.index("spam")
DEVICE = pick(RuntimeConfig("auto", "auto", compile=False, micro_batch="auto", recompute=False))
Tables = dict[str, pd.DataFrame]


def main() -> None:
    """Load, split, pretrain, fine-tune, score."""
    params = read_params(Path("params.toml"))
    mails = load_mails(params.mails, params.characters)
    parts = split_labelled(
        mails, params.fractions, near_duplicates=params.near_duplicates, seed=params.seed
    ).parts
    print({part: table["label"].value_counts().to_dict() for part, table in parts.items()})
    OUT.mkdir(exist_ok=True)
    tokenizer = learn_tokenizer(parts["train"]["text"], params.vocabulary_size)

    gpt, pretraining = pretrain(params, parts, tokenizer)
    save_causal_lm(OUT / "generator", gpt, tokenizer)
    classifier, classification = fine_tune(params, parts, tokenizer, gpt)
    save_classifier(OUT / "classifier", classifier, tokenizer, class_names=CLASS_NAMES)
    write_csv(OUT / "training.csv", pd.concat([pretraining, classification]))
    score(params, parts, tokenizer, classifier)


def pretrain(params: Params, parts: Tables, tokenizer: Tokenizer) -> tuple[GPT, pd.DataFrame]:
    """Train a GPT to predict the next token of the training mails."""
    texts = parts["train"]["text"]
    tokens = TokenFile.write(
        OUT / "train.bin",
        tokenizer.encode_batch(list(texts)),
        names=[f"mail {row}" for row in texts.index],
        separator=tokenizer.eot_id,
        vocab_size=tokenizer.n_vocab,
        fingerprint=tokenizer.fingerprint,
    )
    config = GPTConfig(vocab_size=tokenizer.n_vocab, **params.model)
    length = config.context_length
    windows = TextWindows(
        tokens, WindowIndex.build(tokens, WindowConfig(length, length), part="training")
    )
    section, seed = params.pretraining, params.seed
    model = GPT(config, generator=torch.Generator().manual_seed(seed))
    steps = train(
        model,
        LANGUAGE,
        lambda number: windows.batch(number, batch_size=section.batch_size, seed=seed),
        plan=plan(params, section.steps, section.learning_rate),
    )
    return model, steps.assign(training="next token")


def fine_tune(
    params: Params, parts: Tables, tokenizer: Tokenizer, gpt: GPT
) -> tuple[GPTClassifier, pd.DataFrame]:
    """Replace the GPT's head by one for classes, and train all weights on the labels."""
    section, seed = params.classification, params.seed
    rows, validation = (
        encode_rows(
            list(parts[part]["text"]),
            list(parts[part]["label"]),
            tokenizer=tokenizer,
            context_length=gpt.config.context_length,
            class_names=CLASS_NAMES,
        )
        for part in ("train", "validation")
    )
    order = RowOrder(rows.lengths, section.batch_size, seed)
    model = GPTClassifier.from_gpt(
        gpt, len(CLASS_NAMES), generator=torch.Generator().manual_seed(seed)
    )
    steps = train(
        model,
        CLASSES,
        lambda number: batch(rows, order.rows(number), pad_id=tokenizer.pad_id),
        plan=plan(params, section.epochs * order.steps_per_epoch, section.learning_rate),
        evaluate=lambda: measure(
            predict(
                model, validation.ids, batch_size=32, pad_id=tokenizer.pad_id, device=DEVICE.device
            ),
            validation.labels,
        ),
    )
    return model, steps.assign(training="class")


def plan(params: Params, steps: int, learning_rate: float) -> Plan:
    """Return the plan of a training, with an evaluation at the end."""
    return Plan(
        steps=steps,
        learning_rate=learning_rate,
        optimizer=params.optimizer,
        seed=params.seed,
        evaluate_every=steps,
        sample_every=0,
        stopping=StoppingConfig(patience=0, keep="last"),
        guard=GuardConfig(spike=0, action="skip", limit=5),
        micro_batch=None,
    )


def train(
    model: nn.Module,
    objective: Objective,
    batches: Callable[[int], Batch],
    *,
    plan: Plan,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> pd.DataFrame:
    """Train to the end; print ten lines, and return the loss of each step."""
    trainer = Trainer(model, objective, batches, plan=plan, device=DEVICE, evaluate=evaluate)
    losses = {}
    for step in trainer.steps():
        losses[step.step] = step.loss
        if step.step % math.ceil(plan.steps / 10) == 0 or step.evaluation:
            print(f"step {step.step} of {plan.steps}: loss {step.loss:.3f} {step.evaluation or ''}")
    return pd.DataFrame({"step": losses.keys(), "loss": losses.values()})


def score(params: Params, parts: Tables, tokenizer: Tokenizer, model: GPTClassifier) -> None:
    """Score the test mails beside a bag of words on the same text; write and print the result."""
    train, test = parts["train"], parts["test"]
    known, actual = ((table["label"] == "spam").to_numpy(np.int64) for table in (train, test))
    rows = [
        row[: model.config.context_length] for row in tokenizer.encode_batch(list(test["text"]))
    ]
    probabilities = {
        "gptmill": predict(
            model, rows, batch_size=32, pad_id=tokenizer.pad_id, device=DEVICE.device
        ),
        "bag of words": bag_of_words_probabilities(list(train["text"]), known, list(test["text"])),
    }
    options = {"positive": SPAM, "resamples": 1000, "seed": params.seed}
    results = {
        name: asdict(score_classifier(actual, values, **options))
        for name, values in probabilities.items()
    }
    gain = f1_difference(actual, *probabilities.values(), **options)
    write_json(OUT / "results.json", {**results, "f1 gain": asdict(gain)})
    columns = {name: values[:, SPAM].round(6) for name, values in probabilities.items()}
    write_csv(OUT / "test.csv", test.assign(**columns))
    for name, result in results.items():
        figures = ", ".join(
            f"{key} {result[key]['value']:.1%}" for key in ("accuracy", "f1", "auc")
        )
        print(f"{name}: {figures} of {len(test)} mails")
    print(f"F1 {gain.value * 100:+.1f} points ({gain.low * 100:+.1f} to {gain.high * 100:+.1f})")


if __name__ == "__main__":
    main()
