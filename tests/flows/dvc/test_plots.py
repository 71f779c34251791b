"""The plots of dvc.yaml: DVC draws the curves of each stage, and the page needs no network."""

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from dvc_render.vega import VegaRenderer

from flows.commands.inspect.plots import VEGA, template
from gptmill.files import write_csv
from tasks.project.environment import ROOT
from tasks.project.graph import read_yaml
from tests.support.browser import FOUND, browser

FILES = (".dvc/config", "dvc.yaml", "params.yaml")
STAGES = ("pretrain", "lora", "classify", "instruct")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for stage in STAGES:
        folder = tmp_path / "artifacts" / stage
        folder.mkdir(parents=True)
        steps = pd.DataFrame({"step": range(1, 5), "train_loss": [4.0, 3.0, 2.5, 2.25]})
        write_csv(folder / "training.csv", steps)
        write_csv(folder / "evaluations.csv", pd.DataFrame({"step": [4], "val_loss": [2.75]}))
    return tmp_path


def drawn(project: Path, *options: str) -> Path:
    for words in (["git", "init", "-q"], ["dvc", "plots", "show", *options]):
        done = subprocess.run(words, cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return project / "dvc_plots" / "index.html"


def test_the_page_has_a_plot_per_stage(project: Path) -> None:
    text = drawn(project).read_text(encoding="utf-8")
    for stage in STAGES:
        assert f'"loss of {stage}"' in text
    # a step and its loss in every row: Vega draws an empty cell as 0
    assert text.count('"dvc_inferred_y_value": "') == 5 * len(STAGES)
    assert '"dvc_inferred_y_value": ""' not in text


def test_vega_has_the_versions_of_dvc_s_page() -> None:
    versions = re.findall(r"npm/([\w-]+)@([\d.]+)", VegaRenderer.SCRIPTS)
    assert versions == [(name, version) for name, (version, *_) in VEGA.items()]


@pytest.mark.slow
@pytest.mark.skipif(None in FOUND, reason="needs Chromium and its driver")
def test_the_page_is_drawn_without_a_network(project: Path, tmp_path: Path) -> None:
    page = drawn(project, "--html-template", str(template(tmp_path / "downloads")))
    assert "<script src=" not in page.read_text(encoding="utf-8")
    with browser(tmp_path, names="*") as window:
        window.open(page.as_uri())
        count = "return document.querySelectorAll('canvas').length"
        window.until(lambda: window.run(count) == len(read_yaml(ROOT / "dvc.yaml")["plots"]))
