"""The readers: for each, how to make a valid file, damage the file, and read the file."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gptmill.checkpoint.checkpoint import (
    load_causal_lm,
    load_classifier,
    save_causal_lm,
    save_classifier,
)
from gptmill.checkpoint.mapping import check, read_state
from gptmill.checkpoint.weights import read_tensors
from gptmill.cli.folders import check_any_model
from gptmill.data.token_file import TokenFile
from gptmill.files import read_json, sha256, write_json
from gptmill.formats.book import open_book
from gptmill.formats.exporting import export_model
from gptmill.formats.gguf import open_gguf
from gptmill.formats.importing import check_model
from gptmill.formats.tensorflow import open_checkpoint
from gptmill.model.gpt import GPTClassifier, GPTConfig
from gptmill.sources.build import MAKES
from gptmill.sources.table import parse
from gptmill.tokenizer.chat_template import Template
from gptmill.tokenizer.tokenizer import Tokenizer, read_vocabulary
from gptmill.training.plan import Progress
from gptmill.training.state.snapshot import Snapshot
from gptmill.training.state.store import StateStore, progress
from tasks.project.environment import ROOT
from tests.support.forms import LLAMA3, llama_config, openai_tensors, their_gpt2, write_openai
from tests.support.fuzz.mutators import (
    Mutator,
    damage_bytes,
    damage_index,
    damage_json,
    damage_lines,
    damage_pickle,
    damage_safetensors,
)
from tests.support.tiny import CHATTY, chatty_folder, tiny_config, tiny_gpt
from tests.support.tiny import tiny_tokenizer as gpt2_tokenizer
from tests.support.tokenizers import qwen2


@dataclass(frozen=True)
class Reader:
    """A way to make, damage and read a file of a folder."""

    file: str
    make: Callable[[Path], object]
    damage: Mutator
    read: Callable[[Path], object]
    names: tuple[str, ...] = ()
    """Words of which a refusal has one, besides the names of the file and the folder."""


def _gpt2(folder: Path) -> None:
    config = tiny_config(qkv_bias=False)
    save_causal_lm(folder, tiny_gpt(config), gpt2_tokenizer(), chat_template=CHATTY)


def _llama(folder: Path) -> None:
    save_causal_lm(folder, tiny_gpt(llama_config(scaling=LLAMA3)), gpt2_tokenizer())


def _classifier(folder: Path) -> None:
    save_classifier(folder, _scores(tiny_config()), gpt2_tokenizer(), class_names=["ham", "spam"])


def _scores(config: GPTConfig) -> GPTClassifier:
    return GPTClassifier(config, 2).eval()


def _chatty(folder: Path) -> None:
    chatty_folder(folder)
    write_json(folder / "generation_config.json", {"eos_token_id": [2, 0], "bos_token_id": 1})


def _sharded(folder: Path) -> None:
    _gpt2(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = read_tensors_of(folder / "model-00001-of-00001.safetensors")
    content = {"metadata": {"total_size": 1}, "weight_map": names}
    write_json(folder / "model.safetensors.index.json", content)


def read_tensors_of(path: Path) -> dict[str, str]:
    """Return a weight map of a single file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict.fromkeys(file.keys(), path.name)


