"""The stage `instruct` goes on in its base's own chat template, and hands it on."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptmill.checkpoint.checkpoint import load_causal_lm, save_causal_lm
from gptmill.files import read_json, write_json
from gptmill.finetuning.instructions import answers, default_template, read_template
from gptmill.origins import write_origins
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.instruct import Instruct, instruct
from tasks.project.graph import params
from tests.support.fakes import FakeRun
from tests.support.tiny import (
    chatty_folder,
    tiny_config,
    tiny_gpt,
    tiny_tokenizer,
)

PARAMS = Instruct(**{**params()["instruct"], "epochs": 1, "batch_size": 4, "max_new_tokens": 4})
RECORDS = [
    {"instruction": f"Name animal {k}.", "input": "fox" * (k % 2), "output": "Dog.", "kind": "a"}
    for k in range(8)
]


def project(root: Path, *, chatty: bool) -> FakeRun:
    """Return a run on a base with a template of its own, or with GPT-2's form and none."""
    base = root / "artifacts" / "load_gpt2"
    tokenizer = Tokenizer.from_folder(chatty_folder(root / "hub")) if chatty else tiny_tokenizer()
    model = tiny_gpt(tiny_config(context_length=256, vocab_size=tokenizer.n_vocab))
    save_causal_lm(base, model, tokenizer, chat_template=tokenizer.chat_template)
    split = root / "artifacts" / "split" / "instructions"
    split.mkdir(parents=True)
    write_origins(base / "origins.json", [])
    write_origins(split / "origins.json", [])
    for part in ("train", "validation", "test"):
        write_json(split / f"{part}.json", RECORDS)
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
    given = [row["answer"] for row in read_json(run.out / "answers.json")]
    model = load_causal_lm(run.out)
    assert answers(model, RECORDS, ours, template, max_new_tokens=4) == given


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


def test_the_ledger_reads_the_rows_that_were_trained(tmp_path: Path) -> None:
    run = project(tmp_path, chatty=True)
    rows = [entry["row"] for step in (0, 1) for entry in PARAMS.describe_batch(run, step)]
    assert sorted(rows) == list(range(8))
