import subprocess
from pathlib import Path

import pytest
import torch

from gptmill.checkpoint.checkpoint import load_causal_lm, save_causal_lm, save_classifier
from gptmill.checkpoint.model_card import Card, write_card
from gptmill.files import sha256, write_json
from gptmill.formats.exporting import export_model
from gptmill.model.gpt import GPTClassifier
from gptmill.origins import Origin, manifest_origins, read_origins
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.load_gpt2 import LoadGpt2, load_gpt2, tensor_table
from tests.support.tiny import (
    tiny_bpe,
    tiny_config,
    tiny_gpt,
    tiny_merges,
    tiny_tokenizer,
)


class FakeRun:
    """What the body needs of a run, on folders of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"
        self.shown: dict[str, object] = {}

    def path(self, path: str) -> Path:
        return self.root / path

    def data(self, name: str) -> Path:
        return self.root / "data" / name

    def origins(self, path: str) -> list[Origin]:
        return manifest_origins(self.root / "data", path)

    def show(self, title: str, content: object) -> None:
        self.shown[title] = content


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    tiny_bpe(tmp_path / "data" / "bpe")
    save_causal_lm(tmp_path / "weights", tiny_gpt(), tiny_tokenizer())
    return FakeRun(tmp_path)


def body(run: FakeRun) -> dict[str, float | int | str]:
    return load_gpt2.body(LoadGpt2(weights="weights"), run)  # type: ignore[arg-type]


def test_our_own_weights_come_out_as_they_went_in(run: FakeRun) -> None:
    metrics = body(run)
    for path in sorted((run.root / "weights").iterdir()):
        assert (run.out / path.name).read_bytes() == path.read_bytes(), path.name
    assert metrics == {
        "family": "gpt2",
        "n_parameters": sum(parameter.numel() for parameter in tiny_gpt().parameters()),
        "n_layers": 2,
        "n_heads": 3,
        "emb_dim": 24,
        "context_length": 32,
    }
    assert list(run.shown) == ["tensors", "files"]


def test_the_hubs_folder_needs_no_tokenizer_files(run: FakeRun) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (run.root / "weights" / name).unlink()
    body(run)
    assert Tokenizer.from_folder(run.out).fingerprint == tiny_tokenizer().fingerprint


def test_weights_that_know_too_few_ids_are_refused(run: FakeRun) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (run.root / "weights" / name).unlink()
    few = tiny_gpt(tiny_config(vocab_size=300))
    save_causal_lm(run.root / "few", few, tiny_tokenizer())
    (run.root / "few" / "config.json").replace(run.root / "weights" / "config.json")
    (run.root / "few" / "model.safetensors").replace(run.root / "weights" / "model.safetensors")
    with pytest.raises(ValueError, match=r"the weights have 300 ids, but the tokenizer has 317"):
        body(run)
    assert not run.out.exists()


def test_weights_keep_the_tokenizer_that_they_come_with(run: FakeRun) -> None:
    own = Tokenizer(tiny_merges(20))
    config = tiny_config(vocab_size=own.n_vocab)
    save_causal_lm(run.root / "weights", tiny_gpt(config), own)
    body(run)
    assert Tokenizer.from_folder(run.out).fingerprint == own.fingerprint


def test_a_gguf_file_is_taken_with_its_tokenizer(run: FakeRun) -> None:
    source = run.root / "weights"
    (run.root / "gguf").mkdir()
    export_model(source, run.root / "gguf" / "tiny.gguf", form="gguf")
    metrics = load_gpt2.body(LoadGpt2(weights="gguf"), run)  # type: ignore[arg-type]
    assert metrics["family"] == "gpt2"
    ours, theirs = load_causal_lm(run.out), load_causal_lm(source)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert Tokenizer.from_folder(run.out).fingerprint == tiny_tokenizer().fingerprint


def test_the_card_names_where_weights_of_data_come_from(run: FakeRun) -> None:
    place = run.root / "data" / "weights" / "tiny"
    place.parent.mkdir()
    (run.root / "weights").rename(place)
    files = {
        f"weights/tiny/{path.name}": {"sha256": sha256(path), "sources": ["tiny"]}
        for path in place.iterdir()
    }
    other = {"weights/other/a.gguf": {"sha256": "1", "sources": ["other"]}}
    entry = {"licence": "Apache-2.0", "attribution": "these tests"}
    manifest = {"files": {**files, **other}, "sources": {"tiny": entry, "other": entry}}
    (run.root / "data" / "manifest").mkdir()
    write_json(run.root / "data" / "manifest" / "weights.json", manifest)
    load_gpt2.body(LoadGpt2(weights="data/weights/tiny"), run)  # type: ignore[arg-type]
    words = f"cd {run.root / 'data'} && LC_ALL=C sha256sum weights/tiny/* | sha256sum"
    done = subprocess.run(words, shell=True, capture_output=True, text=True, check=True)
    expected = f"sha256:{done.stdout.split()[0]}"
    assert [one.hash for one in read_origins(run.out / "origins.json")] == [expected]
    card = (run.out / "README.md").read_text(encoding="utf-8")
    assert f"| tiny | Apache-2.0 | these tests | {len(files)} | `{expected}` |" in card
    assert 'license: "apache-2.0"' in card


@pytest.mark.parametrize("start", [None, "data/weights/first"])
def test_the_card_of_our_own_weights_names_the_text(run: FakeRun, start: str | None) -> None:
    stage = run.root / "artifacts" / "pretrain"
    stage.parent.mkdir()
    (run.root / "weights").rename(stage)
    texts = [
        Origin(name="text", licence="a | b", attribution="", files=1, hash="sha256:1"),
        Origin(name="more", licence="mine", attribution="me, and others", files=3, hash="sha256:2"),
    ]
    uses = {"intended_use": "any", "limits": "none"}
    card = Card(name="a", task="text-generation", summary="s", origins=tuple(texts), **uses)
    write_card(stage, card)
    write_json(stage / "details.json", {} if start is None else {"start": start})
    files = {"weights/first/model.safetensors": {"sha256": "3", "sources": ["first"]}}
    sources = {"first": {"licence": "MIT", "attribution": "them"}}
    (run.root / "data" / "manifest").mkdir()
    write_json(run.root / "data/manifest/weights.json", {"files": files, "sources": sources})
    load_gpt2.body(LoadGpt2(weights="artifacts/pretrain"), run)  # type: ignore[arg-type]
    first = Origin(name="first", licence="MIT", attribution="them", files=1, hash="sha256:3")
    assert read_origins(run.out / "origins.json") == [*texts, *([first] if start else [])]


def test_a_classifier_is_no_base(run: FakeRun) -> None:
    classifier = GPTClassifier.from_gpt(tiny_gpt(), 2)
    save_classifier(run.root / "weights", classifier, tiny_tokenizer(), class_names=["a", "b"])
    with pytest.raises(ValueError, match="weights is a classifier"):
        body(run)


def test_a_folder_without_weights_is_refused_before_any_work(run: FakeRun) -> None:
    (run.root / "weights" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights has no weights"):
        body(run)
    assert not run.out.exists()


def test_the_table_names_each_kind_of_tensor_once() -> None:
    table = tensor_table(tiny_gpt())
    assert table["tensor"].is_unique
    assert table.iloc[0].to_dict() == {"tensor": "transformer.wte.weight", "shape": "317 x 24"}
    assert "transformer.h.*.mlp.c_fc.weight" in set(table["tensor"])