def _pickled(folder: Path) -> None:
    _gpt2(folder)
    tensors = {name: tensor.clone() for name, tensor in read_tensors(folder).items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _book(folder: Path) -> None:
    _gpt2(folder)
    export_model(folder, folder / "model.pth", form="book")


def _gguf(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        make(folder)
        export_model(folder, folder / "model.gguf", form="gguf")

    return write


def _openai(folder: Path) -> None:
    config = tiny_config()
    write_openai(folder, config, openai_tensors(their_gpt2(config)))


def _tokens(folder: Path) -> None:
    documents = [np.array(ids, dtype=np.uint32) for ids in ([1, 2, 3], [4, 5])]
    TokenFile.write(
        folder / "train.bin",
        documents,
        names=["a.txt", "b.txt"],
        separator=316,
        vocab_size=317,
        fingerprint="f" * 64,
    )


def _state(folder: Path) -> None:
    store = StateStore(folder, every=0, keep=1)
    file, best = store.keep_best(2, {"w": torch.zeros(3, 4)})
    snapshot = Snapshot(
        progress=Progress(step=3, tokens=12, seconds=0.5, best=1.5),
        model={"w": torch.ones(3, 4)},
        optimizer={"w.exp_avg": torch.ones(3, 4), "w.step": torch.tensor(3.0)},
        best=best,
        best_file=file,
        norms=[0.1, 0.2],
        rows=[{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}],
    )
    store.save(snapshot.to_state({"kind": "cpu"}), wait=True)
    store.close()


def _sources(folder: Path) -> None:
    write_json(folder / "sources.json", tomllib.loads((ROOT / "sources.toml").read_text()))


# Reading, as the verbs and stages do.


def _load(folder: Path) -> object:
    return check_any_model(folder), load_causal_lm(folder), load_causal_lm(folder, mapped=True)


def _load_classifier(folder: Path) -> object:
    return check_any_model(folder), load_classifier(folder)


def _import(folder: Path) -> object:
    return check_model(folder)


def _load_tokenizer(folder: Path) -> object:
    template = Template.read(folder)
    tokenizer = Tokenizer.from_folder(folder)
    read_vocabulary(folder)
    ids = tokenizer.encode_with_special("a b <|im_end|>")
    return tokenizer.decode(ids), template and template.stop_ids(tokenizer)


def _load_bpe(folder: Path) -> object:
    tokenizer = Tokenizer.from_folder(folder)
    return read_vocabulary(folder), tokenizer.decode(tokenizer.encode("a b"))


def _load_book(folder: Path) -> object:
    config, tensors, n_classes = open_book(folder / "model.pth", n_heads=3)
    from gptmill.checkpoint.layouts import BOOK

    check(BOOK, config, tensors, n_classes=n_classes)
    return read_state(BOOK, config, tensors, n_classes=n_classes)


def _load_gguf(folder: Path) -> object:
    file = open_gguf(folder / "model.gguf")
    Tokenizer.from_gguf(file.fields)
    check(file.layout, file.config, file.tensors)
    return read_state(file.layout, file.config, file.tensors)


def _load_openai(folder: Path) -> object:
    config, tensors = check_model(folder), open_checkpoint(folder)
    from gptmill.checkpoint.layouts import OPENAI

    return read_state(OPENAI, config, tensors)


def _open_tokens(folder: Path) -> object:
    tokens = TokenFile.open(folder / "train.bin")
    return tokens.document_at(0), tokens.documents_in(0, len(tokens)), tokens.ids.sum()


def _load_state(folder: Path) -> object:
    path = folder / "step-000000003.safetensors"
    path.with_suffix(".sha256").write_text(sha256(path) + "\n")
    progress(folder)
    store = StateStore(folder, every=0, keep=1)
    state = store.load()
    store.close()
    return state and Snapshot.from_state(state)


def _parse_sources(folder: Path) -> object:
    content = read_json(folder / "sources.json")
    return parse(content if isinstance(content, dict) else {"source": content}, makers=MAKES)


READERS: dict[str, Reader] = {
    "GPT-2 config": Reader("config.json", _gpt2, damage_json, _load),
    "Llama config": Reader("config.json", _llama, damage_json, _load),
    "classifier config": Reader("config.json", _classifier, damage_json, _load_classifier),
    "imported config": Reader("config.json", _gpt2, damage_json, _import),
    "generation config": Reader("generation_config.json", _chatty, damage_json, _load_tokenizer),
    "imported generation config": Reader("generation_config.json", _gpt2, damage_json, _import),
    "tokenizer": Reader("tokenizer.json", _chatty, damage_json, _load_tokenizer),
    "tokenizer config": Reader("tokenizer_config.json", _chatty, damage_json, _load_tokenizer),
    "added tokens in config": Reader("tokenizer_config.json", qwen2, damage_json, _load_tokenizer),
    "added tokens": Reader("added_tokens.json", qwen2, damage_json, _load_tokenizer),
    "chat template": Reader("chat_template.jinja", _gpt2, damage_lines, _load_tokenizer),
    "vocabulary": Reader("vocab.json", _gpt2, damage_json, _load_bpe),
    "merges": Reader("merges.txt", _gpt2, damage_lines, _load_bpe),
    "safetensors": Reader("model.safetensors", _gpt2, damage_safetensors, _load),
    "index": Reader("model.safetensors.index.json", _sharded, damage_json, _load),
    "pickle": Reader("pytorch_model.bin", _pickled, damage_pickle, _load),
    "book": Reader("model.pth", _book, damage_pickle, _load_book),
    "GGUF": Reader("model.gguf", _gguf(_gpt2), damage_bytes, _load_gguf, ("the GGUF file",)),
    "GGUF of a Llama": Reader(
        "model.gguf", _gguf(_llama), damage_bytes, _load_gguf, ("the GGUF file",)
    ),
    "hparams": Reader("hparams.json", _openai, damage_json, _load_openai),
    "TensorFlow checkpoint": Reader("checkpoint", _openai, damage_lines, _load_openai),
    "TensorFlow index": Reader("model.ckpt.index", _openai, damage_index, _load_openai),
    "token header": Reader("train.json", _tokens, damage_json, _open_tokens, ("train.bin",)),
    "state": Reader(
        "step-000000003.safetensors", _state, damage_safetensors, _load_state, ("the state",)
    ),
    "adapter": Reader(
        "adapter_config.json",
        lambda folder: write_json(folder / "adapter_config.json", {"r": 8, "bias": "none"}),
        damage_json,
        check_any_model,
    ),
    "sources": Reader(
        "sources.json",
        _sources,
        damage_json,
        _parse_sources,
        ("source", "the table"),
    ),
}
