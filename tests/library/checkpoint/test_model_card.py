from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from gptmill.checkpoint.checkpoint import load_causal_lm, save_causal_lm
from gptmill.checkpoint.model_card import Card, name_commit, write_card
from gptmill.origins import Origin
from tests.support.forms import llama_config, random_gpt
from tests.support.tiny import tiny_gpt, tiny_tokenizer

CARD = Card(
    name="A small model",
    task="text-generation",
    summary="A GPT of a few letters.",
    intended_use="Tests.",
    limits="It knows nothing: 1 | 2.",
    licence="Apache-2.0",
    base='owner/"name"',
    read={"train.bin": "sha256:34"},
    origins=(
        Origin(
            name="text | more",
            licence="CC0-1.0",
            attribution="Nobody",
            files=2,
            hash="sha256:12",
        ),
    ),
    metrics={"perplexity": 12.345678, "steps": 7},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_causal_lm(tmp_path, tiny_gpt(), tiny_tokenizer())
    return tmp_path


def test_the_hub_reads_the_head_of_the_card(folder: Path) -> None:
    write_card(folder, CARD)
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "base_model": 'owner/"name"',
    }


def test_a_card_says_what_is_known_and_the_same_each_time(folder: Path) -> None:
    write_card(folder, CARD)
    first = (folder / "README.md").read_bytes()
    write_card(folder, CARD)
    assert (folder / "README.md").read_bytes() == first
    text = first.decode()
    count = sum(parameter.numel() for parameter in tiny_gpt().parameters())
    assert f"| parameters | {count:,} |" in text
    assert "Made from `train.bin` (`sha256:34`)." in text
    assert "| text \\| more | CC0-1.0 | Nobody | 2 | `sha256:12` |" in text
    assert "| perplexity | 12.35 |\n| steps | 7 |" in text
    assert "commit" not in text
    assert str(folder) not in text
    assert load_causal_lm(folder).config == tiny_gpt().config  # the card is in nobody's way


def test_the_commit_and_a_llamas_shape_are_in_it(tmp_path: Path) -> None:
    save_causal_lm(tmp_path, random_gpt(llama_config()), tiny_tokenizer())
    write_card(tmp_path, replace(CARD, read={}, origins=(), metrics={}, licence=None))
    name_commit(tmp_path, "0123abc")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "Made by gptmill at commit `0123abc`. The commit's dvc.lock records the weights." in text
    assert "| key-value heads | 2 |" in text
    assert 'license: "unknown"' in text
    assert "## Data" not in text


def test_an_empty_card_is_refused() -> None:
    with pytest.raises(ValueError, match="a card's limits is empty"):
        replace(CARD, limits=" ")


@pytest.mark.parametrize(
    ("licence", "known"), [("CC0-1.0", "cc0-1.0"), ("mine, ask me", "other"), (None, "unknown")]
)
def test_a_licence_is_one_that_the_hub_knows(folder: Path, licence: str | None, known: str) -> None:
    write_card(folder, replace(CARD, licence=licence))
    assert ModelCard.load(folder / "README.md").data.license == known
