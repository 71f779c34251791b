from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gptmill.checkpoint import save_causal_lm
from gptmill.tokenizer import Tokenizer
from helpers import tiny_config, tiny_gpt, tiny_merges, tiny_tokenizer
from tasks.load_gpt2 import LoadGpt2, check_vocabulary, load_gpt2, tensor_table


class FakeRun:
    """What the body needs of a run, on folders of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"
        self.shown: dict[str, object] = {}

    def path(self, path: str) -> Path:
        return self.root / path

    def input(self, stage: str) -> Path:
        return self.root / "artifacts" / stage

    def show(self, title: str, content: object) -> None:
        self.shown[title] = content


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    tokenizer = tmp_path / "artifacts" / "tokenize" / "tokenizer"
    tokenizer.mkdir(parents=True)
    tiny_tokenizer().save(tokenizer, context_length=32)
    save_causal_lm(tmp_path / "weights", tiny_gpt(), tiny_tokenizer())
    return FakeRun(tmp_path)


def body(run: FakeRun) -> dict[str, float | int | str]:
    return load_gpt2.body(LoadGpt2(weights="weights"), run)  # type: ignore[arg-type]


def test_our_own_weights_come_out_as_they_went_in(run: FakeRun) -> None:
    metrics = body(run)
    for path in sorted((run.root / "weights").iterdir()):
        assert (run.out / path.name).read_bytes() == path.read_bytes(), path.name
    assert metrics == {
        "n_parameters": sum(parameter.numel() for parameter in tiny_gpt().parameters()),
        "n_layers": 2,
        "n_heads": 3,
        "emb_dim": 24,
        "context_length": 32,
    }
    assert list(run.shown) == ["tensors"]


def test_the_hubs_folder_needs_no_tokenizer_files(run: FakeRun) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (run.root / "weights" / name).unlink()
    body(run)
    assert Tokenizer.from_folder(run.out).fingerprint == tiny_tokenizer().fingerprint


def test_weights_of_another_vocabulary_size_are_refused(run: FakeRun) -> None:
    save_causal_lm(run.root / "weights", tiny_gpt(tiny_config(vocab_size=300)), tiny_tokenizer())
    with pytest.raises(ValueError, match=r"the weights know 300 ids, .* has 317"):
        body(run)
    assert not run.out.exists()


def test_the_same_number_of_other_tokens_is_refused(run: FakeRun, tmp_path: Path) -> None:
    merges = tiny_merges()
    other = Tokenizer([*merges[:-2], merges[-1], merges[-2]])
    folder = tmp_path / "other"
    save_causal_lm(folder, tiny_gpt(), other)
    for wrong in (folder, resaved(folder, tmp_path / "resaved")):
        with pytest.raises(ValueError, match=r"its vocabulary gives other ids"):
            check_vocabulary(wrong, tiny_config(), tiny_tokenizer())


def resaved(folder: Path, path: Path) -> Path:
    """Return the folder as transformers writes it: a tokenizer.json and no vocab.json."""
    AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    assert not (path / "vocab.json").exists()
    return path


def test_a_folder_without_weights_is_refused_before_any_work(run: FakeRun) -> None:
    (run.root / "weights" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights: no weights"):
        body(run)
    assert not run.out.exists()


def test_the_table_names_each_kind_of_tensor_once() -> None:
    table = tensor_table(tiny_gpt())
    assert table["tensor"].is_unique
    assert table.iloc[0].to_dict() == {"tensor": "transformer.wte.weight", "shape": "317 x 24"}
    assert "transformer.h.*.mlp.c_fc.weight" in set(table["tensor"])
