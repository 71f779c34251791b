import random
import re
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from gptmill.data.near_duplicates import jaccard, shingles, words
from gptmill.data.parts import PARTS, Fractions, draw
from gptmill.data.row_files import fold, read_labelled
from gptmill.data.splits import Split, content, split_instructions, split_labelled

LABELLED = Fractions(train=0.7, validation=0.1, test=0.2)
INSTRUCTIONS = Fractions(train=0.85, validation=0.05, test=0.1)
split_texts = partial(split_labelled, fractions=LABELLED, near_duplicates=0.5)
split_prompts = partial(split_instructions, fractions=INSTRUCTIONS, near_duplicates=0.5)


def labelled(ham: int = 87, spam: int = 13) -> pd.DataFrame:
    rows = [("ham", f"see you at {n}") for n in range(ham)]
    rows += [("spam", f"win prize {n}") for n in range(spam)]
    return pd.DataFrame(rows, columns=["label", "text"])


def instructions(rows: int = 200) -> pd.DataFrame:
    kinds = ("synonym", "antonym")
    records = [(f"Do {n}.", "", f"Done {n}.", kinds[n % 2]) for n in range(rows)]
    return pd.DataFrame(records, columns=["instruction", "input", "output", "kind"])


def campaigns(count: int = 150, *, seed: int = 3) -> pd.DataFrame:
    """Return texts, every third with up to three near-duplicates, in random order."""
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        text = rng.choices([f"word{n}" for n in range(300)], k=14)
        copies = rng.randrange(4) if number % 3 == 0 else 0
        texts += [" ".join([*text[:-1], f"code{rng.randrange(10**6)}"]) for _ in range(copies + 1)]
    rng.shuffle(texts)
    labels = [("ham", "spam")[number % 2] for number in range(len(texts))]
    return pd.DataFrame({"label": labels, "text": texts})


def part_of(split: Split, column: str = "text") -> dict[str, str]:
    return {text: part for part, table in split.parts.items() for text in table[column]}


def rows_of(split: Split) -> list[tuple[str, ...]]:
    return sorted(tuple(row) for part in split.parts.values() for row in part.to_numpy())


def test_the_parts_are_the_whole_set_in_about_the_stated_sizes_and_label_ratios() -> None:
    split = split_texts(labelled(435, 65), seed=1)
    assert rows_of(split) == sorted(tuple(row) for row in labelled(435, 65).to_numpy())
    for label, total in (("ham", 435), ("spam", 65)):
        for part, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
            count = (split.parts[part]["label"] == label).sum()
            assert abs(count - share * total) <= 3 * (share * (1 - share) * total) ** 0.5


def test_a_part_is_a_threshold_on_a_hash_of_seed_and_text() -> None:
    parts = part_of(split_texts(labelled(), seed=1))
    for text, part in parts.items():
        number = draw(fold(text), seed=1)
        assert part == ("test" if number < 0.2 else "validation" if number < 0.3 else "train")


def test_near_duplicates_share_a_part() -> None:
    table = campaigns()
    split = split_texts(table, seed=1)
    sets = {text: shingles(words(text)) for text in table["text"]}
    parts = part_of(split)
    near = [(a, b) for a in parts for b in parts if a < b and jaccard(sets[a], sets[b]) >= 0.5]
    assert len(near) > 50
    assert all(parts[a] == parts[b] for a, b in near)
    counts = split.counts
    assert (counts["groups"], counts["near_two_parts"]) == (150, 0)
    assert counts["near_duplicates"] == len(table) - 150
    assert counts["near_test_rows_in_train"] == 0 < counts["row_by_row_near_test_rows_in_train"]
    assert len(split.near) == 5
    similarities = {round(jaccard(sets[a], sets[b]), 4) for a, b in near}
    for example in split.near.to_dict("records"):
        assert example["similarity"] in similarities
        assert example["part"] == example["twin part"]
        assert example["part alone"] != example["twin part alone"]
        texts = split.parts[example["part"]]["text"]
        assert any(text.startswith(example["twin begins"]) for text in texts)


def test_rows_added_at_the_end_move_no_row() -> None:
    table = pd.concat([campaigns(), labelled(60, 60)], ignore_index=True)
    twins = campaigns()[:100].assign(
        text=lambda t: t["text"].str.replace(r"code\d+", "late", regex=True)
    )
    before = part_of(split_texts(table, seed=1))
    longer = pd.concat([table, twins, campaigns(seed=4)], ignore_index=True)
    after = part_of(split_texts(longer, seed=1))
    assert {text: after[text] for text in before} == before
    assert len(after) > len(before) + 200


def test_a_new_row_near_rows_of_two_parts_is_left_out_and_moves_neither() -> None:
    for number in range(20):
        middle = [f"{number}x{n}" for n in range(20)]
        start, end = ([f"{number}{name}{n}" for n in range(5)] for name in "ab")
        first, second, bridge = (
            " ".join(words) for words in (start + middle[5:], middle[:15] + end, middle)
        )
        rows = pd.DataFrame({"label": "spam", "text": [first, second, bridge]})
        before = part_of(split_texts(pd.concat([labelled(), rows[:2]], ignore_index=True), seed=1))
        split = split_texts(pd.concat([labelled(), rows], ignore_index=True), seed=1)
        after = part_of(split)
        apart = before[first] != before[second]
        assert {text: after[text] for text in before} == before
        assert (bridge not in after) == apart == split.counts["near_two_parts"]
        if apart:
            return
    pytest.fail("no two rows fell into different parts")


