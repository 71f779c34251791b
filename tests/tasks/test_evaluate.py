"""The stage `evaluate` on tiny artifacts of the kind that the other stages write."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from pydantic import TypeAdapter
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from transformers import AutoModelForCausalLM

from gptmill.checkpoint.checkpoint import save_causal_lm, save_classifier
from gptmill.data.token_file import TokenFile
from gptmill.device import Device
from gptmill.evaluation.language_model import cut
from gptmill.files import write_csv, write_json
from gptmill.finetuning.classification import encode, predict
from gptmill.model.gpt import GPTClassifier
from gptmill.model.objectives import IGNORE
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.evaluate import Evaluate, evaluate
from tests.support.tiny import (
    TINY_TEXT,
    tiny_config,
    tiny_gpt,
    tiny_merges,
    tiny_tokenizer,
)

PARAMS = {
    "windows": 0,
    "prompts": ["The quick", "In the beginning"],
    "generation": {"max_new_tokens": 5, "temperature": 1.0, "top_k": 10, "top_p": 1.0},
    "resamples": 40,
    "checked_rows": 7,
    "answers_shown": 2,
    "questions": "questions.jsonl",
    "max_new_tokens": 5,
}


class FakeRun:
    """What the body needs of a run, on folders of its own."""

    seed = 5

    def __init__(self, root: Path, out: str = "out") -> None:
        self.root = root
        self.out = root / out
        self.out.mkdir()
        self.shown: dict[str, str] = {}
        self.figures: dict[str, Figure] = {}

    def input(self, stage: str) -> Path:
        return self.root / stage

    def path(self, path: str) -> Path:
        return self.root / path

    def kept(self, inputs: list[str], params: dict[str, int], make: Callable[[], Any]) -> Any:
        assert (inputs, params) == (
            ["artifacts/load_gpt2", "questions.jsonl"],
            {"max_new_tokens": 5},
        )
        return make()

    def device(self) -> Device:
        return Device(device="cpu", model="", precision="fp32", compile=False, threads=1, torch="")

    def show(self, title: str, content: str) -> None:
        self.shown[title] = content

    def figure(self, name: str, figure: Figure) -> None:
        self.figures[name] = figure


def params(**changes: Any) -> Evaluate:
    content = json.dumps({**PARAMS, **changes})
    return TypeAdapter(Evaluate).validate_json(content, strict=True)


def body(run: FakeRun, **changes: Any) -> dict[str, Any]:
    found = evaluate.body(params(**changes), run)  # type: ignore[arg-type]
    return dict(found)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("tokenize", "split/labelled", "split/instructions", "instruct"):
        (tmp_path / name).mkdir(parents=True)
    _write_text(tmp_path / "tokenize")
    for name in ("pretrain", "load_gpt2"):
        save_causal_lm(tmp_path / name, tiny_gpt(), tiny_tokenizer())
    write_json(tmp_path / "pretrain" / "details.json", {})
    labelled = _write_labelled(tmp_path / "split" / "labelled")
    _write_classifier(tmp_path / "classify", tmp_path / "classify", labelled, seed=2)
    _write_classifier(tmp_path / "lora", tmp_path / "lora" / "merged", labelled, seed=3)
    _write_answers(tmp_path)
    save_causal_lm(tmp_path / "instruct", tiny_gpt(seed=4), tiny_tokenizer())
    _write_questions(tmp_path / "questions.jsonl")
    return tmp_path


def _write_questions(path: Path) -> None:
    user = {"role": "user", "content": "Hi"}
    rows = [
        {
            "id": "1",
            "kind": "b",
            "messages": [user],
            "reference": "you",
            "check": {"max_words": 99},
        },
        {"id": "2", "kind": "a", "messages": [{"role": "system", "content": "S"}, user]}
        | {"reference": "the | fox", "check": {"contains_any": ["fox"]}},
        {"id": "3", "kind": "a", "messages": [{**user, "content": "Ho"}], "reference": "a dog"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_text(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    for part, text in (("train", TINY_TEXT * 3), ("validation", TINY_TEXT[40:240])):
        TokenFile.write(
            folder / f"{part}.bin",
            tokenizer.encode_batch(text.splitlines()),
            names=[f"{part}{line}" for line in range(len(text.splitlines()))],
            separator=tokenizer.eot_id,
            vocab_size=tokenizer.n_vocab,
            fingerprint=tokenizer.fingerprint,
        )
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer", context_length=32)


def _write_labelled(folder: Path) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    words = {"ham": ["lunch", "home", "see", "you"], "spam": ["prize", "free", "call", "you"]}
    labels = generator.permutation(["ham"] * 45 + ["spam"] * 15)
    texts = [" ".join(generator.choice(words[label], size=3)) for label in labels]
    table = pd.DataFrame({"label": labels, "text": texts})
    write_csv(folder / "train.csv", table[:40])
    write_csv(folder / "test.csv", table[40:])
    return table[40:].reset_index(drop=True)


def _write_classifier(stage: Path, folder: Path, test: pd.DataFrame, *, seed: int) -> None:
    tokenizer, names = tiny_tokenizer(), ["ham", "spam"]
    model = GPTClassifier.from_gpt(tiny_gpt(seed=seed), 2)
    with torch.no_grad():
        model.score.weight.mul_(20)
    save_classifier(folder, model.eval(), tokenizer, class_names=names)
    rows, _ = encode(list(test["text"]), tokenizer, 32)
    shares = predict(model, rows, batch_size=3, pad_id=tokenizer.eot_id, device="cpu").round(6)
    predicted = [names[k] for k in shares.argmax(axis=1)]
    table = test[["text", "label"]].assign(predicted=predicted)
    write_csv(stage / "predictions.csv", table.assign(p_ham=shares[:, 0], p_spam=shares[:, 1]))


def _write_answers(root: Path) -> None:
    def rows(*pairs: tuple[str, str]) -> list[dict[str, str]]:
        return [
            {"instruction": f"Ask {place}?", "input": "", "output": output, "kind": kind}
            for place, (kind, output) in enumerate(pairs)
        ]

    train = rows(("antonym", "cold"), ("antonym", "cold"), ("antonym", "hot"), ("synonym", "big"))
    test = rows(*[("antonym", "hot")] * 12, ("synonym", "small"), ("synonym", "big"))
    answers = ["Hot."] * 12 + ["large", "red\n# big"]
    write_json(root / "split" / "instructions" / "train.json", train)
    given = [
        {**row, "before": "warm", "answer": answer, "stopped": answer != "large"}
        for row, answer in zip(test, answers, strict=True)
    ]
    write_json(root / "instruct" / "answers.json", given)


def test_figures_equal_scoring_the_artifacts_with_torch_and_sklearn(root: Path) -> None:
    metrics = body(FakeRun(root))
    ids = torch.from_numpy(np.array(TokenFile.open(root / "tokenize" / "validation.bin").ids, int))
    nats = []
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 32):
            window = ids[start : start + 33]
            logits = tiny_gpt()(window[None, :-1])[0]
            nats.append(F.cross_entropy(logits, window[1:], reduction="none"))
    loss = torch.cat(nats).double().mean().item()
    size = len(b"".join(map(tiny_tokenizer().token_bytes, ids[1:])).replace(b"<|endoftext|>", b""))
    assert metrics["pretrain_loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["pretrain_tokens"] == len(ids) - 1
    assert metrics["pretrain_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    bits = torch.cat(nats).double().sum().item() / math.log(2) / size
    assert metrics["pretrain_bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    below = metrics["unigram_loss"] - metrics["pretrain_loss"]
    assert metrics["pretrain_nats_below_unigram"] == pytest.approx(below)
    assert metrics["bigram_loss"] < metrics["unigram_loss"]

    for model in ("classify", "lora"):
        table = pd.read_csv(root / model / "predictions.csv")
        actual, said = table["label"] == "spam", table["p_spam"] > table["p_ham"]
        assert metrics[f"{model}_accuracy"] == pytest.approx(accuracy_score(actual, said))
        assert metrics[f"{model}_f1"] == pytest.approx(f1_score(actual, said))
        assert metrics[f"{model}_auc"] == pytest.approx(roc_auc_score(actual, table["p_spam"]))
        assert metrics[f"{model}_accuracy_low"] < metrics[f"{model}_accuracy"]
    test = pd.read_csv(root / "split" / "labelled" / "test.csv")
    assert metrics["majority_accuracy"] == pytest.approx((test["label"] == "ham").mean())
    assert metrics["majority_f1"] == 0
    gain = metrics["lora_f1"] - metrics["bag_of_words_f1"]
    assert metrics["lora_f1_gain"] == pytest.approx(gain)
    assert metrics["lora_f1_gain_low"] <= gain <= metrics["lora_f1_gain_high"]
    assert metrics["bag_of_words_f1_gain"] == 0
    assert metrics["bag_of_words_accuracy"] > metrics["majority_accuracy"]
    assert metrics["bag_of_words_beats_majority"] in (0, 1)

    assert metrics["instruct_exact_match"] == pytest.approx(12 / 14)
    assert metrics["instruct_baseline_exact_match"] == pytest.approx(1 / 14)
    assert metrics["instruct_named"] == pytest.approx(13 / 14)
    assert metrics["assistant_gain_named"] == pytest.approx(13 / 14)
    assert metrics["instruct_kinds"] == 2
    assert metrics["instruct_stopped"] == pytest.approx(13 / 14)
    assert metrics["instruct_length_ratio"] == pytest.approx(16 / 14)
    assert metrics["instruct_repetition"] == 0
    assert metrics["general_base_rows"] == metrics["general_gain_rows"] == 3
    gain = metrics["general_assistant_loss"] - metrics["general_base_loss"]
    assert metrics["general_gain_loss"] == pytest.approx(gain)
    assert metrics["instruct_kinds_beaten"] == 1
    assert metrics["instruct_kinds_beaten_beyond_interval"] == 1
    assert all(type(value) in (int, float) for value in metrics.values())


def test_what_is_written_is_the_same_bytes_twice(root: Path) -> None:
    first, second = FakeRun(root, "first"), FakeRun(root, "second")
    assert body(first) == body(second)
    names = sorted(path.name for path in first.out.iterdir())
    models = ("bag_of_words", "classify", "lora", "majority")
    plots = [f"{plot}_{model}.csv" for plot in ("confusion", "roc") for model in models]
    tables = ["assistant", "assistant_gain", "classifiers", "general", "general_answers"]
    tables = [f"{table}.csv" for table in (*tables, "general_gain", "language_model")]
    pages = [f"{page}.md" for page in ("answers", "general_answers", "report", "samples")]
    assert names == sorted([*plots, *tables, *pages])
    for name in names:
        assert (first.out / name).read_bytes() == (second.out / name).read_bytes(), name
        assert str(root) not in (first.out / name).read_text(encoding="utf-8")


def test_pages_tables_and_figures_can_be_read(root: Path) -> None:
    run = FakeRun(root)
    metrics = body(run)
    answers = (run.out / "answers.md").read_text(encoding="utf-8")
    assert answers.count("- expected: ") == 4
    assert "- expected: big\n- before: warm\n- answer: red # big" in answers
    samples = (run.out / "samples.md").read_text(encoding="utf-8")
    assert samples.startswith("> **The quick**")
    assert samples.count("**") == 4
    report = (run.out / "report.md").read_text(encoding="utf-8")
    assert f"{metrics['pretrain_loss']:.2f} nats per token" in report
    assert "on 1 of 2 kinds of question (antonym)" in report
    assert "above the baseline's confidence interval on 1 (antonym)" in report
    assert f"{metrics['lora_accuracy']:.3f} (" in report
    assert run.shown["report"] == report
    assert "On 3 general questions the assistant is not worse than the base" in report
    assert "| exercises | right | assistant | 0.9286 | base | 0 |" in report
    assert "| exercises | stopped | assistant | 0.9286 | base |" in report
    assert "| 0.929 (0.685 to 0.987) |" in report
    assert "| language model | bits per byte | pretrain |" in report
    general = (run.out / "general_answers.md").read_text(encoding="utf-8")
    assert general.index("## a") < general.index("| Ho | a dog |") < general.index("## b")

    confusion = pd.read_csv(run.out / "confusion_lora.csv")
    assert list(confusion.columns) == ["actual", "predicted"]
    right = (confusion["actual"] == confusion["predicted"]).mean()
    assert right == pytest.approx(metrics["lora_accuracy"])
    assert set(run.figures) == {"losses", "confusion_matrices", "roc", "right_answers"}
    for name, figure in run.figures.items():
        figure.savefig(root / f"{name}.png")
        assert (root / f"{name}.png").stat().st_size > 5000


def test_a_limit_scores_fewer_tokens_and_all_models_on_the_same(root: Path) -> None:
    metrics = body(FakeRun(root), windows=2)
    tokens = {metrics[f"{model}_tokens"] for model in ("pretrain", "bigram", "unigram")}
    assert len(tokens) == 1
    assert 32 < tokens.pop() <= 64


@pytest.mark.parametrize("stage", ["classify", "lora"])
def test_a_folder_that_was_not_the_one_scored_is_told(root: Path, stage: str) -> None:
    path = root / stage / "predictions.csv"
    table = pd.read_csv(path)
    table.loc[len(table) - 1, ["p_ham", "p_spam"]] += [0.01, -0.01]
    write_csv(path, table)
    with pytest.raises(
        ValueError, match=f"does not predict the values in predictions.csv of the stage {stage}:"
    ):
        body(FakeRun(root))


def test_a_pretrained_model_with_too_few_ids_is_told(root: Path) -> None:
    header = json.loads((root / "tokenize" / "train.json").read_text(encoding="utf-8"))
    write_json(root / "tokenize" / "train.json", {**header, "vocab_size": 400})
    with pytest.raises(ValueError, match="different tokenizers"):
        body(FakeRun(root))


def test_another_base_is_scored_on_the_same_text(root: Path) -> None:
    other = tiny_gpt(seed=9)
    save_causal_lm(root / "load_gpt2", other, tiny_tokenizer())
    run = FakeRun(root, "first")
    found = body(run)
    save_causal_lm(root / "pretrain", other, tiny_tokenizer())
    expected = body(FakeRun(root, "second"))
    # the same vocabulary, so the same ids but where a window begins inside a word
    assert found["load_gpt2_loss"] == pytest.approx(expected["pretrain_loss"], rel=0.02)
    assert found["load_gpt2_tokens"] == found["pretrain_tokens"]
    assert "load_gpt2_loss" not in expected
    assert "## load_gpt2" in (run.out / "samples.md").read_text(encoding="utf-8")
    assert "bits per byte on the same text" in (run.out / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("seeds", [(1, 1), (1, 9), (9, 1)])
def test_a_continued_model_is_compared_with_its_start(root: Path, seeds: tuple[int, int]) -> None:
    for name, seed in zip(("pretrain", "weights"), seeds, strict=True):
        save_causal_lm(root / name, tiny_gpt(seed=seed), tiny_tokenizer())
    write_json(root / "pretrain" / "details.json", {"start": "weights", "window_length": 16})
    run = FakeRun(root)
    found = body(run, resamples=400)

    ids = TokenFile.open(root / "tokenize" / "validation.bin").ids
    inputs, targets = cut(ids, length=16, limit=0)
    bits = {}
    for name in ("pretrain", "weights"):
        theirs = AutoModelForCausalLM.from_pretrained(root / name)
        with torch.no_grad():
            logits = theirs(torch.from_numpy(inputs)).logits
        wanted = torch.from_numpy(targets)
        nats = F.cross_entropy(logits.mT, wanted, ignore_index=IGNORE, reduction="none")
        bits[name] = nats.sum(1).numpy() / math.log(2)
    known = tiny_tokenizer()
    sizes = [len(known.decode(row[row != IGNORE], skip_special=True).encode()) for row in targets]
    gains = (bits["pretrain"] - bits["weights"]) / sum(sizes)
    assert found["start_bits_per_byte"] == pytest.approx(
        bits["weights"].sum() / sum(sizes), rel=1e-4
    )
    gain, low, high = (found[f"continued_gain_bits_per_byte{end}"] for end in ("", "_low", "_high"))
    assert gain == pytest.approx(gains.sum(), abs=1e-6)
    assert low <= gain <= high
    worst = [gains.sum() + sign * 4 * gains.std() * len(gains) ** 0.5 for sign in (-1, 1)]
    assert worst[0] <= low <= high <= worst[1]
    report = (run.out / "report.md").read_text(encoding="utf-8")
    verdict = "better" if high < 0 else "worse" if low > 0 else "not different"
    assert f"({low:+.4f} to {high:+.4f}) on {len(targets)} windows of held-out" in report
    assert f"held-out documents: {verdict}" in report
    assert (low == high == 0) == (seeds == (1, 1))


def test_a_continued_model_is_compared_with_its_start_on_other_text(root: Path) -> None:
    """A question is a row: its messages and reference, every byte counted."""
    for name, seed in (("pretrain", 1), ("weights", 9)):
        save_causal_lm(root / name, tiny_gpt(seed=seed), tiny_tokenizer())
    write_json(root / "pretrain" / "details.json", {"start": "weights", "window_length": 8})
    run = FakeRun(root)
    found = body(run, resamples=400)

    texts = ["Hi\nyou", "S\nHi\nthe | fox", "Ho\na dog"]
    known = tiny_tokenizer()
    bits = {}
    for name in ("pretrain", "weights"):
        theirs = AutoModelForCausalLM.from_pretrained(root / name)
        bits[name] = np.zeros(len(texts))
        for place, text in enumerate(texts):
            ids = torch.tensor([known.eot_id, *known.encode(text)])
            for start in range(0, len(ids) - 1, 8):
                window = ids[start : start + 9]
                with torch.no_grad():
                    logits = theirs(window[None, :-1]).logits[0]
                nats = F.cross_entropy(logits, window[1:], reduction="sum").item()
                bits[name][place] += nats / math.log(2)
    size = np.array([6, 14, 8])  # bytes, by hand
    for model, name in (("pretrain", "pretrain"), ("start", "weights")):
        expected = bits[name].sum() / 28
        value, low, high = _interval(found, f"other_{model}_bits_per_byte")
        assert value == pytest.approx(expected, rel=1e-5)
        each = bits[name] / size
        assert each.min() <= low <= value <= high <= each.max()
    value, low, high = _interval(found, "continued_other_bits_per_byte")
    gains = bits["pretrain"] - bits["weights"]
    assert value == pytest.approx(gains.sum() / 28, abs=1e-6)
    each = gains / size
    assert each.min() - 1e-6 <= low <= value <= high <= each.max() + 1e-6
    assert found["continued_other_rows"] == 3
    report = (run.out / "report.md").read_text(encoding="utf-8")
    assert f"({low:+.4f} to {high:+.4f}) on 3 other texts" in report
    assert "| other text | bits per byte | pretrain |" in report
    assert {"continued_gain.csv", "continued_other.csv", "other_text.csv"} <= {
        path.name for path in run.out.iterdir()
    }
    write_json(root / "pretrain" / "details.json", {})
    assert not [name for name in body(FakeRun(root, "random")) if "other" in name]


def _interval(figures: dict[str, float], name: str) -> list[float]:
    return [figures[f"{name}{end}"] for end in ("", "_low", "_high")]


def test_a_base_with_another_vocabulary_spends_as_much_as_transformers_says(root: Path) -> None:
    tokenizer = Tokenizer(tiny_merges(20))
    config = tiny_config(vocab_size=tokenizer.n_vocab, context_length=200)
    save_causal_lm(root / "load_gpt2", tiny_gpt(config), tokenizer)
    found = body(FakeRun(root))

    known = tiny_tokenizer()
    ids = TokenFile.open(root / "tokenize" / "validation.bin").ids
    inputs, targets = cut(ids, length=tiny_config().context_length, limit=0)
    theirs = AutoModelForCausalLM.from_pretrained(root / "load_gpt2")
    spent, tokens = 0.0, 0
    for first, row in zip(inputs[:, 0], targets, strict=True):
        tokens += int((row != IGNORE).sum())
        # documents are parted by the end's spelling here, by its id there
        texts = known.decode(row[row != IGNORE]).split("<|endoftext|>")
        after = tokenizer.encode(texts[0])
        for text in texts[1:]:
            after += [tokenizer.eot_id, *tokenizer.encode(text)]
        assert first != known.eot_id
        before = tokenizer.encode(known.decode([first]))
        whole = torch.tensor([[*before, *after]])
        with torch.no_grad():
            logits = theirs(whole).logits[0, len(before) - 1 : -1]
        spent += F.cross_entropy(logits, torch.tensor(after), reduction="sum").item()
    assert found["load_gpt2_loss"] == pytest.approx(spent / tokens, rel=1e-4)
