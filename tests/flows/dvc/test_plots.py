"""The plots of dvc.yaml: DVC draws the curves of each stage, and the page needs no network."""

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from dvc_render.vega import VegaRenderer

from gptmill.files import write_csv
from tasks.project.environment import ROOT
from tasks.project.graph import read_yaml
from tests.support.browser import FOUND, browser

FILES = (".dvc/config", ".dvc/plots.html", "dvc.yaml", "params.yaml")
STAGES = ("pretrain", "lora", "classify", "instruct")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for stage in STAGES:
        folder = tmp_path / "artifacts" / stage
        folder.mkdir(parents=True)
        steps = pd.DataFrame({"step": range(1, 5), "train_loss": [4.0, 3.0, 2.5, 2.25]})
        write_csv(folder / "training.csv", steps)
        write_csv(folder / "evaluations.csv", pd.DataFrame({"step": [4], "val_loss": [2.75]}))
    for words in (["git", "init", "-q"], ["dvc", "plots", "show"]):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return tmp_path / "dvc_plots" / "index.html"


def test_the_page_has_dvc_s_scripts_and_a_plot_per_stage(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script src=" not in text
    versions = re.findall(r"npm/([\w-]+@[\d.]+)", VegaRenderer.SCRIPTS)
    assert versions
    assert re.findall(r"/\* ([\w-]+@[\d.]+) \*/", text) == versions
    for stage in STAGES:
        assert f'"loss of {stage}"' in text
    # a step and its loss in every row: Vega draws an empty cell as 0
    assert text.count('"dvc_inferred_y_value": "') == 5 * len(STAGES)
    assert '"dvc_inferred_y_value": ""' not in text


@pytest.mark.slow
@pytest.mark.skipif(None in FOUND, reason="needs Chromium and its driver")
def test_the_page_is_drawn_without_a_network(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path, names="*") as window:
        window.open(page.as_uri())
        drawn = "return document.querySelectorAll('canvas').length"
        window.until(lambda: window.run(drawn) == len(read_yaml(ROOT / "dvc.yaml")["plots"]))
