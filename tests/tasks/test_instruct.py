"""The stage `instruct` goes on in its base's own chat template, and hands it on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptmill.checkpoint.checkpoint import load_causal_lm, save_causal_lm
from gptmill.files import read_json, write_json
from gptmill.finetuning.instructions import Reply, answers, default_template, read_template
from gptmill.origins import write_origins
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.instruct import Instruct, held_out, instruct
from tasks.project.graph import params
from tests.support.fakes import FakeRun
from tests.support.tiny import (
    chatty_folder,
    tiny_config,
    tiny_gpt,
    tiny_tokenizer,
)

PARAMS = Instruct(**{**params()["instruct"], "epochs": 1, "batch_size": 4, "max_new_tokens": 4})
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def records(part: str) -> list[dict[str, Any]]:
    """Return rows of a part, two of them with earlier messages."""
    rows: list[dict[str, Any]] = [
        {
            "instruction": f"Name {part} {k}.",
            "input": "fox" * (k % 2),
            "output": "Dog.",
            "kind": "a",
        }
        for k in range(8)
    ]
    rows[2]["history"] = [{"role": "system", "content": "Be brief."}]
    rows[5]["history"] = [{"role": "system", "content": part}, *TURNS]
    return rows


def project(root: Path, *, chatty: bool) -> FakeRun:
    """Return a run on a base with a template of its own, or with GPT-2's form and none."""
    base = root / "artifacts" / "load_gpt2"
    tokenizer = Tokenizer.from_folder(chatty_folder(root / "hub")) if chatty else tiny_tokenizer()
    model = tiny_gpt(tiny_config(context_length=400, vocab_size=tokenizer.n_vocab))
    save_causal_lm(base, model, tokenizer, chat_template=tokenizer.chat_template)
    split = root / "artifacts" / "split" / "instructions"
    split.mkdir(parents=True)
    write_origins(base / "origins.json", [])
    write_origins(split / "origins.json", [])
    for part in ("train", "validation", "test"):
        write_json(split / f"{part}.json", records(part))
    return FakeRun(root, root / "artifacts" / "instruct")


@pytest.mark.parametrize("chatty", [True, False])
def test_the_base_s_template_is_trained_in_asked_in_and_saved(tmp_path: Path, chatty: bool) -> None:
    run = project(tmp_path, chatty=chatty)
    metrics = instruct.body(PARAMS, run)
    assert (metrics["train_rows"], metrics["test_rows"]) == (8, 8)
    ours = Tokenizer.from_folder(run.out)
    template = read_template(run.out, ours)
    before = read_template(run.input("load_gpt2"), ours) if chatty else default_template(ours)
    assert template.source == before.source
    theirs = AutoTokenizer.from_pretrained(run.out)
    asked = [{"role": "user", "content": "Hi"}]
    ids = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert template.encode(ours, asked) == ids
    assert ("Be kind." in ours.decode(ids)) is chatty
    given = [(row["answer"], row["stopped"]) for row in read_json(run.out / "answers.json")]
    model = load_causal_lm(run.out)
    assert answers(model, records("test"), ours, template, max_new_tokens=4) == given


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's
@pytest.mark.parametrize("chatty", [True, False])
def test_the_adapter_on_the_base_is_the_merged_assistant(tmp_path: Path, chatty: bool) -> None:
    run = project(tmp_path, chatty=chatty)
    every = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ("c_attn", "c_proj", "c_fc")}
    adapted = Instruct(**{**PARAMS.model_dump(), "adapter": every, "epochs": 2})
    instruct.body(adapted, run)
    merged = AutoModelForCausalLM.from_pretrained(run.out).eval()
    base = AutoModelForCausalLM.from_pretrained(run.input("load_gpt2")).eval()
    ids = torch.tensor([[1, 7, 9, 30, 2]])
    with torch.no_grad():
        before = base(ids).logits
        on_base = PeftModel.from_pretrained(base, run.out / "adapter").eval()(ids).logits
        assert torch.allclose(on_base, merged(ids).logits, atol=1e-5)
        assert not torch.allclose(on_base, before, atol=1e-3)


def test_stop_rate_length_and_repetition_are_those_counted_by_hand() -> None:
    replies = [Reply("a b c d a b c d", stopped=False), Reply("Yes.", stopped=True)]
    figures = held_out([*replies, Reply("", stopped=True)], ["a b", "no!", "one two"])
    assert figures == {
        "test_stopped": 2 / 3,
        "test_length_ratio": 9 / 5,
        "test_repetition": pytest.approx((1 - 4 / 5) / 3),
    }


def test_the_ledger_reads_the_rows_that_were_trained(tmp_path: Path) -> None:
    run = project(tmp_path, chatty=True)
    rows = [entry["row"] for step in (0, 1) for entry in PARAMS.describe_batch(run, step)]
    assert sorted(rows) == list(range(8))


def test_unfit_rows_above_a_share_stop_the_stage_by_file_and_row(tmp_path: Path) -> None:
    run = project(tmp_path, chatty=True)
    rows = records("train")
    rows[3]["output"] = "long" * 200
    asked = {name: records("test")[0][name] for name in ("instruction", "input")}
    rows[6] |= asked
    write_json(run.input("split/instructions") / "train.json", rows)
    strict = Instruct(**{**PARAMS.model_dump(), "unfit": 0.1})
    with pytest.raises(
        ValueError, match=r"instructions/train\.json: 2 of 8 rows .* 0\.1 \("
    ) as error:
        instruct.body(strict, run)
    assert "longer than the context: rows 4; a prompt of the validation or test part: rows 7 (" in (
        str(error.value)
    )
    assert "`make show STAGE=instruct PART=train ROW=4`" in str(error.value)
    metrics = instruct.body(Instruct(**{**PARAMS.model_dump(), "unfit": 0.3}), run)
    assert (metrics["train_rows"], metrics["rows_too_long_for_the_context"]) == (6, 1)
    left_out = run.shown["rows left out"]
    assert [row["rows"] for row in left_out] == ["rows 4", "rows 7"]
    assert "|<|im_end|>]]" in str(run.shown["rows as tokens"])


def test_a_chosen_template_is_trained_in_and_saved(tmp_path: Path) -> None:
    run = project(tmp_path, chatty=True)
    chosen = Instruct(**{**PARAMS.model_dump(), "template": "phi-3", "mask_prompt": "last"})
    instruct.body(chosen, run)
    ours = Tokenizer.from_folder(run.out)
    template = read_template(run.out, ours)
    assert template.render([{"role": "user", "content": "a"}]) == (
        "<|user|>\na<|im_end|>\n<|assistant|>\n"
    )
    assert template.end_id(ours) == ours.eos_id


def test_tokens_of_a_row_are_shown_before_training(tmp_path: Path) -> None:
    run = project(tmp_path, chatty=True)
    ((number, tokens),) = PARAMS.marked(run, "test", 6, 3)
    assert number == 6
    assert "".join(text for text, counted in tokens if counted) == "Hello.<|im_end|>Dog.<|im_end|>"
    assert [row for row, _ in PARAMS.marked(run, "train", None, 3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="row 9: the test part has the rows 1 to 8"):
        PARAMS.marked(run, "test", 9, 3)
