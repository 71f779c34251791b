"""Each form of weights, in and out, against transformers on random weights of many shapes."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2LMHeadModel,
)

from gptmill.checkpoint.checkpoint import (
    load_causal_lm,
    load_classifier,
    read_config,
    save_causal_lm,
    save_classifier,
)
from gptmill.files import read_json, sha256, write_json
from gptmill.formats.exporting import export_model
from gptmill.formats.importing import Imported, import_model
from gptmill.model.gpt import GPT, GPTClassifier, GPTConfig
from gptmill.tokenizer.tokenizer import Tokenizer
from tests.support.forms import (
    LINEAR,
    LLAMA3,
    YARN,
    book_state,
    gpt2_config,
    llama_config,
    openai_tensors,
    random_gpt,
    some_ids,
    their_gpt2,
    their_llama,
    write_openai,
)
from tests.support.tiny import tiny_bpe, tiny_tokenizer

GPT2S = [
    gpt2_config(),
    gpt2_config(emb_dim=20, n_heads=5, n_layers=1, context_length=7),
    gpt2_config(emb_dim=64, n_heads=1, n_layers=3),
    gpt2_config(tie_weights=False),
    gpt2_config(hidden_dim=50, norm_eps=1e-3),
    gpt2_config(emb_dim=26, n_heads=13, n_layers=4, vocab_size=401),
]
LLAMAS = [
    llama_config(),
    llama_config(n_kv_heads=4, tie_weights=False),
    llama_config(n_kv_heads=1, emb_dim=40, n_layers=3, norm_eps=1e-3),
    llama_config(emb_dim=12, n_heads=2, n_kv_heads=1, vocab_size=331, context_length=9),
    llama_config(scaling=LINEAR),
    llama_config(scaling=YARN),
    llama_config(scaling=replace(YARN, attention_factor=1.3)),
    llama_config(scaling=LLAMA3),
]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Return a folder with a tokenizer of 317 ids."""
    folder = tmp_path / "words"
    folder.mkdir()
    tiny_tokenizer().save(folder, context_length=32)
    return folder


def assert_same_logits(folder: Path, theirs: torch.nn.Module, config: GPTConfig) -> None:
    ours = load_causal_lm(folder)
    ids = some_ids(config)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def tensor_bytes(tensors: dict[str, Tensor], folder: Path) -> Path:
    folder.mkdir()
    torch.save(tensors, folder / "model.pth")
    return folder / "model.pth"


# In: transformers' own weights.


@pytest.mark.parametrize("config", GPT2S)
def test_gpt2_of_any_shape_comes_in_from_every_form(
    tmp_path: Path, words: Path, config: GPTConfig
) -> None:
    theirs = their_gpt2(config)
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    pth = tensor_bytes(book_state(theirs), tmp_path / "book")
    sources = {"whole": tmp_path / "whole", "shards": tmp_path / "shards", "book": pth}
    if config.tie_weights and config.hidden_dim is None and config.norm_eps == 1e-5:
        write_openai(tmp_path / "openai", config, openai_tensors(theirs))
        sources["openai"] = tmp_path / "openai"
    if config.norm_eps != 1e-5:
        del sources["book"]  # which has one norm_eps only
    for name, source in sources.items():
        out = tmp_path / f"from {name}"
        found = import_model(str(source), out, tokenizer=words, n_heads=config.n_heads)
        assert found.config == config
        assert found.n_parameters == sum(p.numel() for p in theirs.parameters())
        assert_same_logits(out, theirs, config)


@pytest.mark.parametrize("config", LLAMAS)
def test_llamas_of_any_shape_come_in_from_folders(
    tmp_path: Path, words: Path, config: GPTConfig
) -> None:
    theirs = their_llama(config)
    theirs.save_pretrained(tmp_path / "whole")
    found = import_model(str(tmp_path / "whole"), tmp_path / "out", tokenizer=words)
    assert replace(found.config, llama=None) == replace(config, llama=None)
    assert_same_logits(tmp_path / "out", theirs, config)


