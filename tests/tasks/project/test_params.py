"""A bad param stops before any work, with the section, the key, the value and what is allowed."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.commands.data.data import read_table
from flows.commands.inspect import params
from flows.sweeps.params import edited
from tasks.frame.stage import load
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.project.params import checked
from tasks.tracking.runs import flatten
from tests.support.project import Project, commit

MISTAKES = [
    ("pretrain", "pretrain.stepz", 10, "pretrain.stepz is unknown"),
    ("pretrain", "pretrain.steps", None, "pretrain.steps is missing"),
    ("pretrain", "pretrain.steps", "many", "pretrain.steps: input should be a valid integer"),
    ("pretrain", "pretrain.steps", True, "pretrain.steps: input should be a valid integer"),
    ("pretrain", "pretrain.steps", 0, "pretrain.steps: input should be greater than 0 (given: 0)"),
    ("pretrain", "pretrain.shape", "huge", "allowed are"),
    ("pretrain", "pretrain.optimizer.beta_1", 1.5, "beta_1 is 1.5"),
    ("pretrain", "pretrain.optimizer.momentum", 1, "pretrain.optimizer.momentum is unknown"),
    ("sample", "sample.windows.stride", -1, "stride is -1"),
    ("tokenize", "tokenize.validation_fraction", 2.0, "validation_fraction"),
    ("lora", "lora.adapter.rank", 0, "rank is 0"),
    ("classify", "classify.trainable", "first", "classify.trainable"),
    ("instruct", "instruct.mask_prompt", "yes", "instruct.mask_prompt"),
    ("evaluate", "evaluate.resamples", -5, "evaluate.resamples"),
    ("split", "split.labelled_fractions.train", 0.9, "split.labelled_fractions"),
    ("load_gpt2", "load_gpt2.weights", 3, "load_gpt2.weights"),
]


@pytest.mark.parametrize(("stage", "where", "value", "message"), MISTAKES)
def test_one_sentence_for_each_mistake(
    monkeypatch: pytest.MonkeyPatch, stage: str, where: str, value: object, message: str
) -> None:
    content = copy.deepcopy(graph.params())
    *path, last = where.split(".")
    section: Any = content
    for part in path:
        section = section[part]
    if value is None:
        del section[last]
    else:
        section[last] = value
    monkeypatch.setattr(graph, "params", lambda: content)
    with pytest.raises(ValueError, match=r"^params\.yaml: ") as error:
        load(stage).params()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


WEIGHTS = "data/weights/a"


@pytest.mark.parametrize(
    ("vocabulary", "start", "message"),
    [
        ("data/bpe", "random", None),
        ("data/text", "random", None),
        (WEIGHTS, "random", None),
        (WEIGHTS, WEIGHTS, None),
        ("gpt2", "random", "tokenize.vocabulary is gpt2; allowed are data/bpe"),
        ("artifacts/load_gpt2", "random", "tokenize.vocabulary is artifacts/load_gpt2; allowed"),
        ("data/weights/../bpe", "random", "tokenize.vocabulary is data/weights/../bpe; allowed"),
        ("data/bpe", "artifacts/load_gpt2", "pretrain.start is artifacts/load_gpt2; allowed are"),
        ("data/bpe", "data/weights/", "pretrain.start is data/weights/; allowed are random"),
        ("data/bpe", WEIGHTS, f"set tokenize.vocabulary to {WEIGHTS}, or pretrain.start to random"),
        ("data/weights/b", WEIGHTS, "but tokenize.vocabulary is data/weights/b: weights know only"),
    ],
)
def test_vocabulary_and_first_weights_fit_or_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vocabulary: str,
    start: str,
    message: str | None,
) -> None:
    monkeypatch.setattr(graph, "ROOT", tmp_path)
    content = {"tokenize": {"vocabulary": vocabulary}, "pretrain": {"start": start}}
    (tmp_path / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    graph.forget()
    try:
        if message is None:
            assert graph.params() == content
            return
        with pytest.raises(ValueError, match=r"^params\.yaml: ") as error:
            graph.params()
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    finally:
        graph.forget()


@pytest.mark.parametrize("weights", ["artifacts/load_gpt2", "artifacts/instruct"])
def test_stages_that_need_each_other_are_refused_with_the_param(
    monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    content = copy.deepcopy(graph.params())
    content["load_gpt2"]["weights"] = weights
    monkeypatch.setattr(graph, "params", lambda: content)
    graph.stages.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"^the stages .* need each other's outputs") as error:
            graph.stages()
    finally:
        graph.stages.cache_clear()
    assert f"change load_gpt2.weights ({weights})" in str(error.value)


@pytest.mark.parametrize(
    ("vocabulary", "stale"),
    [
        ("data/bpe", {"load_gpt2"}),
        ("data/text", {"load_gpt2"}),
        (WEIGHTS, {"tokenize", "pretrain", "load_gpt2", "evaluate"}),
    ],
)
def test_weights_are_deps_of_the_stages_that_use_them(
    monkeypatch: pytest.MonkeyPatch, vocabulary: str, stale: set[str]
) -> None:
    content = copy.deepcopy(graph.params())
    content["tokenize"]["vocabulary"] = vocabulary
    monkeypatch.setattr(graph, "params", lambda: content)
    graph.stages.cache_clear()
    try:
        deps = {name: graph.inputs(name) for name in graph.stages()}
    finally:
        graph.stages.cache_clear()
    read = ("data/weights/", "data/manifest/weights.json")
    assert {name for name in deps if any(path.startswith(read) for path in deps[name])} == stale


def test_a_missing_section_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "params", lambda: {"seed": 1})
    with pytest.raises(ValueError, match=r"params\.yaml has no section `pretrain`"):
        load("pretrain").params()


def test_a_whole_number_serves_as_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "params", lambda: {"rate": 1})
    assert checked(float, "rate") == 1.0


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "ROOT", tmp_path)
    (tmp_path / "params.yaml").write_text("a: 3e-4\nb: 1e-05\n", encoding="utf-8")
    assert graph.read_yaml(tmp_path / "params.yaml") == {"a": 3e-4, "b": 1e-5}


def test_a_byte_order_mark_is_no_content_and_other_encodings_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "ROOT", tmp_path)
    for name, read, text in (
        ("params.yaml", graph.read_yaml, "a: 1\r\nb: 2\r\n"),
        ("sources.toml", read_table, (ROOT / "sources.toml").read_text(encoding="utf-8")),
    ):
        path = tmp_path / name
        path.write_bytes(text.encode())
        plain = read(path)
        path.write_bytes(text.encode("utf-8-sig"))
        assert read(path) == plain
        for encoding in ("utf-16", "utf-16-le", "utf-32"):
            path.write_bytes(text.encode(encoding))
            with pytest.raises(ValueError, match=f"^{name} is not (plain|UTF-8) text"):
                read(path)


def test_no_section_has_a_default() -> None:
    for name in graph.stages():
        fields = load(name).section.model_fields
        assert all(field.is_required() for field in fields.values()), name


# what stages share


def test_every_stage_has_its_own_block_of_what_is_shared() -> None:
    """A block that two stages had in common would be set for both by `-S` on one."""
    content = YAML().load(ROOT / "params.yaml")
    blocks = [
        id(block)
        for name, section in content.items()
        if isinstance(section, dict)
        for block in section.values()
        if isinstance(block, dict)
    ]
    assert len(blocks) == len(set(blocks))
    assert len((ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()) <= 140


def test_a_value_put_into_one_stage_is_no_other_s() -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert edited(text, {}) == text
    before, after = (
        YAML(typ="safe").load(content) for content in (text, edited(text, {"lora.guard.spike": 9}))
    )
    assert after["lora"].pop("guard") == {**before["lora"].pop("guard"), "spike": 9}
    assert after == before


def test_a_shared_value_that_no_stage_takes_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dvc exp run -S shared.optimizer.warmup=0.7` leaves just that."""
    content = json.loads(json.dumps(graph.params()))
    content["shared"]["optimizer"]["warmup"] = 0.7
    monkeypatch.setattr(graph, "ROOT", tmp_path)
    YAML().dump(content, tmp_path / "params.yaml")
    message = r"shared\.optimizer\.warmup is 0\.7, .* -S pretrain\.optimizer\.warmup="
    with pytest.raises(ValueError, match=message):
        graph.params.__wrapped__()


