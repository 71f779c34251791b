import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from gptmill.checkpoint.adapter import save_adapter
from gptmill.checkpoint.checkpoint import save_causal_lm, save_classifier
from gptmill.files import read_json
from gptmill.finetuning.classification import count_parameters
from gptmill.model.gpt import (
    GPT,
    SIZES,
    GPTClassifier,
    GPTConfig,
)
from gptmill.model.lora import (
    LoRAConfig,
    Target,
    add_lora,
    merge,
    narrow_frozen,
    restore_frozen,
)
from gptmill.model.objectives import language_loss
from tests.support.forms import llama_config, random_gpt
from tests.support.tiny import tiny_config, tiny_gpt, tiny_tokenizer

# PEFT reads an attribute of transformers that is on its way out; the reference's own affair.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CONFIG = LoRAConfig(rank=4, alpha=8, dropout=0.0, targets=("c_attn", "c_proj", "c_fc"))
IDS = torch.arange(1, 37).view(3, 12)
LAST = torch.tensor([11, 11, 11])


def classifier(config: LoRAConfig | None = None, *, trained: bool = False) -> GPTClassifier:
    generator = torch.Generator().manual_seed(5)
    model = GPTClassifier.from_gpt(tiny_gpt(), 2, generator=generator).eval()
    if config is not None:
        add_lora(model, config, generator=generator)
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def scores(model: GPTClassifier) -> Tensor:
    with torch.no_grad():
        return model(IDS, LAST)


def test_the_addition_is_nothing_at_the_start_and_something_after_training():
    torch.testing.assert_close(scores(classifier(CONFIG)), scores(classifier()), rtol=0, atol=0)
    assert (scores(classifier(CONFIG, trained=True)) - scores(classifier())).abs().max() > 0.1


def test_only_adapter_and_head_are_trained():
    model = classifier(CONFIG)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        n for n, _ in model.named_parameters() if ".lora_" in n or n == "score.weight"
    }
    assert len(trained) == 2 * 2 * 4 + 1
    model(IDS, LAST).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_peft_gives_the_same_logits_on_the_saved_base_and_adapter(tmp_path: Path):
    save_causal_lm(tmp_path / "base", tiny_gpt(), tiny_tokenizer())
    model = classifier(CONFIG, trained=True)
    save_adapter(tmp_path / "adapter", model, CONFIG, base="artifacts/load_gpt2")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, scores(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", [("c_attn",), ("c_attn", "c_proj", "c_fc")])
def test_the_adapter_has_the_names_shapes_and_settings_of_one_that_peft_writes(
    tmp_path: Path, targets: tuple[str, ...]
):
    config = replace(CONFIG, targets=targets, dropout=0.1)
    save_causal_lm(tmp_path / "base", tiny_gpt(), tiny_tokenizer())
    save_adapter(tmp_path / "ours", classifier(config), config, base="artifacts/load_gpt2")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    wanted = LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=8,
        lora_dropout=0.1,
        target_modules=list(targets),
        modules_to_save=["score"],
        fan_in_fan_out=True,
    )
    get_peft_model(base, wanted).save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        load_file(tmp_path / n / "adapter_model.safetensors") for n in ("ours", "theirs")
    )
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    settings = read_json(tmp_path / "ours" / "adapter_config.json")
    assert settings["base_model_name_or_path"] == "artifacts/load_gpt2"
    reference = read_json(tmp_path / "theirs" / "adapter_config.json")
    reference["target_modules"] = sorted(reference["target_modules"])
    # PEFT always names the two heads that a classifier may have; ours is the first.
    reference["modules_to_save"] = sorted({*reference["modules_to_save"]} - {"classifier"})
    del settings["base_model_name_or_path"]
    assert settings == {name: reference[name] for name in settings}