def test_the_older_spelling_of_rotary_positions_is_read(tmp_path: Path, words: Path) -> None:
    config = llama_config(scaling=YARN)
    their_llama(config).save_pretrained(tmp_path)
    given = read_json(tmp_path / "config.json")
    rope = given.pop("rope_parameters")
    older = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10}
    theta = rope["rope_theta"]
    write_json(tmp_path / "config.json", {**given, "rope_theta": theta, "rope_scaling": older})
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True; allowed is False"),
        ({"mlp_bias": True}, "mlp_bias is True; allowed is False"),
        ({"head_dim": 10}, "head_dim is 10; allowed is hidden_size / num_attention_heads, 6"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; allowed is 'silu'"),
        ({"sliding_window": 8}, "sliding_window is 8; allowed is None"),
        ({"num_key_value_heads": 3}, "n_kv_heads is 3 but must divide n_heads, 4"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_type is 'dynamic'; allowed are default, linear, yarn, llama3",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale is 1.0"),
    ],
)
def test_a_llama_that_is_not_computed_here_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    save_causal_lm(tmp_path, random_gpt(llama_config()), tiny_tokenizer())
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), **change})
    with pytest.raises(ValueError, match=f"config.json: {re.escape(message)}"):
        read_config(tmp_path)


# Out and in again.


@pytest.mark.parametrize("config", [*GPT2S[:5], *LLAMAS, gpt2_config(qkv_bias=False)])
def test_transformers_opens_what_is_saved(tmp_path: Path, config: GPTConfig) -> None:
    model = random_gpt(config)
    save_causal_lm(tmp_path, model, tiny_tokenizer())
    assert read_config(tmp_path) == config
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}
    assert_same_logits(tmp_path, theirs, config)
    loaded = load_causal_lm(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [gpt2_config(), llama_config()])
def test_weights_are_saved_and_loaded_in_the_type_that_is_asked(
    tmp_path: Path, dtype: torch.dtype, config: GPTConfig
) -> None:
    model = random_gpt(config)
    save_causal_lm(tmp_path, model, tiny_tokenizer(), dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == dtype  # by config.json
    whole, half = load_causal_lm(tmp_path), load_causal_lm(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    rounded = {name: value.to(dtype) for name, value in model.state_dict().items()}
    assert all(torch.equal(half.state_dict()[name], value) for name, value in rounded.items())
    assert all(torch.equal(whole.state_dict()[n], v.float()) for n, v in rounded.items())
    with pytest.raises(ValueError, match=r"not saved as torch.float64; allowed are float32"):
        save_causal_lm(tmp_path, model, tiny_tokenizer(), dtype=torch.float64)


@pytest.mark.parametrize("config", [gpt2_config(), llama_config()])
def test_classifiers_of_both_families_open_in_transformers(
    tmp_path: Path, config: GPTConfig
) -> None:
    model = GPTClassifier.from_gpt(random_gpt(config), 3).eval()
    save_classifier(tmp_path, model, tiny_tokenizer(), class_names=["a", "b", "c"])
    theirs, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert {key: value for key, value in info.items() if value} == {}
    ids, last = some_ids(config) % 300, torch.tensor([config.context_length - 1, 4, 0])
    for row, index in enumerate(last.tolist()):
        ids[row, index + 1 :] = 316
    loaded, names = load_classifier(tmp_path)
    assert names == ["a", "b", "c"]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids, last), atol=1e-4, rtol=0)
        assert torch.equal(loaded(ids, last), model(ids, last))


# GGUF.

GGUFS = [*GPT2S[:5], *LLAMAS[:6]]


