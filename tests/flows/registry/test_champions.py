"""Champions of a whole tiny project: registered, refused, promoted, rolled back and served."""

import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.support.project import Project, tiny_project

pytestmark = pytest.mark.slow
HALVES = {"train": 0.5, "validation": 0.1, "test": 0.4}
LEARNS = {"epochs": 8, "learning_rate": 0.003}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project whose classifier learns, with enough test rows for a verdict."""
    project = tiny_project(tmp_path)
    no_thresholds = {"thresholds": []}
    gate = dict.fromkeys(("generator", "classifier-lora", "assistant"), no_thresholds)
    gate["classifier"] = {"thresholds": ["classify_f1 >= 0.9"]}
    split = {"labelled_fractions": HALVES, "instructions_fractions": HALVES}
    project.params({"split": split, "classify": LEARNS, "gate": gate})
    return project


def done(project: Project, *words: str, **options: object) -> str:
    """Return what a command printed."""
    result = project.python("-m", "flows", *words, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return " ".join(result.stdout.split())


def champions(project: Project) -> dict[str, str]:
    with sqlite3.connect(project.root / "mlflow" / "mlflow.db") as store:
        return dict(
            store.execute(
                "select name, version from registered_model_aliases where alias = 'champion'"
            )
        )


def n_versions(project: Project) -> int:
    with sqlite3.connect(project.root / "mlflow" / "mlflow.db") as store:
        return int(store.execute("select count(*) from model_versions").fetchone()[0])


def classified(project: Project, model: str) -> subprocess.CompletedProcess[str]:
    words = ("-m", "gptmill", "classify", model, "win a free prize now", "--json")
    return project.python(*words, extra={"PYTHONPATH": "src"})


def test_each_run_tells_that_mlflow_is_away(project: Project) -> None:
    server = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    for _ in range(2):
        printed = done(project, "pipeline", extra=server)
        assert "MLflow is away, and the models of this run are not registered" in printed


def test_first_version_planted_loss_promotion_and_rollback(project: Project) -> None:
    first = done(project, "pipeline")
    for kind in ("generator", "classifier", "classifier-lora", "assistant"):
        assert f"{kind} version 1 is the new champion: no champion before" in first
    assert set(champions(project).values()) == {1}
    assert "new champion" not in done(project, "pipeline")

    project.params({"classify": {"learning_rate": 1e-9}})
    loss = done(project, "pipeline")
    assert "classifier version 2 is refused, version 1 stays champion" in loss
    assert "classify_f1 is 0" in loss
    assert "better needs an interval above 0, not met" in loss
    assert n_versions(project) == 5

    compared = done(project, "compare")
    assert "A champion (versions in MLflow: generator 1, classifier 1" in compared
    assert "B is worse on accuracy (classify)" in compared
    assert "lora is not compared" not in compared
    served = classified(project, "models:/gptmill-classifier@champion")
    assert served.returncode == 0, served.stderr
    assert json.loads(served.stdout)[0]["label"] == "spam"
    missing = classified(project, "models:/gptmill-classifier@none")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1)
    assert "Registered model alias none not found" in missing.stderr

    promoted = done(project, "promote", "KIND=classifier", "VERSION=2", "WHY=a trial")
    assert "classifier version 2 is champion instead of version 1: a trial" in promoted
    assert champions(project)["gptmill-classifier"] == 2
    rolled = done(project, "rollback", "KIND=classifier")
    assert "classifier version 1 is champion again instead of version 2" in rolled

    project.params({"classify": LEARNS})
    assert "new champion" not in done(project, "pipeline")
    assert champions(project)["gptmill-classifier"] == 1
    assert n_versions(project) == 5, "equal bytes register nothing"
