"""The report on a run: escaped texts, answers, mistakes, intervals, and a phone."""

from pathlib import Path

import pytest

from gptmill.comparing.report.facts import Facts
from gptmill.comparing.report.page import render
from gptmill.comparing.side import Side
from gptmill.figures import write_figures
from tests.library.comparing.planted import write_side
from tests.support.browser import FOUND, browser

REPORT = """## Main figures

| task | value |
| --- | --- |
| exercises | 0.5 (0.4 to 0.6) |

<script>alert(2)</script> ![x](http://example.org/x.png)
"""
STAGES = ("split", "classify", "evaluate")


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Side:
    side = write_side(tmp_path_factory.mktemp("side") / "first")
    (side.folder / "evaluate/report.md").write_text(REPORT)
    figures = {"f1": 0.51234, "f1_low": 0.4, "f1_high": 0.6, "rows": 1234}
    write_figures(side.folder / "classify", figures, quality=["f1"])
    return side


def page(side: Side) -> str:
    return render(side, Facts("<b>title", hashes={"artifacts/classify": 32 * "a"}), stages=STAGES)


def test_a_report_shows_results_answers_and_mistakes(side: Side) -> None:
    text = page(side)
    for words in (
        "<title>&lt;b&gt;title</title>",
        '<h3>Main figures</h3>\n<div class="wide"><table>',
        "0.5\N{NO-BREAK SPACE}(0.4\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}0.6)",
        '<td>f1</td><td class="number">0.5123 (0.4 to 0.6)</td>',
        '<td>rows</td><td class="number">1,234</td>',
        "General questions: base wrong, assistant right: 161; both wrong: 30; without a check: 9",
        "Exercises: base wrong, assistant right: 170; both wrong: 30",
        "classify: 30 wrong test rows; the 20 most confident",
        '<p class="soft">expected: spam; predicted: <span class="worse">ham</span> (0.900)</p>',
        "&lt;script&gt;alert(1)",
        "The params of this run are not recorded",
        32 * "a",
    ):
        assert words in text, words
    assert text.count("<svg") == 1
    assert "<script" not in text


def test_a_run_without_artifacts_has_a_page(tmp_path: Path) -> None:
    text = page(Side("RUN", "empty", tmp_path))
    assert "Hashes of the outputs" in text
    assert "Mistakes" not in text


@pytest.mark.slow
@pytest.mark.skipif(None in FOUND, reason="needs Chromium and its driver")
def test_the_report_fits_a_phone_without_scripts(side: Side, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(side).replace("![x]", ""))
    with browser(tmp_path / "profile", dark=True) as window:
        window.resize(500, 900)  # Chromium's narrowest window
        window.open(path.as_uri())
        window.run("for (const part of document.querySelectorAll('details')) part.open = true")
        assert not window.run("return document.documentElement.scrollWidth > window.innerWidth")