@pytest.mark.parametrize("config", GGUFS)
def test_a_gguf_file_reads_back_as_it_was(tmp_path: Path, config: GPTConfig) -> None:
    model = random_gpt(config)
    save_causal_lm(tmp_path / "ours", model, tiny_tokenizer(), chat_template="{{ messages }}")
    export_model(tmp_path / "ours", tmp_path / "a.gguf", form="gguf")
    found = import_model(str(tmp_path / "a.gguf"), tmp_path / "back")
    expected = replace(config, drop_rate=0.1 if config.llama is None else 0.0)
    assert found.config == expected
    loaded = load_causal_lm(tmp_path / "back").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    known = Tokenizer.from_folder(tmp_path / "back")
    assert known.chat_template == "{{ messages }}"
    if config.vocab_size == 317:
        assert known.fingerprint == tiny_tokenizer().fingerprint


@pytest.mark.parametrize(
    "config",
    [
        gpt2_config(context_length=1024, tie_weights=False),
        gpt2_config(context_length=1024),
        llama_config(),
        llama_config(tie_weights=False),
    ],
)
def test_transformers_opens_a_gguf_file_with_equal_logits_and_ids(
    tmp_path: Path, config: GPTConfig
) -> None:
    model = random_gpt(config)
    save_causal_lm(tmp_path / "ours", model, tiny_tokenizer())
    export_model(tmp_path / "ours", tmp_path / "a.gguf", form="gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf")
    ids = some_ids(config)[:, :30]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)
    words = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    text = "Shall I compare thee to 1234 lazy foxes?\n"
    assert words(text).input_ids == tiny_tokenizer().encode(text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gguf_file_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_gpt(llama_config())
    save_causal_lm(tmp_path / "ours", model, tiny_tokenizer())
    export_model(tmp_path / "ours", tmp_path / "a.gguf", form="gguf", dtype=dtype)
    import_model(str(tmp_path / "a.gguf"), tmp_path / "back")
    for name, value in load_causal_lm(tmp_path / "back").state_dict().items():
        assert torch.equal(value, model.state_dict()[name].to(dtype).float()), name


def test_llama3s_scaling_goes_through_gguf_as_its_factors(tmp_path: Path) -> None:
    known = replace(LLAMA3, original_context_length=8192)
    config = llama_config(scaling=known, context_length=50)
    save_causal_lm(tmp_path / "ours", random_gpt(config), tiny_tokenizer())
    export_model(tmp_path / "ours", tmp_path / "a.gguf", form="gguf")
    assert import_model(str(tmp_path / "a.gguf"), tmp_path / "back").config == config
    config = llama_config(scaling=LLAMA3)
    save_causal_lm(tmp_path / "other", random_gpt(config), tiny_tokenizer())
    export_model(tmp_path / "other", tmp_path / "b.gguf", form="gguf")
    with pytest.raises(ValueError, match="belongs to an unknown scaling"):
        import_model(str(tmp_path / "b.gguf"), tmp_path / "none")


# The book's files.


def test_the_books_optimizer_and_wrappers_are_no_hindrance(tmp_path: Path, words: Path) -> None:
    config = gpt2_config()
    theirs = their_gpt2(config)
    state = {f"_orig_mod.{name}": tensor for name, tensor in book_state(theirs).items()}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict()
    path = tmp_path / "model_and_optimizer.pth"
    torch.save({"model_state_dict": state, "optimizer_state_dict": optimizer}, path)
    found = import_model(str(path), tmp_path / "out", tokenizer=words, n_heads=3)
    assert found.files == {path.name: sha256(path)}
    assert_same_logits(tmp_path / "out", theirs, config)


def test_the_number_of_heads_comes_from_the_size_or_is_asked_for(
    tmp_path: Path, words: Path
) -> None:
    wide = their_gpt2(gpt2_config(emb_dim=128, n_heads=2, n_layers=1))
    path = tensor_bytes(book_state(wide, qkv_bias=False), tmp_path / "wide")
    found = import_model(str(path), tmp_path / "out", tokenizer=words)
    assert (found.config.n_heads, found.config.qkv_bias) == (2, False)
    path = tensor_bytes(book_state(their_gpt2(gpt2_config())), tmp_path / "odd")
    with pytest.raises(ValueError, match=r"the number of heads is not in the file.* set n_heads"):
        import_model(str(path), tmp_path / "none", tokenizer=words)


def test_a_classifiers_bias_is_kept_exactly_in_the_norm_before(tmp_path: Path, words: Path) -> None:
    config = gpt2_config()
    state = book_state(their_gpt2(config))
    head = torch.nn.Linear(config.emb_dim, 2)
    path = tensor_bytes(
        {**state, "out_head.weight": head.weight.data, "out_head.bias": head.bias.data},
        tmp_path / "book",
    )
    found = import_model(str(path), tmp_path / "out", tokenizer=words, n_heads=3)
    assert found.n_classes == 2
    model, names = load_classifier(tmp_path / "out")
    assert names == ["LABEL_0", "LABEL_1"]
    ids = some_ids(config)
    body = their_gpt2(config).transformer
    with torch.no_grad():
        expected = head(body(ids).last_hidden_state[:, -1])
        scores = model(ids, torch.full((3,), config.context_length - 1))
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    export_model(tmp_path / "out", tmp_path / "again.pth", form="book")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again["out_head.bias"].shape == (2,)
    assert not again["out_head.bias"].any()


@pytest.mark.parametrize("tied", [True, False])
def test_the_book_gets_every_name_that_its_model_has(tmp_path: Path, *, tied: bool) -> None:
    config = gpt2_config(tie_weights=tied)
    theirs = their_gpt2(config)
    save_causal_lm(tmp_path / "ours", as_ours(theirs, config, tmp_path), tiny_tokenizer())
    export_model(tmp_path / "ours", tmp_path / "model.pth", form="book")
    given = torch.load(tmp_path / "model.pth", weights_only=True)
    expected = book_state(theirs)
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in expected)


