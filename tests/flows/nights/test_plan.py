"""Parameters of the pipeline flow: the form, and mistakes in a sentence before any stage."""

import tomllib
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from flows.commands.data import base
from flows.nights import plan
from flows.nights.plan import Plan
from flows.pipeline import pipeline
from tasks.project.graph import stages


def test_the_form_has_a_description_for_every_parameter_and_lists_to_choose_from() -> None:
    fields = parameter_schema(pipeline).properties
    assert set(fields) == {"base", "stages", "overrides", "force", "push", "data"}
    assert all(len(field["description"]) > 20 for field in fields.values())
    assert fields["base"]["enum"] == ["keep", *base.names(), *base.presets()]
    assert fields["stages"]["items"]["enum"] == [*stages()]
    assert fields["overrides"]["type"] == "object"
    assert {fields[name]["type"] for name in ("force", "push", "data")} == {"boolean"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"base": "gpt9"}, "base: gpt9 is unknown; allowed are keep, pretrain, smollm2"),
        ({"stages": ["train"]}, "stages: train is unknown; allowed are tokenize, sample, pretrain"),
        (
            {"overrides": {"pretrain.rate": 1}},
            "overrides: params.yaml has no pretrain.rate; a key is a stage and a name",
        ),
        (
            {"overrides": {"lora.epochs": 0}},
            "overrides: params.yaml: lora.epochs: input should be greater than 0 (given: 0)",
        ),
        (
            {"overrides": {"lora.epochs": "two"}},
            'params.yaml: lora.epochs: input should be a valid integer (given: "two")',
        ),
        ({"overrides": {"gate.generator": {}}}, "overrides: no stage reads the section gate"),
        (
            {"overrides": {"lora.optimizer": {}, "lora.optimizer.warmup": 0.1}},
            "overrides: lora.optimizer.warmup is set by lora.optimizer already: remove either",
        ),
        (
            {"overrides": {"tokenize.vocabulary": "words"}},
            "params.yaml: tokenize.vocabulary is words; allowed are data/bpe",
        ),
        ({"push": True}, "push is on, but DVC has no remote: `dvc remote add --default NAME URL`"),
    ],
)
def test_a_mistake_is_a_sentence(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  the sentence is compared below
        Plan(**asked).check()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_another_base_or_overrides_work_apart_from_the_user_s_tree() -> None:
    assert not Plan(base=base.current()).is_apart
    assert not Plan(stages=["evaluate"], force=True).is_apart
    assert Plan(overrides={"lora.epochs": 1}).is_apart
    other = Plan(base="pretrain", overrides={"lora.epochs": 2})
    other.check()
    assert other.is_apart
    files = other.files()
    assert "weights: artifacts/pretrain" in files["params.yaml"]
    rows = {row["name"]: row for row in tomllib.loads(files["sources.toml"])["source"]}
    assert rows["smollm2"]["enabled"] is False
    assert other.name().endswith("base pretrain, epochs 2")
    assert plan.Plan().chosen == [*stages()]
