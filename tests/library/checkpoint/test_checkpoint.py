from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from gptmill.checkpoint.checkpoint import (
    check_weights,
    load_causal_lm,
    load_classifier,
    read_class_names,
    read_config,
    save_causal_lm,
    save_classifier,
)
from gptmill.files import read_json, write_json
from gptmill.model.gpt import GPT, GPTClassifier, GPTConfig
from tests.support.tiny import tiny_config, tiny_gpt, tiny_tokenizer

CLASS_NAMES = ["ham", "spam"]
CONFIGS = [
    pytest.param(tiny_config(), id="as GPT-2"),
    pytest.param(tiny_config(qkv_bias=False), id="no qkv bias"),
    pytest.param(tiny_config(tie_weights=False), id="untied"),
]


def some_ids(rows: int = 3, length: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 316, (rows, length), generator=generator)


def assert_nothing_missing(info: dict[str, set[str]]) -> None:
    assert {key: value for key, value in info.items() if value} == {}


@pytest.mark.parametrize("config", CONFIGS)
def test_transformers_opens_what_we_save(tmp_path: Path, config: GPTConfig) -> None:
    model = tiny_gpt(config)
    save_causal_lm(tmp_path, model, tiny_tokenizer())
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert_nothing_missing(info)
    ids = some_ids()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", CONFIGS)
def test_what_we_save_loads_bit_for_bit(tmp_path: Path, config: GPTConfig) -> None:
    model = tiny_gpt(config)
    save_causal_lm(tmp_path, model, tiny_tokenizer())
    assert read_config(tmp_path) == config
    loaded = load_causal_lm(tmp_path)
    assert not loaded.training
    assert loaded.config == config
    assert_same_state(loaded, model)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    given, expected = one.state_dict(), other.state_dict()
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in expected)
    assert all(tensor.is_contiguous() for tensor in given.values())


