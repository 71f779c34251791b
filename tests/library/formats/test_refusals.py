"""Files that cannot be used are refused in a sentence; odd but whole files are read."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptmill.checkpoint.checkpoint import (
    check_weights,
    load_causal_lm,
    read_class_names,
    save_causal_lm,
    save_classifier,
)
from gptmill.checkpoint.weights import read_tensors
from gptmill.files import read_json, write_json
from gptmill.formats.exporting import ExportFormat, export_model
from gptmill.formats.gguf import open_gguf
from gptmill.formats.importing import check_model, import_model
from gptmill.generation.completion import TextGenerator
from gptmill.model.gpt import GPT, GPTClassifier, GPTConfig
from gptmill.tokenizer.chat_template import Template
from gptmill.tokenizer.tokenizer import Tokenizer
from tests.support.forms import gpt2_config, llama_config, random_gpt
from tests.support.fuzz.mutators import POINTER
from tests.support.tiny import CHATTY, chatty_folder, tiny_config, tiny_gpt, tiny_tokenizer

# Several ids end a text.


def several_ends(folder: Path, config: dict[str, Any]) -> Path:
    """Save a model whose configs name several end ids, with a chatty tokenizer."""
    tokenizer = Tokenizer.from_folder(chatty_folder(folder / "tokenizer"))
    model = random_gpt(llama_config(vocab_size=tokenizer.n_vocab + 3))
    save_causal_lm(folder / "model", model, tokenizer, chat_template=CHATTY)
    for name, change in config.items():
        path = folder / "model" / name
        write_json(path, {**read_json(path), **change})
    return folder / "model"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": [0, 2]}}, (0, 2)),
        ({"generation_config.json": {"eos_token_id": [2, 0, 3]}}, (2, 0, 3)),
        ({"config.json": {"eos_token_id": [3, 2], "pad_token_id": None}}, (2, 3)),
        ({"generation_config.json": {"eos_token_id": None}}, (2,)),
    ],
)
def test_all_end_ids_are_kept_through_every_format(
    tmp_path: Path, config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    folder = several_ends(tmp_path, config)
    export_model(folder, tmp_path / "hf", form="hf")
    export_model(folder, tmp_path / "a.gguf", form="gguf")
    fields = open_gguf(tmp_path / "a.gguf").fields
    found = [fields.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    assert tuple(index for index in found if index is not None) == expected
    import_model(str(folder), tmp_path / "from hf")
    import_model(str(tmp_path / "a.gguf"), tmp_path / "from gguf")
    import_model(str(tmp_path / "hf"), tmp_path / "again")
    for name in ("model", "hf", "from hf", "from gguf", "again"):
        generator = TextGenerator.open(tmp_path / name)
        assert generator.stop_ids == {0, *expected}  # and the end of a document
        assert generator.template is not None
        assert generator.template.end_id(generator.tokenizer) == 2
        if name != "model":
            for file in ("generation_config.json", "config.json"):
                ids = read_json(tmp_path / name / file)["eos_token_id"]
                assert {ids} == set(expected) if isinstance(ids, int) else set(ids) == {*expected}


def test_gguf_has_room_for_three_end_ids(tmp_path: Path) -> None:
    folder = several_ends(tmp_path, {"generation_config.json": {"eos_token_id": [0, 1, 2, 3]}})
    with pytest.raises(ValueError, match=r"4 end ids \(eos_token_id\), and GGUF has keys for 3"):
        export_model(folder, tmp_path / "a.gguf", form="gguf")
    assert not [path for path in tmp_path.iterdir() if "gguf" in path.name]


def test_a_base_model_stops_at_all_end_ids(tmp_path: Path) -> None:
    save_causal_lm(tmp_path, tiny_gpt(), tiny_tokenizer())
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [316, 10]})
    assert TextGenerator.open(tmp_path).stop_ids == {316, 10}
    assert Template.read(tmp_path) is None


# Scores that are not of exclusive classes.


@pytest.mark.parametrize(
    ("change", "n_classes"),
    [
        ({"problem_type": "multi_label_classification"}, 3),
        ({"problem_type": "regression"}, 1),
        ({"problem_type": None}, 1),
        ({"problem_type": "regression"}, 2),
        ({"problem_type": 3}, 2),
    ],
)
def test_only_exclusive_classes_are_scored(
    tmp_path: Path, change: dict[str, Any], n_classes: int
) -> None:
    model = GPTClassifier(tiny_config(), n_classes).eval()
    names = [f"LABEL_{index}" for index in range(n_classes)]
    save_classifier(tmp_path / "it", model, tiny_tokenizer(), class_names=names)
    path = tmp_path / "it" / "config.json"
    write_json(path, {**read_json(path), **change})
    for read in (read_class_names, check_model):
        with pytest.raises(ValueError, match=r"config.json: problem_type is .* allowed is 'single"):
            read(tmp_path / "it")
    with pytest.raises(ValueError, match="problem_type"):
        export_model(tmp_path / "it", tmp_path / "out", form="hf")


# Values that the output cannot hold.


def with_value(config: GPTConfig, value: float) -> GPT:
    model = random_gpt(config)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 2] = value
    return model


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e5, torch.float16, r"1e\+05, and float16 holds .* allowed are float32, bfloat16"),
        (-1e5, torch.float16, r"1e\+05, and float16 holds .* allowed are float32, bfloat16"),
        (3.4e38, torch.bfloat16, r"3.4e\+38, and bfloat16 holds .* allowed are float32$"),
        (float("nan"), torch.float32, "NaN or infinite"),
        (float("-inf"), torch.bfloat16, "NaN or infinite"),
    ],
)
@pytest.mark.parametrize("config", [gpt2_config(), llama_config()], ids=["gpt2", "llama"])
def test_values_that_the_type_cannot_hold_are_told(
    tmp_path: Path, config: GPTConfig, value: float, dtype: torch.dtype, message: str
) -> None:
    tensors = random_gpt(config)
    save_causal_lm(tmp_path / "it", tensors, tiny_tokenizer())
    spoil(tmp_path / "it" / "model.safetensors", value)
    before = sorted(path.name for path in tmp_path.iterdir())
    forms: list[ExportFormat] = ["hf", "gguf"]
    if dtype is torch.float32 and config.llama is None:
        forms.append("book")
    for form in forms:
        with pytest.raises(ValueError, match=message):
            export_model(tmp_path / "it", tmp_path / "out", form=form, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        import_model(str(tmp_path / "it"), tmp_path / "out", dtype=dtype)
    with pytest.raises(ValueError, match=message):
        save_causal_lm(tmp_path / "it", with_value(config, value), tiny_tokenizer(), dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def spoil(path: Path, value: float) -> None:
    """Overwrite the last value of a safetensors file of float32."""
    content = path.read_bytes()
    path.write_bytes(content[:-4] + struct.pack("<f", value))


# Counts and sizes beyond the file.


def gguf_start(n_tensors: int, n_fields: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_fields) + rest + bytes(400)


def field(kind: int, rest: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"a" + struct.pack("<I", kind) + rest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gguf_start(2**60, 0), "tensor_count is 1152921504606846976, and the file has"),
        (gguf_start(0, 2**40), "metadata_kv_count is 1099511627776"),
        (gguf_start(0, 1, field(9, struct.pack("<IQ", 4, 2**40))), "a is 1099511627776"),
        (gguf_start(0, 1, field(9, struct.pack("<IQ", 8, 2**40))), "a is 1099511627776"),
        (gguf_start(0, 1, field(9, struct.pack("<IQ", 9, 2))), "a is a list of type 9"),
        (gguf_start(0, 1, field(8, struct.pack("<Q", 2**63))), "the length of a is"),
        (gguf_start(0, 1, struct.pack("<Q", 2**62)), "the length of a field's name is"),
        (gguf_start(1, 0, struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31)), "t has 2147"),
        (gguf_start(1, 0, field(4, struct.pack("<4QIQ", *[2**63] * 4, 0, 0))), "a has .* bytes at"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(400), "the version is 50331648; allowed are 2, 3"),
    ],
)
def test_counts_of_a_gguf_file_are_compared_with_its_size(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.gguf is not a complete GGUF file: {message}"):
        import_model(str(tmp_path / "a.gguf"), tmp_path / "out")


@pytest.mark.parametrize("name", ["n_layer", "n_embd", "vocab_size", "n_head", "n_inner"])
@pytest.mark.parametrize("value", [10**5, 2**31 - 1, 2**40, 0, -3, 2.0, "12", True, [2]])
def test_sizes_of_a_config_are_compared_with_the_tensors(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    folder = tmp_path_factory.getbasetemp() / "sizes"
    if not folder.is_dir():
        save_causal_lm(folder, tiny_gpt(), tiny_tokenizer())
    path = folder / "config.json"
    right = read_json(path)
    write_json(path, {**right, name: value})
    try:
        for read in (check_weights, load_causal_lm, check_model):
            with pytest.raises(ValueError, match=str(folder)):
                read(folder)
    finally:
        write_json(path, right)


# Wrapped state dicts, and files that are not there.

WRAPS: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
    lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
    lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    lambda state: {f"module.module.{name}": tensor for name, tensor in state.items()},
    lambda state: {"model": state, "step": 3},
    lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    lambda state: {"state_dict": {f"_orig_mod.{n}": t for n, t in state.items()}, "epoch": 1},
    lambda state: {"model": {"state_dict": state}},
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_wrapped_state_dicts_are_unwrapped(
    tmp_path: Path, wrap: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    model = tiny_gpt()
    save_causal_lm(tmp_path / "it", model, tiny_tokenizer())
    export_model(tmp_path / "it", tmp_path / "book.pth", form="book")
    torch.save(wrap(torch.load(tmp_path / "book.pth")), tmp_path / "wrapped.pth")
    import_model(
        str(tmp_path / "wrapped.pth"), tmp_path / "out", tokenizer=tmp_path / "it", n_heads=3
    )
    state = {name: tensor.clone() for name, tensor in read_tensors(tmp_path / "it").items()}
    torch.save(wrap(state), tmp_path / "it" / "pytorch_model.bin")
    (tmp_path / "it" / "model.safetensors").unlink()
    for folder in ("out", "it"):
        loaded = load_causal_lm(tmp_path / folder).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "config.json"),
        *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
        *("generation_config.json", "chat_template.jinja", "alone/a.pth", "alone/a.gguf"),
        *("tf/hparams.json", "tf/checkpoint", "tf/model.index"),
    ],
)
def test_a_git_lfs_pointer_is_named_with_the_command(tmp_path: Path, name: str) -> None:
    folder = (tmp_path / name).parent
    if "/" not in name:
        save_causal_lm(folder, tiny_gpt(), tiny_tokenizer(), chat_template=CHATTY)
        if name.startswith(("pytorch", "model.safetensors.")):
            (folder / "model.safetensors").unlink()
    folder.mkdir(exist_ok=True)
    if folder.name == "tf":
        sizes = {"n_vocab": 9, "n_ctx": 8, "n_embd": 4, "n_head": 2, "n_layer": 1}
        write_json(folder / "hparams.json", sizes)
        (folder / "checkpoint").write_text('model_checkpoint_path: "model"\n')
        (folder / "model.index").write_bytes(b"")
    (tmp_path / name).write_bytes(POINTER)
    source = tmp_path / name if folder.name == "alone" else folder
    with pytest.raises(ValueError, match=rf"{name} is a git-lfs pointer .* `git lfs pull`"):
        import_model(str(source), tmp_path / "out")
