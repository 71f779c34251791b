"""`make base`: other weights to fine-tune from, by params.yaml and sources.toml alone."""

import json
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.commands.data import base
from flows.commands.data.data import read_table
from flows.sweeps.params import put
from tasks.project import graph
from tasks.project.environment import ROOT
from tests.support.project import Project, copy_tree
from tests.support.talkers import gptmill


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_tree(tmp_path_factory.mktemp("base"))


def enabled(root: Path) -> list[str]:
    return [source.name for source in read_table(root / "sources.toml")]


def content(root: Path) -> object:
    return YAML(typ="safe").load(root / "params.yaml")


def test_every_base_says_what_the_others_say() -> None:
    keys = {name: set(base.read(name).params) for name in base.names()}
    assert keys["smollm2"] == keys["pretrain"]
    assert len(set(map(frozenset, keys.values()))) == 1, "going from one to another leaves nothing"


def test_the_committed_params_are_those_of_the_default_base() -> None:
    assert base.current() == "smollm2"
    for key, value in base.read("smollm2").params.items():
        found = graph.params()
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_the_sources_of_the_bases_are_in_the_table() -> None:
    table = tomllib.loads((ROOT / "sources.toml").read_text(encoding="utf-8"))
    targets = {row["name"]: row["target"] for row in table["source"]}
    for name in base.names():
        found = base.read(name)
        if found.source is not None:
            assert found.params["load_gpt2.weights"] == f"data/{targets[found.source]}"


def test_a_base_is_taken_and_given_back(tree: Project) -> None:
    before = content(tree.root)
    assert "smollm2" in enabled(tree.root)
    done = tree.python("-m", "flows", "base", "pretrain")
    assert done.returncode == 0, done.stderr
    assert "sources.toml: smollm2 is disabled" in done.stdout
    assert "weights artifacts/pretrain" in done.stdout
    assert "weights: artifacts/pretrain" in (tree.root / "params.yaml").read_text()
    assert "smollm2" not in enabled(tree.root)
    again = tree.python("-m", "flows", "base", "pretrain")
    message = "the base is pretrain: run `make pipeline` to update the stages that use the base\n"
    assert again.stdout == message
    back = tree.python("-m", "flows", "base", "smollm2")
    assert back.returncode == 0, back.stderr
    assert "sources.toml: smollm2 is enabled" in back.stdout
    assert "smollm2" in enabled(tree.root)
    assert content(tree.root) == before


@pytest.mark.parametrize("name", base.presets())
def test_a_preset_for_a_gpu_is_estimated_and_taken(tree: Project, name: str) -> None:
    changes = base.read(name).params
    before, sources = content(tree.root), enabled(tree.root)
    words = ("estimate", "--config", f"configs/{name}.yaml", "--device", "H100", "--json")
    figures = json.loads(gptmill(*words, cwd=tree.root).stdout)
    assert figures["fits"]
    assert figures["tokens"] == changes["pretrain.steps"] * changes["pretrain.batch_tokens"]
    done = tree.python("-m", "flows", "base", name)
    assert done.returncode == 0, done.stderr
    assert f"the preset is {name}: run `make pipeline`" in done.stdout
    after = content(tree.root)
    assert enabled(tree.root) == sources
    put(before, changes)
    assert after == before


def test_a_base_that_cannot_be_fetched_names_the_base_without_a_download() -> None:
    assert "`make pipeline BASE=pretrain`" in base.way_without("smollm2")
    assert base.way_without("shakespeare") == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "source: null\nparams: {lora.epoch: 1}\n",
            "configs/bases/mine.yaml: params.yaml has no lora.epoch",
        ),
        ("source: null\nparams: {lora.epochs: 0}\n", "lora.epochs: input should be greater than 0"),
        ("source: nobody\nparams: {lora.epochs: 1}\n", "sources.toml has no source nobody"),
        ("params: {lora.epochs: 1}\n", "configs/bases/mine.yaml: source is missing"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    tree: Project, text: str, message: str
) -> None:
    before = (tree.root / "params.yaml").read_bytes()
    (tree.root / "configs/bases/mine.yaml").write_text(text)
    done = tree.python("-m", "flows", "base", "mine")
    (tree.root / "configs/bases/mine.yaml").unlink()
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tree.root / "params.yaml").read_bytes() == before


def test_an_unknown_base_is_named_beside_those_there_are(tree: Project) -> None:
    done = tree.python("-m", "flows", "base", "gpt9")
    assert done.returncode == 2
    assert done.stderr == (
        "configs/bases/gpt9.yaml does not exist: the bases are pretrain, smollm2, the presets "
        "gpu/gpt2-small\n"
    )