def test_a_model_is_saved_as_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_causal_lm(tmp_path / name, tiny_gpt(), tiny_tokenizer(), chat_template="{{ x }}")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer_config.json",
        "vocab.json",
    ]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with safe_open(tmp_path / "one" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_only_bare_models_are_saved(tmp_path: Path) -> None:
    model = tiny_gpt()
    model.add_module("extra", nn.Linear(2, 2))
    with pytest.raises(AssertionError, match="wrapped or added"):
        save_causal_lm(tmp_path, model, tiny_tokenizer())


# What transformers and the hub write opens here.


def their_model(*, tie_word_embeddings: bool = True) -> GPT2LMHeadModel:
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=317,
        n_positions=32,
        n_embd=24,
        n_layer=2,
        n_head=3,
        bos_token_id=316,
        eos_token_id=316,
        tie_word_embeddings=tie_word_embeddings,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model


def assert_same_logits(ours: GPT, theirs: GPT2LMHeadModel) -> None:
    ids = some_ids()
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_we_open_what_transformers_saves(tmp_path: Path, *, tied: bool) -> None:
    theirs = their_model(tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    ours = load_causal_lm(tmp_path)
    assert ours.config == tiny_config(tie_weights=tied, drop_rate=0.1)
    assert_same_logits(ours, theirs)


def hub_tensors(theirs: GPT2LMHeadModel) -> dict[str, Tensor]:
    """Return tensors as the hub's gpt2 holds them: bare names, and each layer's causal mask."""
    body = theirs.transformer.state_dict()
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 32, 32) for layer in range(2)}
    scalars = {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(2)}
    return {name: tensor.clone() for name, tensor in {**body, **masks, **scalars}.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_we_open_gpt2_as_the_hub_serves_it(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = their_model().to(dtype).float()
    theirs.config.save_pretrained(tmp_path)
    tensors = {name: tensor.to(dtype) for name, tensor in hub_tensors(theirs).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    ours = load_causal_lm(tmp_path)
    assert_same_logits(ours, theirs)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}


def test_a_tied_head_may_be_in_the_file_if_it_is_the_embedding(tmp_path: Path) -> None:
    theirs = their_model()
    theirs.config.save_pretrained(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_logits(load_causal_lm(tmp_path), theirs)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head.weight differs from transformer.wte.weight"):
        load_causal_lm(tmp_path)


def test_dropout_is_that_of_the_config_or_as_asked(tmp_path: Path) -> None:
    save_causal_lm(tmp_path, tiny_gpt(tiny_config(drop_rate=0.2)), tiny_tokenizer())
    assert load_causal_lm(tmp_path).config.drop_rate == 0.2
    model = load_causal_lm(tmp_path, drop_rate=0.0).train()
    assert model.config.drop_rate == 0.0
    assert torch.equal(model(some_ids()), model(some_ids()))


# Classifiers.


def tiny_classifier() -> GPTClassifier:
    return GPTClassifier.from_gpt(tiny_gpt(), 2, generator=torch.Generator().manual_seed(1)).eval()


def padded_ids() -> tuple[Tensor, Tensor]:
    ids, last = some_ids(4, 12), torch.tensor([11, 3, 0, 7])
    for row, index in enumerate(last.tolist()):
        ids[row, index + 1 :] = 316
    return ids, last


def test_transformers_opens_our_classifier(tmp_path: Path) -> None:
    model = tiny_classifier()
    save_classifier(tmp_path, model, tiny_tokenizer(), class_names=CLASS_NAMES)
    theirs, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert_nothing_missing(info)
    assert theirs.config.id2label == {0: "ham", 1: "spam"}
    assert theirs.config.label2id == {"ham": 0, "spam": 1}
    ids, last = padded_ids()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids, last), atol=1e-4, rtol=0)


def test_our_classifier_loads_bit_for_bit(tmp_path: Path) -> None:
    model = tiny_classifier()
    save_classifier(tmp_path, model, tiny_tokenizer(), class_names=CLASS_NAMES)
    loaded, class_names = load_classifier(tmp_path)
    assert class_names == CLASS_NAMES
    assert_same_state(loaded, model)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_we_open_a_classifier_of_transformers(tmp_path: Path, n_classes: int) -> None:
    config = their_model().config
    config.num_labels = n_classes
    config.pad_token_id = 316
    torch.manual_seed(4)
    theirs = GPT2ForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, class_names = load_classifier(tmp_path)
    assert class_names == [f"LABEL_{index}" for index in range(n_classes)]
    ids, last = padded_ids()
    with torch.no_grad():
        torch.testing.assert_close(ours(ids, last), theirs(ids).logits, atol=1e-4, rtol=0)


def test_classes_are_in_the_order_of_their_scores(tmp_path: Path) -> None:
    names = {str(index): f"class {index}" for index in reversed(range(12))}
    write_json(tmp_path / "config.json", {"id2label": names})
    assert read_class_names(tmp_path) == [f"class {index}" for index in range(12)]
    write_json(tmp_path / "config.json", {"id2label": {"1": "x", "2": "y"}})
    with pytest.raises(ValueError, match=r"id2label is .* allowed is a name for each class id"):
        read_class_names(tmp_path)


# Bad folders: one sentence, before anything big is read.


@pytest.fixture
def good(tmp_path: Path) -> Path:
    save_causal_lm(tmp_path, tiny_gpt(), tiny_tokenizer())
    return tmp_path


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_missing_tensor_is_named(good: Path) -> None:
    edit_tensors(good, lambda tensors: tensors.pop("transformer.h.1.ln_2.bias"))
    with pytest.raises(
        ValueError, match=rf"^{good}: transformer.h.1.ln_2.bias \(24,\) is missing$"
    ):
        check_weights(good)


def test_an_unknown_tensor_is_named(good: Path) -> None:
    edit_tensors(good, lambda tensors: tensors.update({"transformer.h.2.x": torch.zeros(3, 2)}))
    with pytest.raises(ValueError, match=r"transformer.h.2.x \(3, 2\) is not in this model$"):
        check_weights(good)


def test_a_tensor_of_another_shape_is_named_with_both(good: Path) -> None:
    edit_tensors(
        good, lambda tensors: tensors.update({"transformer.wpe.weight": torch.zeros(9, 24)})
    )
    message = r"transformer.wpe.weight has shape \(9, 24\), config.json requires \(32, 24\)$"
    with pytest.raises(ValueError, match=message):
        check_weights(good)


def test_weights_of_another_size_are_told_in_short(good: Path) -> None:
    write_json(good / "config.json", {**read_json(good / "config.json"), "n_embd": 48})
    with pytest.raises(
        ValueError, match=r"wte.weight has shape \(317, 24\).* \(and 25 more\)$"
    ) as caught:
        load_causal_lm(good)
    assert len(str(caught.value)) < 400 + len(str(good))


def test_a_layer_too_few_or_too_many_is_found(good: Path) -> None:
    for n_layer, word in ((1, "is not in this model"), (3, "is missing")):
        write_json(good / "config.json", {**read_json(good / "config.json"), "n_layer": n_layer})
        with pytest.raises(ValueError, match=word):
            check_weights(good)


def test_a_classifier_is_not_a_language_model_nor_the_other_way(tmp_path: Path, good: Path) -> None:
    with pytest.raises(ValueError, match=r"score.weight \(2, 24\) is missing"):
        load_classifier(good)
    folder = tmp_path / "classifier"
    save_classifier(folder, tiny_classifier(), tiny_tokenizer(), class_names=CLASS_NAMES)
    with pytest.raises(ValueError, match=r"score.weight \(2, 24\) is not in this model"):
        load_causal_lm(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "opt"}, "model_type is 'opt'; allowed are gpt2, llama"),
        ({"model_type": "llama"}, "max_position_embeddings is None; allowed is a whole number"),
        ({"activation_function": "relu"}, "activation_function is 'relu'; allowed is 'gelu_new'"),
        ({"layer_norm_epsilon": 0.0}, "norm_eps is 0.0 but must be above 0"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"n_inner": "wide"}, "n_inner is 'wide'"),
        ({"n_inner": 50}, r"c_fc.weight has shape \(24, 96\), config.json requires \(24, 50\)"),
        ({"n_embd": "24"}, "n_embd is '24'; allowed is a whole number"),
        ({"n_head": None}, "n_head is None; allowed is a whole number"),
        ({"n_head": 5}, "config.json: emb_dim is 24 but must be a multiple of n_heads, 5"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(
    good: Path, change: dict[str, object], message: str
) -> None:
    write_json(good / "config.json", {**read_json(good / "config.json"), **change})
    with pytest.raises(ValueError, match=message):
        check_weights(good)


def test_a_folder_without_config_is_told(good: Path) -> None:
    (good / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json is missing; a Hugging Face folder has one"):
        check_weights(good)
