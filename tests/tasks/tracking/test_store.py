"""The SQLite store of a project that moved, is damaged, locked, or of another version."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from tasks.project.environment import project_of
from tasks.tracking import store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project folder whose store holds a run with a file."""
    root = tmp_path_factory.mktemp("made") / "project"
    with pytest.MonkeyPatch.context() as patched:
        place(patched, root)
        experiment = store.connect()
        run = mlflow.MlflowClient().create_run(experiment).info.run_id
        mlflow.MlflowClient().log_text(run, "kept", "note.txt")
    return root


def place(patched: pytest.MonkeyPatch, root: Path) -> None:
    """Have `root` be the project."""
    (root / "mlflow").mkdir(parents=True, exist_ok=True)
    patched.delenv("MLFLOW_TRACKING_URI", raising=False)
    patched.setattr(store, "HOME", root)
    patched.setattr(store, "STORE", root / "mlflow" / "mlflow.db")
    patched.setattr(store, "ARTIFACTS", root / "mlflow" / "artifacts")
    patched.setattr(store, "BUSY_S", 0.1)
    store.forget_connection()


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a copy of the project; the first one is gone meanwhile."""
    before = mlflow.get_tracking_uri()
    root = tmp_path / "copy of project"
    shutil.copytree(made, root)
    made.rename(made.with_name("gone"))
    place(monkeypatch, root)
    yield root
    made.with_name("gone").rename(made)
    store.forget_connection()
    mlflow.set_tracking_uri(before)


def test_artifacts_are_where_the_project_is(
    project: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, client = store.connect(), mlflow.MlflowClient()
    assert f"the project was at {made}" in capsys.readouterr().err
    (old,) = client.search_runs([experiment])
    assert Path(client.download_artifacts(old.info.run_id, "note.txt")).read_text() == "kept"
    new = client.create_run(experiment).info.run_id
    client.log_text(new, "new", "note.txt")
    assert (project / "mlflow/artifacts" / new / "artifacts/note.txt").read_text() == "new"
    assert not made.exists()


def damage(path: Path) -> None:
    path.write_bytes(b"no database, " * 1000)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def version(name: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("update alembic_version set version_num = ?", (name,))

    return write


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damage, "is damaged: restore a backup, or run `mv mlflow/mlflow.db"),
        (cut, "is damaged: restore a backup, or run `mv mlflow/mlflow.db"),
        (version("451aebb31d03"), "from an older MLflow .*mlflow.db.bak && mlflow db upgrade"),
        (version("ffffffffffff"), "from a newer MLflow .*install the newer MLflow, or run `mv"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_sentence(
    project: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(project / "mlflow" / "mlflow.db")
    size = (project / "mlflow" / "mlflow.db").stat().st_size
    with pytest.raises(ValueError, match=words) as raised:
        store.connect()
    assert len(str(raised.value).splitlines()) == 1
    assert (project / "mlflow" / "mlflow.db").stat().st_size == size


def test_a_locked_store_is_one_sentence(project: Path) -> None:
    with closing(sqlite3.connect(project / "mlflow" / "mlflow.db")) as other:
        other.execute("begin exclusive")
        with pytest.raises(ValueError, match="is in use by another process: end the process"):
            store.connect()
    assert store.connect() == "1"


@pytest.mark.parametrize("below", ["", ".dvc/tmp/exps/tmpa1/", ".state/sweeps/s/worktree/"])
def test_a_temporary_copy_records_in_its_project(below: str) -> None:
    assert project_of(Path("/home/user/project") / below) == Path("/home/user/project")