def test_a_label_with_few_rows_has_a_row_in_every_part() -> None:
    for seed in range(12):
        split = split_texts(labelled(40, 3), seed=seed)
        for table in split.parts.values():
            assert set(table["label"]) == {"ham", "spam"}


def test_prompts_are_grouped_by_content_and_not_by_template() -> None:
    assert content("What is the opposite of 'sudden'?", "") == ["sudden"]
    assert content("Provide an antonym.", "Sudden") == ["sudden"]
    assert content("Don't say what 'it's' means, it isn't nice.", "") == ["it", "s"]
    assert content("What is the capital of France?", "") == ["capital", "france"]
    assert content("Who are you?", "") == ["who", "are", "you"]
    asked = [f"What is the opposite of 'word{n}'?" for n in range(100)]
    again = [f"Give the word with a meaning opposite to the word 'word{n}'." for n in range(100)]
    table = pd.DataFrame({"instruction": asked + again, "input": "", "output": "x", "kind": "a"})
    split = split_prompts(table, seed=1)
    parts = part_of(split, "instruction")
    assert split.counts["groups"] == 100
    assert all(parts[one] == parts[other] for one, other in zip(asked, again, strict=True))
    apart = split_prompts(table.assign(kind=["a", "b"] * 50 + ["b", "a"] * 50), seed=1)
    assert apart.counts["groups"] == 200


def test_the_split_is_a_function_of_seed_and_text_and_not_of_the_order_of_rows():
    table = labelled()
    here = split_texts(table, seed=1)
    again = split_texts(table.sample(frac=1, random_state=3), seed=1)
    other = split_texts(table, seed=2)
    for name in PARTS:
        assert sorted(here.parts[name]["text"]) == sorted(again.parts[name]["text"])
        assert sorted(here.parts[name]["text"]) != sorted(other.parts[name]["text"])


def test_duplicates_go_before_the_split_and_what_they_would_have_leaked_is_counted():
    doubled = pd.concat([labelled(), labelled().assign(text=lambda t: t["text"].str.upper() + " ")])
    doubled = doubled.reset_index(drop=True)
    split = split_texts(doubled, seed=1)
    assert rows_of(split) == rows_of(split_texts(labelled(), seed=1))
    assert split.counts["removed"] == 100
    texts = {name: set(part["text"].map(fold)) for name, part in split.parts.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    # Each row has one twin; it is in the other part about as often as that part is large.
    assert 15 <= split.counts["with_duplicates_test_rows_in_train"] <= 40
    clean = split_texts(labelled(), seed=1)
    assert clean.counts["with_duplicates_test_rows_in_train"] == 0


def test_a_text_with_two_labels_is_left_out():
    odd = pd.DataFrame({"label": ["ham", "spam"], "text": ["Call me", "call  ME"]})
    split = split_texts(pd.concat([labelled(), odd], ignore_index=True), seed=1)
    assert "call me" not in {fold(row[1]) for row in rows_of(split)}
    assert (split.counts["conflicting"], split.counts["removed"]) == (1, 2)


def test_of_equal_prompts_one_is_kept_whatever_it_answers():
    twins = instructions().assign(output="Something else.")
    split = split_prompts(pd.concat([instructions(), twins], ignore_index=True), seed=1)
    assert rows_of(split) == rows_of(split_prompts(instructions(), seed=1))
    assert (split.counts["conflicting"], split.counts["removed"]) == (200, 200)


def test_input_is_part_of_the_prompt():
    table = instructions().assign(instruction="Do.", input=[f"{n}" for n in range(200)])
    assert split_prompts(table, seed=1).counts["removed"] == 0


def test_labels_are_trimmed_and_counted(tmp_path: Path):
    path = tmp_path / "some.csv"
    odd = ["spam", "spam ", "\u00a0spam", "spam\u200b", "\ufeffspam\t"]
    rows = [f"{odd[n % 5]},win {n}" for n in range(50)] + [f"ham,see you {n}" for n in range(50)]
    path.write_text("\n".join(["label,text", *rows]) + "\n", encoding="utf-8")
    split = split_texts(read_labelled(path), seed=1)
    assert {label for part in split.parts.values() for label in part["label"]} == {"ham", "spam"}
    assert split.counts["trimmed_labels"] == 40


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (labelled(spam=0), "too few labels (ham)"),
        (labelled(spam=2), "label 'spam' has 2 distinct rows in 2 groups"),
        (
            labelled().assign(
                text=lambda t: t["label"] + " a text with many equal words " + t["text"]
            ),
            "label 'ham' has 87 distinct rows in 1 groups of near-duplicates, too few for the",
        ),
    ],
)
def test_labels_that_cannot_be_in_each_part_are_named(table: pd.DataFrame, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        split_texts(table, seed=1)


def test_too_few_instructions_are_named():
    with pytest.raises(ValueError, match="has 2 distinct rows in 2 groups"):
        split_prompts(instructions(2), seed=1)


@pytest.mark.parametrize("given", [(0.7, 0.2, 0.2), (1.0, 0.0, 0.0), (1.2, -0.1, -0.1)])
def test_fractions_are_a_whole(given: tuple[float, float, float]):
    with pytest.raises(ValueError, match="together they must be 1"):
        Fractions(*given)