def as_ours(theirs: GPT2LMHeadModel, config: GPTConfig, folder: Path) -> GPT:
    theirs.save_pretrained(folder / "theirs")
    return load_causal_lm(folder / "theirs")


def change(key: str, value: Tensor | None) -> Callable[[dict[str, Tensor]], None]:
    def apply(state: dict[str, Tensor]) -> None:
        state.pop(key, None)
        if value is not None:
            state[key] = value

    return apply


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trf_blocks.1.norm2.shift", None, r"trf_blocks.1.norm2.shift \(21,\) is missing"),
        ("trf_blocks.0.x", torch.ones(2), r"trf_blocks.0.x \(2,\) is not in this model"),
        (
            "trf_blocks.0.att.W_key.weight",
            torch.ones(3, 21),
            r"W_key.weight has shape \(3, 21\), expected \(21, 21\)",
        ),
        ("trf_blocks.0.att.W_key.lora.A", torch.ones(2, 21), "holds LoRA layers; merge them"),
        (
            "pos_emb.weight",
            None,
            "is not a state dict of the book's GPTModel: pos_emb.weight is missing",
        ),
    ],
)
def test_a_books_file_that_does_not_fit_is_told(
    tmp_path: Path, words: Path, key: str, value: Tensor | None, message: str
) -> None:
    state = book_state(their_gpt2(gpt2_config()))
    change(key, value)(state)
    path = tensor_bytes(state, tmp_path / "book")
    with pytest.raises(ValueError, match=message):
        import_model(str(path), tmp_path / "out", tokenizer=words, n_heads=3)
    assert not (tmp_path / "out").exists()


