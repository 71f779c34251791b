"""The stage `split`: one folder a task, so that neither task's rows stale the other's stages."""

import json
from pathlib import Path

import pandas as pd
import pytest

from gptmill.data.splits import PARTS
from gptmill.files import read_json
from gptmill.origins import read_origins
from gptmill.records import content_hash
from tasks.project.graph import params, stages
from tasks.split import Parts, split
from tests.support.fakes import FakeRun
from tests.support.project import write_tiny_data, write_tiny_manifest

PARAMS = Parts(**params()["split"])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    write_tiny_data(tmp_path / "data")
    return tmp_path


def body(project: Path, name: str = "split") -> tuple[FakeRun, dict[str, object]]:
    run = FakeRun(project, project / "artifacts" / name)
    return run, dict(split.body(PARAMS, run))  # type: ignore[arg-type]


def test_every_row_is_in_one_part_and_counted(project: Path) -> None:
    run, metrics = body(project)
    tables = [pd.read_csv(run.out / "labelled" / f"{part}.csv") for part in PARTS]
    lists = [read_json(run.out / "instructions" / f"{part}.json") for part in PARTS]
    texts = [text for table in tables for text in table["text"]]
    asked = [json.dumps(row) for rows in lists for row in rows]
    assert len(texts) == len(set(texts)) == metrics["labelled_rows"]
    assert len(asked) == len(set(asked)) == metrics["instructions_rows"]


def test_each_task_names_its_own_sources(project: Path) -> None:
    run, _ = body(project)
    for task in ("labelled", "instructions"):
        (origin,) = read_origins(run.out / task / "origins.json")
        assert (origin.name, origin.files) == ("tiny", 1)


def test_a_new_labelled_file_leaves_the_instructions_bytes(project: Path) -> None:
    before, _ = body(project)
    with (project / "data" / "labelled" / "sms.csv").open("a") as file:
        file.write("spam,one more prize\n")
    write_tiny_manifest(project / "data")
    after, _ = body(project, "again")
    hashes = [
        {task: content_hash(run.out / task) for task in ("labelled", "instructions")}
        for run in (before, after)
    ]
    assert hashes[0]["instructions"] == hashes[1]["instructions"]
    assert hashes[0]["labelled"] != hashes[1]["labelled"]


def test_labelled_rows_are_read_by_the_classifiers_and_evaluate_alone() -> None:
    def readers(path: str) -> set[str]:
        return {name for name, stage in stages().items() if path in stage["deps"]}

    assert readers("artifacts/split/labelled") == {"lora", "classify", "evaluate"}
    assert readers("artifacts/split/instructions") == {"instruct", "evaluate"}
    assert readers("data/manifest/labelled.json") == {"split"}
    assert readers("data/manifest/text.json") == {"tokenize"}
