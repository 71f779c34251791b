"""Comparisons of whole sides: equal, shuffled, with planted differences, too few rows, damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gptmill.comparing import significance
from gptmill.comparing.comparison import Comparison, as_json, compare
from gptmill.comparing.page import render
from gptmill.comparing.section import Section
from gptmill.comparing.side import Side, changes
from gptmill.files import write_csv
from tests.library.comparing.planted import ROWS, trained_rows, write_side
from tests.support.browser import FOUND, browser


def compared(first: Side, second: Side) -> Comparison:
    return compare(first, Side("B", second.name, second.folder), device="cpu")


def section(comparison: Comparison, name: str) -> Section:
    return next(part for part in comparison.sections if part.name == name)


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {f"{part.name} {figure.name}": figure.verdict for part, figure in comparison.figures}


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 2000)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Side:
    return write_side(tmp_path_factory.mktemp("side") / "first")


def test_a_side_does_not_differ_from_itself_in_any_order(first: Side, tmp_path: Path) -> None:
    shuffled = write_side(tmp_path / "shuffled", rows=np.random.default_rng(1).permutation(ROWS))
    for other in (first, shuffled):
        comparison = compared(first, other)
        assert set(verdicts(comparison).values()) == {"same"}
        assert {figure.corrected for _, figure in comparison.figures} == {1.0}
        assert comparison.verdict == "No significant difference between A and B on 9 figures."
        assert section(comparison, "classify").rows == ROWS


def test_a_planted_loss_of_5_points_is_found_and_shown(first: Side, tmp_path: Path) -> None:
    comparison = compared(first, write_side(tmp_path / "second", wrong=80))
    assert set(verdicts(comparison).values()) == {"worse"}
    accuracy = section(comparison, "classify").figures[0]
    assert accuracy.sentence.startswith("B is worse on accuracy by 5.0 points, ")
    assert comparison.verdict.startswith("B is worse on accuracy (classify), F1 of spam (classify)")
    stops = section(comparison, "exercises").figures[-1]
    assert stops.sentence.startswith("B is worse on answers that stop by 25.0 points, ")
    assert section(comparison, "exercises").notes[-1] == (
        "length in words of the expected answers: 1.85 in A, 1.60 in B; share of four-word runs "
        "that repeat an earlier run: 0.000 in A, 0.000 in B"
    )
    back = compared(Side("A", "second", tmp_path / "second"), first)
    assert set(verdicts(back).values()) == {"better"}
    json.dumps(as_json(comparison), allow_nan=False)

    page = render(comparison)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "A right, B wrong: 50; both wrong: 30" in page
    assert page.index("<p>text 30</p>") < page.index("both wrong</span>")
    assert page.count("<svg") == 1
    assert not [
        word for word in ("src=", "url(http", "@import", '<link rel="style') if word in page
    ]


def test_rows_that_a_side_was_trained_on_are_left_out(first: Side, tmp_path: Path) -> None:
    second = write_side(tmp_path / "second")
    seen = trained_rows(*(f"TEXT  {k}" for k in range(100, 110)))
    write_csv(second.folder / "split/labelled/train.csv", seen)
    assert section(compared(first, second), "classify").rows == ROWS - 10
    (second.folder / "split/labelled/train.csv").unlink()
    notes = section(compared(first, second), "classify").notes
    assert "the training rows of B are not known" in notes[1]


def test_fewer_than_30_common_rows_give_no_verdict(first: Side, tmp_path: Path) -> None:
    second = write_side(tmp_path / "second", rows=range(ROWS - 29, 2 * ROWS))
    comparison = compared(first, second)
    assert section(comparison, "classify").missing == (
        "29 test rows compared: of 1,000 in A and 1,029 in B, 29 are in both, and 0 of these were "
        "left out, since A or B was trained on them; a verdict needs at least 30 rows"
    )
    assert "Not compared: 29 test rows" in render(comparison)
    assert len(comparison.figures) == 6


def test_predictions_without_texts_have_those_of_the_split(first: Side, tmp_path: Path) -> None:
    second = write_side(tmp_path / "second")
    path = second.folder / "classify/predictions.csv"
    table = pd.read_csv(path)
    write_csv(second.folder / "split/labelled/test.csv", table[["label", "text"]])
    write_csv(path, table[["label", "p_ham", "p_spam"]])
    assert section(compared(first, second), "classify").rows == ROWS
    write_csv(path, table[["label", "p_ham", "p_spam"]].iloc[::-1])
    assert "has other rows" in section(compared(first, second), "classify").missing


def _edit(path: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_text((folder / path).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_edit("classify/predictions.csv", "label", "class"), "has no column label"),
        (_edit("classify/predictions.csv", "0.9", "high"), "is not a number"),
        (_edit("classify/predictions.csv", "p_spam", "p_junk"), "a column p_LABEL"),
        (_edit("instruct/answers.json", '"answer"', '"reply"'), "has no column answer"),
        (_edit("instruct/answers.json", "[", "{"), "is not UTF-8 JSON"),
        (_edit("evaluate/general_answers.csv", "reference", "truth"), "has no column reference"),
    ],
)
def test_a_damaged_artifact_is_named(
    first: Side, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    second = write_side(tmp_path / "second")
    damage(second.folder)
    with pytest.raises(ValueError, match=message):
        compared(first, second)


def test_sides_without_a_common_task_are_refused(first: Side, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing can be compared: classify: B .* has no class"):
        compared(first, Side("B", "empty", tmp_path))


def test_changes_are_those_of_stages_that_both_record() -> None:
    params = {"lora.rank": "8.0", "lora.alpha": "1.0"}
    whole = {**params, "classify.epochs": "3.0"}
    first = Side("A", "", Path(), record={"params": params, "commit": {"commit": "1"}})
    second = Side("B", "", Path(), record={"params": {**whole, "lora.rank": "4.0"}})
    assert [(c.name, c.first, c.second) for c in changes(first, second)] == [
        ("lora.rank", "8.0", "4.0")
    ]


@pytest.mark.slow
@pytest.mark.skipif(None in FOUND, reason="needs Chromium and its driver")
def test_the_page_fits_a_phone_without_scripts_and_network(first: Side, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render(compared(first, write_side(tmp_path / "second", wrong=80))))
    with browser(tmp_path / "profile", dark=True) as window:
        window.resize(500, 900)  # Chromium's narrowest window
        window.open(page.as_uri())
        window.run("for (const part of document.querySelectorAll('details')) part.open = true")
        wide = "return document.documentElement.scrollWidth > window.innerWidth"
        assert not window.run(wide)
        assert window.texts(".verdict")[0].startswith("B is worse on accuracy (classify)")
        assert window.run(
            "return document.querySelector('svg').getBoundingClientRect().width > 300"
        )
        assert window.log() == []
