"""Versions, decisions, promotion and rollback, in a real store of MLflow's."""

import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlflow
import pytest

from flows import results
from flows.commands.inspect import lineage
from flows.commands.manage import promote, rollback
from flows.registry import review as reviewing
from flows.registry.rules import rules
from flows.sides import cached, resolve
from gptmill.comparing import significance
from gptmill.comparing.rule import PRIMARY, Rule
from gptmill.files import write_json
from gptmill.records import content_hash
from tasks.processes import locks
from tasks.project import graph
from tasks.tracking import store
from tasks.tracking.registry import Registered
from tests.library.comparing.planted import record, write_side
from tests.tasks.tracking.test_store import place

# mlflow's own doing: it uses what sqlalchemy 2.1 gives up
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

KIND, NAME, OUTPUT = "classifier", "gptmill-classifier", "artifacts/classify"
BETTER = {kind: Rule(next(iter(PRIMARY[kind])), "better", 0.0, ()) for kind in PRIMARY}
NOT_WORSE = {kind: Rule(rule.primary, "not_worse", 0.03, ()) for kind, rule in BETTER.items()}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project folder with an empty store."""
    root = tmp_path_factory.mktemp("opened") / "project"
    with pytest.MonkeyPatch.context() as patched:
        place(patched, root)
        store.connect()
    return root


@pytest.fixture
def root(opened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before, root = mlflow.get_tracking_uri(), tmp_path / "project"
    shutil.copytree(opened, root)
    place(monkeypatch, root)
    graph.stages()  # of this tree
    for module in (graph, results, cached, resolve):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    monkeypatch.setattr(locks, "project", lambda *words: nullcontext())
    yield root
    store.forget_connection()
    mlflow.set_tracking_uri(before)


def make(root: Path, *, wrong: int, logged: bool = True) -> None:
    """Make and record outputs, as a pipeline run does."""
    shutil.rmtree(root / "artifacts", ignore_errors=True)
    write_side(root / "artifacts", wrong=wrong)
    write_json(root / "artifacts/evaluate/metrics.json", {"classify_f1": 1 - wrong / 1000})
    record(root)
    if not logged:
        return
    tags = {f"dvc.out.{OUTPUT}": content_hash(root / OUTPUT), "stage": "classify"}
    experiment, client = store.connect(), mlflow.MlflowClient()
    run = client.create_run(experiment, tags=tags).info.run_id
    model = client.create_logged_model(experiment, name="classify", source_run_id=run)
    client.finalize_logged_model(model.model_id, "READY")


def judged(settings: dict[str, Rule] = BETTER) -> reviewing.Reviewed:
    (found,) = reviewing.review(settings)
    return found


def aliases() -> dict[str, int]:
    return Registered(KIND).aliases


def tags_of(number: int) -> dict[str, str]:
    return dict(Registered(KIND).versions[number].tags)


def test_the_descent_of_a_version_is_told(root: Path) -> None:
    make(root, wrong=30)
    judged()
    for name in ("classifier@champion", "classifier/1", "models:/gptmill-classifier/1"):
        described = lineage.described(name)
        assert described.startswith(f"model     classifier version 1 ({OUTPUT} ")
        assert described.endswith("\nenergy    not told by this device")
    with pytest.raises(ValueError, match="aliases and versions of classifier are candidate, cham"):
        lineage.described("classifier/2")
    with pytest.raises(ValueError, match="neither a folder nor a version of generator, classifier"):
        lineage.described("spam@champion")


def test_a_loss_is_refused_and_people_have_the_last_word(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(root, wrong=30, logged=False)
    assert judged().sentence.startswith("classifier is not registered: MLflow has no model")
    make(root, wrong=30)
    first = judged()
    assert first.sentence.startswith("classifier version 1 is the new champion: no champion before")
    assert aliases() == {"candidate": 1, "champion": 1}
    assert not judged().is_news

    make(root, wrong=80)
    refused = judged()
    assert refused.sentence.startswith(
        "classifier version 2 is refused, version 1 stays champion (`make promote KIND=classifier "
        'VERSION=2 WHY="..."` overrides): accuracy 92.0 against 97.0 of classifier version 1, a '
        "gain of -5.0 points (95 %: -"
    )
    assert refused.page is not None
    assert "B is worse on accuracy (classify)" in refused.page
    assert "classifier version 2 <span" in refused.page
    assert aliases() == {"candidate": 2, "champion": 1}
    tags = tags_of(2)
    assert (tags["gate"], tags["verdict"]) == ("refused", "worse")
    assert tags["gate.reasons"] == "; ".join(refused.reasons)
    assert {"commit", f"dvc.out.{OUTPUT}", "dvc.out.artifacts/split/labelled"} <= {*tags}
    run = mlflow.get_run(Registered(KIND).versions[2].run_id)
    assert run.data.tags["model.uri"] == f"models:/{NAME}/2"
    model = mlflow.get_logged_model(Registered(KIND).versions[2].source.removeprefix("models:/"))
    for described in (run.data, model):
        assert f"`models:/{NAME}/2`" in described.tags["mlflow.note.content"]
    assert run.data.tags["gate"].startswith("refused as version 2: accuracy 92.0 against")

    assert promote.main([f"KIND={NAME}", "VERSION=2", "WHY=a  trial"]) == 0
    assert "classifier version 2 is champion instead of version 1: a trial" in (
        capsys.readouterr().out
    )
    tags = tags_of(2)
    assert tags["champion.why"] == "a trial"
    assert tags["champion.who"] == mlflow.tracking.context.registry.resolve_tags()["mlflow.user"]
    assert re.match(r"\d{4}-\d\d-\d\dT", tags["champion.when"])
    assert not judged().is_news
    assert aliases()["champion"] == 2

    assert rollback.main(["KIND=classifier", "WHY="]) == 0
    assert "version 1 is champion again instead of version 2" in capsys.readouterr().out
    assert tags_of(2)["rolled_back.why"] == "rollback"
    assert not judged().is_news
    assert aliases() == {"candidate": 2, "champion": 1}
    with pytest.raises(ValueError, match="version 1 is the first champion that exists"):
        rollback.main(["KIND=classifier"])

    make(root, wrong=30)  # the bytes of version 1
    assert not judged().is_news
    assert aliases() == {"candidate": 1, "champion": 1}
    make(root, wrong=10)
    assert judged().state == "is the new champion"
    assert list(Registered(KIND).versions) == [1, 2, 3]
    assert Registered(KIND).earlier == 1

    sides = {
        name: resolve.resolve("A", name, root.parent / str(number))
        for number, name in enumerate(
            ("champion", f"{KIND}@champion", f"models:/{NAME}/1", f"{NAME}@candidate")
        )
        if (root.parent / str(number)).mkdir() is None
    }
    right = (root / OUTPUT / "predictions.csv").read_text()
    for name, side in sides.items():
        same = side.file("classify/predictions.csv").read_text() == right
        assert same == (name != f"models:/{NAME}/1")
    assert sides["champion"].origin == "versions in MLflow: classifier 3"


def test_small_losses_do_not_add_up(root: Path) -> None:
    for wrong, promoted in ((30, True), (40, True), (55, False), (20, True)):
        make(root, wrong=wrong)
        assert (judged(NOT_WORSE).state == "is the new champion") == promoted, wrong
        assert Registered(KIND).best == (4 if wrong == 20 else 1)
    assert aliases() == {"candidate": 4, "champion": 4}
    assert "of classifier version 1" in tags_of(3)["gate.reasons"]


def test_a_version_whose_files_are_gone_is_no_ground_and_no_champion(root: Path) -> None:
    make(root, wrong=30)
    judged()
    shutil.rmtree(root / ".dvc")
    make(root, wrong=10)
    content = content_hash(root / OUTPUT)
    shutil.rmtree(root / ".dvc")
    assert "neither DVC's cache nor the models of gptmill-classifier" in judged().reasons[0]
    assert tags_of(2)[f"dvc.out.{OUTPUT}"] == content
    client = mlflow.MlflowClient()
    client.delete_logged_model(Registered(KIND).versions[2].source.removeprefix("models:/"))
    with pytest.raises(ValueError, match="version 2 cannot be served: its logged model was del"):
        promote.main(["KIND=classifier", "VERSION=2", "WHY=x"])


def test_an_mlflow_that_is_away_is_told_in_a_sentence(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root, wrong=30)
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(store.AwayError) as error:
            reviewing.review(BETTER)
        sentence = reviewing.away(error.value)
        with pytest.raises(store.AwayError, match="no MLflow server answers"):
            promote.main(["KIND=classifier", "VERSION=1", "WHY=x"])
    assert sentence.startswith("MLflow is away, and the models of this run are not registered: ")
    assert sentence.endswith("the next `make pipeline` registers and judges them")
    assert judged().state == "is the new champion"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (promote, ["KIND=x", "VERSION=1", "WHY=x"], "KIND is x: allowed are generator, classifier"),
        (promote, ["KIND=", "VERSION=1", "WHY=x"], "KIND is missing"),
        (promote, ["KIND=classifier", "VERSION=1", "WHY= "], "WHY is missing"),
        (promote, ["KIND=classifier", "VERSION=1", f"WHY={'x' * 2000}"], "WHY has 2,000 char"),
        (promote, ["KIND=classifier", "VERSION=9", "WHY=x"], "VERSION is 9: versions of .* are 1"),
        (promote, ["KIND=classifier", "VERSION=v1", "WHY=x"], "VERSION is v1: versions of"),
        (promote, ["KIND=classifier", "WHY=x"], "VERSION is missing: versions of"),
        (promote, ["KIND=classifier", "VERSION=1", "WHY=x"], "version 1 is the champion already"),
        (promote, ["KIND=assistant", "VERSION=1", "WHY=x"], "no version of assistant is regist"),
        (promote, ["KIND=assistant", "BY=me"], "usage: make promote KIND=assistant VERSION=3"),
        (rollback, ["classifier"], "usage: make rollback KIND=assistant"),
        (rollback, ["KIND=assistant"], "assistant has no champion: there is nothing to roll back"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    with_champion: None, command: Any, arguments: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        command.main(arguments)


@pytest.fixture(scope="module")
def with_champion(opened: Path) -> Iterator[None]:
    """Have a store with a champion, for commands that change nothing."""
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patched:
        place(patched, opened)
        for module in (graph, results, cached):
            patched.setattr(module, "ROOT", opened)
        patched.setattr(locks, "project", lambda *words: nullcontext())
        make(opened, wrong=30)
        judged()
        yield
    store.forget_connection()
    mlflow.set_tracking_uri(before)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("assistant", {"primary": "f1"}, "gate.assistant.primary is f1: allowed are right_answers"),
        ("asistant", {"primary": "loss"}, "gate.asistant is unknown: remove the key or correct"),
        ("assistant", None, "gate.assistant is missing"),
        ("assistant", {"when": "worse"}, "gate.assistant.when: input should be 'better' or 'not"),
        ("assistant", {"margin": -1.0}, "gate.assistant: margin is -1.0 but must be 0 or more"),
        ("assistant", {"thresholds": ["loss"]}, "gate.assistant: threshold `loss` is not allowed"),
        ("assistant", {"least": 3}, "gate.assistant.least is unknown"),
    ],
)
def test_a_mistake_in_the_section_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: str, change: dict[str, Any] | None, message: str
) -> None:
    section = dict(graph.params()["gate"])
    section[kind] = {**section["assistant"], **(change or {})}
    if change is None:
        del section[kind]
    monkeypatch.setattr(graph, "params", lambda: {"gate": section})
    with pytest.raises(ValueError, match=re.escape(f"params.yaml: {message}")):
        rules()
