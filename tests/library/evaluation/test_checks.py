"""Known answers of every rule."""

from typing import Any

import pytest

from gptmill.data.questions import Check, Message, Question
from gptmill.evaluation.checks import RULES, count_items, marked_items, numbers, passes, refuses

LIST = "Here are three:\n1. A red cat\n2. A dog, and a bird\n3. Cow"


def question(prompt: str = "Say a thing.", **rules: Any) -> Question:
    check = Check.model_validate(rules, strict=False) if rules else None
    messages = (Message(role="user", content=prompt),)
    return Question(id="1", kind="a", messages=messages, reference="x", check=check)


def test_every_rule_of_a_check_has_a_judge() -> None:
    assert set(RULES) == set(Check.model_fields)


@pytest.mark.parametrize(
    ("rules", "right", "wrong"),
    [
        ({"contains_any": ["owl", "red fox"]}, ["An OWL!", "a red\nfox."], ["owls", "red", "fox"]),
        ({"contains_all": ["oil", "lemon"]}, ["lemon and oil"], ["oil", "lemons, oil"]),
        ({"excludes": ["blue"]}, ["red", "bluer"], ["Blue."]),
        ({"contains_any": ["can't"]}, ["I can\u2019t"], ["cant"]),
        ({"matches": r"^[^a-z]+$"}, ["CAT."], ["Cat."]),
        ({"max_words": 2}, ["two words"], ["these are three", ""]),
        ({"items": 3}, [LIST, "a, b and c", "a; b; c", "- x\n- y\n- z"], ["a and b", "- x\n- y"]),
        ({"number": 12}, ["12", "It is twelve.", "12.0!", "= 12,"], ["112", "12.5", "-12", "no"]),
        ({"refuses": True}, ["I cannot know.", "Sorry, no."], ["You cannot miss the shop."]),
        ({"refuses": False}, ["Pour water."], ["I'm unable to help."]),
        ({"max_words": 9, "excludes": ["x"]}, ["y"], ["x", "y " * 10]),
    ],
)
def test_a_rule_tells_right_from_wrong(
    rules: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    assert [answer for answer in right if not passes(question(**rules), answer)] == []
    assert [answer for answer in wrong if passes(question(**rules), answer)] == []


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("7 plus 5 is 12", True),
        ("12 is 7 plus 5", True),
        ("7 + 5 = 7 + 3 + 2 = 12.", True),
        ("twelve", True),
        ("7, 5", False),
        ("12 or 13", False),
        ("75", False),
        ("What is 7 plus 5? 12", False),  # the prompt is repeated
    ],
)
def test_a_number_may_stand_beside_the_numbers_of_the_prompt(answer: str, right: bool) -> None:
    assert passes(question("What is 7 plus 5?", number=12), answer) is right


def test_numbers_are_read_in_digits_or_in_words() -> None:
    assert numbers("1,250.5 and -3; 7:30 on the 4th of H2O") == [1250.5, -3, 7, 4]
    assert numbers("Twenty-one or ninety nine, not seventy") == [21, 99, 70]
    assert numbers("3 of the ones") == [3]


def test_lists_are_counted_in_every_form() -> None:
    forms = ["1. a 2. b 3. c", "Three:\na\nb\nc", "They are: a, b, and c.", "* a\n* b\n* c", "a) x"]
    assert [count_items(text) for text in forms] == [3, 3, 3, 3, 1]
    assert count_items("") == 0
    assert [marked_items(text) for text in (LIST, "a, b and c", "- x")] == [3, 0, 1]


def test_refusals_in_several_words() -> None:
    told = ["I don't have access to that.", "Nobody knows.", "As an AI, I'm not able to call."]
    assert [text for text in told if not refuses(text)] == []
    assert not refuses("Do not forget to lock the door. I like it.")


def test_an_answer_without_a_check_is_not_judged() -> None:
    assert passes(question(), "anything") is None