class Harmful:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickle_that_would_run_code_leaves_no_trace(
    tmp_path: Path, words: Path, monkeypatch: pytest.MonkeyPatch, *, wrapped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    state = {**book_state(their_gpt2(gpt2_config())), "x": Harmful()}
    torch.save({"model_state_dict": state} if wrapped else state, "model.pth")
    with pytest.raises(ValueError, match=r"model.pth is not a PyTorch file of tensors only"):
        import_model("model.pth", tmp_path / "out", tokenizer=words, n_heads=3)
    assert not (tmp_path / "harmed").exists()
    assert not (tmp_path / "out").exists()


# OpenAI's folder.


def openai_folder(tmp_path: Path) -> Path:
    folder, config = tmp_path / "124M", gpt2_config()
    write_openai(folder, config, openai_tensors(their_gpt2(config)))
    merges, ids = tiny_bpe(tmp_path / "bpe")
    merges.rename(folder / "vocab.bpe")
    ids.rename(folder / "encoder.json")
    return folder


def test_openais_seven_files_are_all_that_is_needed(tmp_path: Path) -> None:
    folder = openai_folder(tmp_path)
    found = import_model(str(folder), tmp_path / "out")
    assert found.form == "tensorflow"
    assert sorted(found.files) == [
        "encoder.json",
        "hparams.json",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
        "vocab.bpe",
    ]
    assert_same_logits(tmp_path / "out", their_gpt2(gpt2_config()), gpt2_config())


@pytest.mark.parametrize(
    ("file", "place", "message"),
    [
        ("model.ckpt.data-00000-of-00001", 40, "the data of model/h0/attn/c_attn/b is damaged"),
        ("model.ckpt.index", 40, "a block is damaged: the checksum differs"),
        ("model.ckpt.index", -1, "not a complete index of a TensorFlow checkpoint"),
    ],
)
def test_one_flipped_bit_is_found(tmp_path: Path, file: str, place: int, message: str) -> None:
    path = openai_folder(tmp_path) / file
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        import_model(str(path.parent), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cut_data_file_is_told(tmp_path: Path) -> None:
    path = openai_folder(tmp_path) / "model.ckpt.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="the data of model/wte is missing; fetch the data file"):
        import_model(str(path.parent), tmp_path / "out")


# Sources and exports that are none.


def test_sources_are_told_from_ids_on_the_hub(tmp_path: Path) -> None:
    for source, message in {
        str(tmp_path / "nothing here"): "no such file or folder, and not a Hugging Face Hub id",
        "owner/name": "revision is None; allowed is a full commit hash of 40 hex digits",
    }.items():
        with pytest.raises(ValueError, match=message):
            import_model(source, tmp_path / "out")
    with pytest.raises(ValueError, match="revision is 'main'; allowed is a full commit hash"):
        import_model("owner/name", tmp_path / "out", revision="main")
    with pytest.raises(ValueError, match="a revision is for a Hugging Face Hub id only"):
        import_model(str(tmp_path), tmp_path / "out", revision="0" * 40)
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(ValueError, match="has an unknown format; allowed are"):
        import_model(str(tmp_path / "x.txt"), tmp_path / "out")


def test_an_export_that_cannot_be_is_refused(tmp_path: Path) -> None:
    model = GPTClassifier.from_gpt(random_gpt(gpt2_config()), 2)
    save_classifier(tmp_path / "c", model, tiny_tokenizer(), class_names=["a", "b"])
    with pytest.raises(ValueError, match="is a classifier, unknown to GGUF"):
        export_model(tmp_path / "c", tmp_path / "x.gguf", form="gguf")
    save_causal_lm(tmp_path / "l", random_gpt(llama_config()), tiny_tokenizer())
    with pytest.raises(ValueError, match="the book's GPTModel is a GPT-2, and this model is a Ll"):
        export_model(tmp_path / "l", tmp_path / "x.pth", form="book")
    with pytest.raises(ValueError, match="format is 'onnx'; allowed are hf, gguf, book"):
        export_model(tmp_path / "l", tmp_path / "x", form="onnx")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "l"]


def test_a_folder_comes_through_export_and_import_with_its_bytes(tmp_path: Path) -> None:
    model = random_gpt(llama_config())
    save_causal_lm(tmp_path / "a", model, tiny_tokenizer(), chat_template="{{ messages }}")
    export_model(tmp_path / "a", tmp_path / "b", form="hf")
    found: Imported = import_model(str(tmp_path / "b"), tmp_path / "c")
    assert found.form == "hugging face"
    for path in sorted((tmp_path / "a").iterdir()):
        for other in ("b", "c"):
            assert (tmp_path / other / path.name).read_bytes() == path.read_bytes(), path.name
