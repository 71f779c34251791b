"""The section `gate` of params.yaml: the rule of each kind of model."""

from pydantic import BaseModel, ConfigDict, Field

from gptmill.comparing.rule import PRIMARY, Rule
from tasks.project.params import checked


class Gate(BaseModel):
    """The section: a rule for each kind, and no unknown key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    generator: Rule
    classifier: Rule
    classifier_lora: Rule = Field(alias="classifier-lora")
    assistant: Rule


def rules() -> dict[str, Rule]:
    """Return the rule of each kind; raise ValueError with one line per mistake."""
    gate = checked(Gate, "gate")
    found = {
        "generator": gate.generator,
        "classifier": gate.classifier,
        "classifier-lora": gate.classifier_lora,
        "assistant": gate.assistant,
    }
    mistakes = [
        f"params.yaml: gate.{kind}.primary is {rule.primary}: allowed are "
        f"{', '.join(PRIMARY[kind])}"
        for kind, rule in found.items()
        if rule.primary not in PRIMARY[kind]
    ]
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return found


def mistake() -> str | None:
    """Return the mistakes of the section, None without a mistake."""
    try:
        rules()
    except ValueError as error:
        return str(error)
    return None