@pytest.mark.parametrize("targets", [("c_attn",), ("c_fc",), ("c_attn", "c_proj", "c_fc")])
@pytest.mark.parametrize("n_classes", [None, 2])
def test_peft_gives_the_same_logits_on_a_llama(
    tmp_path: Path, targets: tuple[Target, ...], n_classes: int | None
):
    config = replace(CONFIG, targets=targets)
    base = random_gpt(llama_config())
    save_causal_lm(tmp_path / "base", base, tiny_tokenizer())
    generator = torch.Generator().manual_seed(5)
    model: GPT | GPTClassifier = base
    if n_classes is not None:
        model = GPTClassifier.from_gpt(base, n_classes, generator=generator).eval()
    add_lora(model, config, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        ours = model(IDS) if isinstance(model, GPT) else model(IDS, LAST)
    save_adapter(tmp_path / "adapter", model, config, base="artifacts/load_gpt2")
    folder = tmp_path / "base"
    if n_classes is None:
        theirs = AutoModelForCausalLM.from_pretrained(folder)
    else:
        theirs = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=n_classes)
        theirs.config.pad_token_id = 316
    wrapped = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(wrapped(IDS).logits, ours, rtol=1e-5, atol=1e-4)
    names = {"c_attn": "q k v", "c_fc": "gate up", "c_proj": "o down"}
    found = set(read_json(tmp_path / "adapter" / "adapter_config.json")["target_modules"])
    assert found == {f"{name}_proj" for target in targets for name in names[target].split()}
    merge(model)
    with torch.no_grad():
        merged = model(IDS) if isinstance(model, GPT) else model(IDS, LAST)
    torch.testing.assert_close(merged, ours, rtol=1e-4, atol=1e-4)


def test_a_language_models_adapter_trains_alone():
    model = random_gpt(llama_config(tie_weights=False))
    add_lora(model, CONFIG)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if ".lora_" in n}


def test_the_merged_model_is_plain_and_gives_the_same_scores_also_in_transformers(tmp_path: Path):
    model = classifier(CONFIG, trained=True)
    expected = scores(model)
    merge(model)
    assert list(model.state_dict()) == list(classifier().state_dict())
    torch.testing.assert_close(scores(model), expected, rtol=1e-4, atol=1e-5)
    save_classifier(tmp_path, model, tiny_tokenizer(), class_names=["ham", "spam"])
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_on_in_training_only():
    model = classifier(replace(CONFIG, dropout=0.5), trained=True)
    torch.testing.assert_close(scores(model), scores(model), rtol=0, atol=0)
    model.train()
    assert not torch.equal(scores(model), scores(model))


def test_the_same_file_bytes_for_the_same_seed(tmp_path: Path):
    for name in ("one", "two"):
        save_adapter(tmp_path / name, classifier(CONFIG), CONFIG, base="artifacts/load_gpt2")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(("size", "trained"), [("gpt2-small", 2_360_832)])
def test_parameters_of_rank_16_on_the_fused_matrices(size: str, trained: int):
    with torch.device("meta"):
        config = GPTConfig(
            vocab_size=50257,
            context_length=1024,
            drop_rate=0.0,
            qkv_bias=True,
            tie_weights=True,
            **SIZES[size]._asdict(),
        )
        model = GPTClassifier(config, 2)
        add_lora(model, replace(CONFIG, rank=16))
    count = count_parameters(model)[0]
    assert (count, count - model.score.weight.numel()) == (trained, 2_359_296)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank is 0 but must be at least 1"),
        ({"alpha": 0.0}, "alpha is 0.0 but must be above 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": ()}, "targets are []"),
        ({"targets": ("c_fc", "c_fc")}, "each once"),
    ],
)
def test_settings_out_of_bounds_are_named(change: dict[str, object], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(CONFIG, **change)


def test_frozen_layers_in_bf16_change_no_bit_under_autocast_and_are_restored():
    config = LoRAConfig(rank=2, alpha=4, dropout=0.0, targets=("c_attn", "c_proj"))
    ids = torch.arange(12).view(2, 6)

    def trained(*, narrow: bool) -> GPT:
        model = tiny_gpt(tiny_config(tie_weights=True))
        add_lora(model, config, generator=torch.Generator().manual_seed(1))
        if narrow:
            narrow_frozen(model, torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            language_loss(model.train(), (ids, ids)).backward()
        return model

    wide, narrow = trained(narrow=False), trained(narrow=True)
    gradients = {name: p.grad for name, p in wide.named_parameters() if p.requires_grad}
    for name, parameter in narrow.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, gradients[name])
    assert narrow.transformer.h[0].mlp.c_fc.weight.dtype == torch.bfloat16
    restore_frozen(narrow, lambda: tiny_gpt(tiny_config(tie_weights=True)))
    for (name, ours), theirs in zip(
        narrow.state_dict().items(), wide.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
