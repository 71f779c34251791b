"""Rules of the garbage collection: what stays, and what a removal frees."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.commands.manage import gc
from flows.garbage.needs import ModelFacts, RunFacts, needed_models, needed_runs, spare_versions
from flows.garbage.sizes import Links


def run(name: str, started: float, *, parent: str = "", **tags: str) -> RunFacts:
    """Return a run; the tags are `out_x` and `dep_x` for artifacts/x."""
    named = {tag.replace("out_", "dvc.out.artifacts/"): value for tag, value in tags.items()}
    named = {tag.replace("dep_", "dvc.dep.artifacts/"): value for tag, value in named.items()}
    return RunFacts(name, started, named | ({"mlflow.parentRunId": parent} if parent else {}))


RUNS = [
    run("night-1", 1),
    run("tokenize-1", 1, parent="night-1", out_tokenize="t1"),
    run("pretrain-1", 1, parent="night-1", dep_tokenize="t1", out_pretrain="p1"),
    run("night-2", 2),
    run("pretrain-2", 2, parent="night-2", dep_tokenize="t1", out_pretrain="p2"),
    run("again-2", 3, parent="night-3", dep_tokenize="t1", out_pretrain="p2"),
    run("night-3", 3),
    RunFacts("unfinished", 1, {}, is_over=False),
    RunFacts("trash", 1, {"dvc.out.artifacts/pretrain": "p2"}, is_deleted=True),
]
FIRST = {"night-1", "tokenize-1", "pretrain-1", "unfinished"}


@pytest.mark.parametrize(
    ("since", "named", "outputs", "kept"),
    [
        (9, [], [], {"unfinished"}),
        (9, ["gone"], [("artifacts/pretrain", "other")], {"unfinished"}),
        (9, ["pretrain-1"], [], FIRST),
        (9, [], [("artifacts/pretrain", "p1")], FIRST),
        (9, [], [("artifacts/pretrain", "p2")], {*FIRST, "night-2", "pretrain-2"} - {"pretrain-1"}),
        (3, [], [], {*FIRST, "night-3", "again-2"} - {"pretrain-1"}),
        (0, [], [], {one.id for one in RUNS}),
    ],
)
def test_runs_behind_versions_and_outputs_stay(
    since: float, named: list[str], outputs: list[tuple[str, str]], kept: set[str]
) -> None:
    assert needed_runs(RUNS, since=since, named=named, outputs=outputs) == kept


@pytest.mark.parametrize(
    ("since", "named", "outputs", "kept"),
    [
        (9, [], [], set()),
        (9, ["m-1"], [], {"m-1"}),
        (9, [], [("artifacts/pretrain", "p2")], {"m-2"}),
        (3, [], [], {"m-3"}),
    ],
)
def test_models_of_versions_and_present_outputs_stay(
    since: float, named: list[str], outputs: list[tuple[str, str]], kept: set[str]
) -> None:
    models = [
        ModelFacts("m-1", "pretrain-1", 1),
        ModelFacts("m-2", "pretrain-2", 2),
        ModelFacts("m-3", "", 3),
    ]
    found = needed_models(models, RUNS, since=since, named=named, outputs=outputs)
    assert found == kept


def test_refused_versions_alone_are_spare() -> None:
    tags = {1: "promoted", 7: ""} | dict.fromkeys(range(2, 7), "refused")
    versions = {number: SimpleNamespace(tags={"gate": tag}) for number, tag in tags.items()}
    versions[3].tags["champion.when"] = "a night ago"
    found = SimpleNamespace(versions=versions, aliases={"candidate": 6}, champions=[4], best=1)
    for newest, spare in ((0, [2, 5]), (1, [2]), (9, [])):
        assert spare_versions(cast("Any", found), newest) == spare


def test_a_linked_file_is_freed_with_its_last_link(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(bytes(1000))
    os.link(tmp_path / "a" / "one", tmp_path / "two")
    (tmp_path / "link").symlink_to("two")
    links = Links()
    assert links.freed_by([tmp_path / "a", tmp_path / "missing"]) == 0
    assert links.freed_by([tmp_path / "two"]) == 1000


@pytest.mark.parametrize("word", ["NIGHTS=-1", "REFUSED=few", "FREE=yes"])
def test_a_wrong_option_is_a_sentence(word: str) -> None:
    with pytest.raises(ValueError, match=rf"{word.partition('=')[0]}.*usage: make gc, with NIGHTS"):
        gc.main([word])
