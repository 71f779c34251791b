"""The stages `classify` and `lora` on a tiny base: what they write predicts what they say."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gptmill.checkpoint.checkpoint import load_classifier, save_causal_lm
from gptmill.files import sha256, write_csv
from gptmill.finetuning.classification import encode, predict
from gptmill.origins import Origin, write_origins
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.classify import Classify, classify
from tasks.lora import Lora, lora
from tasks.project.graph import params
from tests.support.fakes import FakeRun
from tests.support.tiny import tiny_gpt, tiny_tokenizer

SMALL = {"epochs": 1, "batch_size": 4}
CLASSIFY = Classify(**{**params()["classify"], **SMALL})
LORA = Lora(**{**params()["lora"], **SMALL})
WORDS = {"ham": ["lunch", "home", "see", "you"], "spam": ["prize", "free", "call", "you"]}


def origin(name: str) -> Origin:
    return Origin(name=name, licence="mine", attribution="", files=1, hash="sha256:1")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    base, labelled = (tmp_path / "artifacts" / name for name in ("load_gpt2", "split/labelled"))
    save_causal_lm(base, tiny_gpt(), tiny_tokenizer())
    labelled.mkdir(parents=True)
    write_origins(base / "origins.json", [origin("books")])
    write_origins(labelled / "origins.json", [origin("messages")])
    rng = np.random.default_rng(3)
    for part, count in (("train", 24), ("validation", 8), ("test", 12)):
        labels = ["ham", "spam"] * (count // 2)
        texts = [" ".join(rng.choice(WORDS[label], size=4)) for label in labels]
        write_csv(labelled / f"{part}.csv", pd.DataFrame({"label": labels, "text": texts}))
    return tmp_path


@pytest.mark.parametrize(
    ("stage", "section", "saved"), [(classify, CLASSIFY, "."), (lora, LORA, "merged")]
)
def test_what_is_saved_predicts_what_was_written(
    project: Path, stage: Any, section: Any, saved: str
) -> None:
    run = FakeRun(project, project / "artifacts" / stage.name)
    metrics = stage.body(section, run)
    table = pd.read_csv(run.out / "predictions.csv")
    test = pd.read_csv(project / "artifacts/split/labelled/test.csv")
    assert list(table.columns) == ["text", "label", "predicted", "p_ham", "p_spam"]
    assert table[["label", "text"]].equals(test[["label", "text"]])
    written = table[["p_ham", "p_spam"]].to_numpy()
    assert written.sum(axis=1) == pytest.approx(1, abs=2e-6)
    right = (written.argmax(axis=1) == (test["label"] == "spam").astype(int)).mean()
    assert metrics["test_accuracy"] == pytest.approx(right)
    assert right == pytest.approx((table["predicted"] == table["label"]).mean())
    for name in ("test_accuracy", "validation_accuracy", "validation_loss"):
        assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]

    model, class_names = load_classifier(run.out / saved)
    tokenizer = Tokenizer.from_folder(run.out / saved)
    assert class_names == ["ham", "spam"]
    ids, _ = encode(list(test["text"]), tokenizer, model.config.context_length)
    found = predict(model, ids, batch_size=4, pad_id=tokenizer.eot_id, device="cpu")
    assert np.abs(found - written).max() < 1e-5


@pytest.mark.parametrize(
    ("stage", "section", "saved"), [(classify, CLASSIFY, "."), (lora, LORA, "merged")]
)
def test_the_card_names_rows_and_sources_and_the_ledger_reads_them(
    project: Path, stage: Any, section: Any, saved: str
) -> None:
    run = FakeRun(project, project / "artifacts" / stage.name)
    stage.body(section, run)
    card = (run.out / saved / "README.md").read_text(encoding="utf-8")
    rows = project / "artifacts/split/labelled/train.csv"
    assert f"sha256:{sha256(rows)}" in card
    assert "| books |" in card
    assert "| messages |" in card
    table = pd.read_csv(rows)
    for row in section.describe_batch(run, 0):
        assert (row["label"], row["text"]) == tuple(table.loc[row["row"], ["label", "text"]])
