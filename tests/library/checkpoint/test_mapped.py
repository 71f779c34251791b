"""Mapped and copied loading, cached and uncached decoding, commands and exports: equal results
over the same configurations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gptmill.checkpoint.checkpoint import load_causal_lm, load_classifier
from gptmill.cli.frame import main
from gptmill.evaluation.perplexity import measure
from gptmill.finetuning.classification import encode, predict
from gptmill.formats.exporting import ExportFormat, export_model
from gptmill.formats.importing import import_model
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.model.gpt import GPT
from gptmill.tokenizer.tokenizer import Tokenizer
from tests.support.configurations import CASES, Case, save_case, save_classifier_case
from tests.support.forms import some_ids
from tests.support.tiny import TINY_TEXT

GREEDY = GenerationConfig(max_new_tokens=12, temperature=0.0, top_k=0, top_p=1.0)
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def assert_equal_state(one: nn.Module, other: nn.Module) -> None:
    ours, expected = one.state_dict(), other.state_dict()
    assert ours.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mapped_weights_equal_copied_weights(
    tmp_path: Path, case: Case, dtype: torch.dtype
) -> None:
    model = save_case(tmp_path, case).to(case.dtype).to(dtype)
    copied = load_causal_lm(tmp_path, dtype=dtype)
    assert_equal_state(copied, model)
    assert_equal_state(load_causal_lm(tmp_path, dtype=dtype, mapped=True), copied)


@each_case
def test_mapped_classifiers_equal_copied_classifiers(tmp_path: Path, case: Case) -> None:
    model = save_classifier_case(tmp_path, case).to(case.dtype).float()
    copied, names = load_classifier(tmp_path)
    assert_equal_state(copied, model)
    mapped, mapped_names = load_classifier(tmp_path, mapped=True)
    assert_equal_state(mapped, copied)
    assert mapped_names == names


@each_case
def test_commands_give_what_the_copied_model_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    save_case(tmp_path / "lm", case)
    model, tokenizer = load_causal_lm(tmp_path / "lm"), Tokenizer.from_folder(tmp_path / "lm")
    length = model.config.context_length
    (tmp_path / "text.txt").write_text(TINY_TEXT, encoding="utf-8")
    expected = measure(model, tokenizer, TINY_TEXT, context_length=length, stride=length)
    scores = command(capsys, "score", tmp_path / "lm", tmp_path / "text.txt")
    assert scores["loss"] == pytest.approx(expected.loss, rel=1e-5)
    words = ["The quick", "--max-new-tokens", "12", "--temperature", "0"]
    ids = tokenizer.encode("The quick")
    answer = command(capsys, "generate", tmp_path / "lm", *words)["ids"]
    assert answer == generate(model, [ids], GREEDY, stop_ids=[tokenizer.eot_id], seed=0)[0]
    assert answer == uncached(model, ids, stop=tokenizer.eot_id)[: len(answer)]


@each_case
def test_classify_gives_what_the_copied_classifier_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    save_classifier_case(tmp_path, case)
    (model, _), tokenizer = load_classifier(tmp_path), Tokenizer.from_folder(tmp_path)
    rows, _ = encode(["The quick", "dog"], tokenizer, model.config.context_length)
    expected = predict(model, rows, batch_size=1, pad_id=tokenizer.pad_id, device="cpu")
    answers = command(capsys, "classify", tmp_path, "The quick", "dog")
    for answer, row in zip(answers, expected, strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("case", "form"),
    [
        pytest.param(case, form, id=f"{name} {form}")
        for name, case in CASES.items()
        for form in ("hf", "gguf", "book")
        if form != "book" or case.config.llama is None  # the book's GPTModel is a GPT-2
    ],
)
def test_exports_hold_the_copied_weights(tmp_path: Path, case: Case, form: ExportFormat) -> None:
    save_case(tmp_path / "lm", case)
    out = tmp_path / {"hf": "out", "gguf": "out.gguf", "book": "out.pth"}[form]
    export_model(tmp_path / "lm", out, form=form, dtype=case.dtype)
    n_heads = case.config.n_heads if form == "book" else None
    import_model(str(out), tmp_path / "again", otherwise=tmp_path / "lm", n_heads=n_heads)
    again, copied = load_causal_lm(tmp_path / "again"), load_causal_lm(tmp_path / "lm")
    probe = some_ids(case.config)
    with torch.no_grad():
        torch.testing.assert_close(again(probe), copied(probe), atol=1e-5, rtol=1e-5)


def command(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """Run a command in this process and return its JSON."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def uncached(model: GPT, ids: list[int], *, stop: int) -> list[int]:
    """Return the likeliest continuation, the whole text read again for each id."""
    answer: list[int] = []
    with torch.no_grad():
        while len(answer) < GREEDY.max_new_tokens:
            window = torch.tensor([[*ids, *answer]])
            assert window.shape[1] <= model.config.context_length
            answer.append(int(model(window)[0, -1].argmax()))
            if answer[-1] == stop:
                break
    return answer