def test_a_shared_value_that_every_stage_replaces_lets_experiments_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(json.dumps(graph.params()))
    for section in content.values():
        if isinstance(section, dict) and "optimizer" in section:
            section["optimizer"]["warmup"] = 0.3
    content["shared"]["optimizer"]["warmup"] = 0.7
    YAML().dump(content, tmp_path / "params.yaml")
    project = Project(tmp_path)
    assert project.run("git", "init", "-q").returncode == 0
    commit(project, "own values in every stage")
    monkeypatch.setattr(graph, "ROOT", tmp_path)
    content["pretrain"]["steps"] = 3  # as after `-S pretrain.steps=3`
    YAML().dump(content, tmp_path / "params.yaml")
    assert graph.params.__wrapped__()["pretrain"]["steps"] == 3


def test_make_params_prints_what_each_stage_gets(capsys: pytest.CaptureFixture[str]) -> None:
    assert params.main(["lora"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "lora.optimizer.warmup: 0.1" in lines
    assert {line.split(":")[0].split(".")[0] for line in lines} == {"seed", "runtime", "lora"}
    assert params.main([]) == 0
    printed = capsys.readouterr().out.splitlines()
    sections = {name: value for name, value in graph.params().items() if name != "shared"}
    assert len(printed) == len(flatten(sections))


def test_dvc_sets_one_stage_s_value_and_no_other(tmp_path: Path) -> None:
    project = Project(tmp_path)
    for words in (("git", "init", "-q"), ("dvc", "init", "-q")):
        assert project.run(*words).returncode == 0
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    stages = {name: {"cmd": "true", "params": [name]} for name in graph.stages()}
    YAML().dump({"stages": stages}, tmp_path / "dvc.yaml")
    commit(project, "params that are shared")
    done = project.run("dvc", "exp", "run", "-S", "lora.optimizer.warmup=0.7")
    assert done.returncode == 0, done.stderr
    told = json.loads(project.run("dvc", "params", "diff", "--json").stdout)
    assert list(told["params.yaml"]) == ["lora.optimizer.warmup"]
