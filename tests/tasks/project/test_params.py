"""A bad param stops before any work, with the section, the key, the value and what is allowed."""

import copy
from typing import Any

import pytest

from tasks.frame.stage import load
from tasks.project import graph
from tasks.project.params import checked

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


def test_no_section_has_a_default() -> None:
    for name in graph.stages():
        fields = load(name).section.model_fields
        assert all(field.is_required() for field in fields.values()), name
