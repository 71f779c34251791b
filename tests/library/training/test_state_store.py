"""States on disk: whole or not there, and what is done when one is neither."""

import os
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptmill.training.state.store import State, StateStore, progress


def state(step: int, rows: int | None = None) -> State:
    tensors = {"model/w": torch.full((3, 4), float(step)), "optimizer/w.step": torch.tensor(7.0)}
    record = {"progress": {"step": step, "seconds": step / 10}, "norms": [0.1, 1e-300]}
    history = [{"step": k + 1, "loss": 0.1 * k} for k in range(step if rows is None else rows)]
    return State(step, tensors, record, history)


def store(folder: Path, *, every: float = 0.0, keep: int = 2) -> StateStore:
    return StateStore(folder, every=every, keep=keep)


def saved(folder: Path, *steps: int) -> None:
    there = store(folder)
    for step in steps:
        there.save(state(step), wait=True)
    there.close()


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    saved(tmp_path / "new", 3)
    found = store(tmp_path / "new").load()
    assert found is not None
    expected = state(3)
    assert (found.step, found.record, found.rows) == (3, expected.record, expected.rows)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        assert torch.equal(found.tensors[name], value)


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        f"step-00000000{step}.{end}" for step in (3, 4) for end in ("safetensors", "sha256")
    ]
    assert progress(tmp_path) == progress(tmp_path)
    assert (found := progress(tmp_path)) is not None
    assert (found.step, found.seconds) == (4, 0.4)


def test_only_one_large_state_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(value.nbytes for value in state(1).tensors.values())
    for largest, kept in ((size, [2, 3]), (size - 1, [3])):
        monkeypatch.setattr("gptmill.training.state.store.LARGE", largest)
        folder = tmp_path / str(largest)
        saved(folder, 1, 2, 3)
        assert [int(path.stem[5:]) for path in sorted(folder.glob("*.safetensors"))] == kept
        assert len(list(folder.iterdir())) == 2 * len(kept)


def test_the_best_weights_are_written_once_and_named_by_the_states(tmp_path: Path) -> None:
    there = store(tmp_path)
    files = {}
    for step in (1, 2, 3, 4, 5):
        if step in (1, 3, 5):
            files[step], tensors = there.keep_best(step, {"w": torch.full((5,), float(step))})
            assert tensors["w"].tolist() == [step] * 5
        named = {**state(step).record, "best": asdict(files[max(n for n in files if n <= step)])}
        there.save(replace(state(step), record=named), wait=True)
    there.keep_best(6, {"w": torch.zeros(5)})  # killed before a state names it
    there.close()
    kept = sorted(path.name for path in tmp_path.glob("best*"))
    assert kept == [f"best-00000000{step}.safetensors" for step in (3, 5, 6)]
    newest, before = tmp_path / kept[1], tmp_path / kept[0]
    found = store(tmp_path).load()
    assert found is not None
    assert (found.step, found.tensors["best/w"].tolist()) == (5, [5.0] * 5)
    assert not (tmp_path / kept[2]).exists()
    newest.write_bytes(newest.read_bytes()[:-1] + b"!")
    found = (damaged := store(tmp_path)).load()
    assert found is not None
    assert (found.step, found.tensors["best/w"].tolist()) == (4, [3.0] * 5)
    assert damaged.notes == [
        f"the state of step 5 is damaged ({newest}: the SHA-256 differs from the recorded value) "
        "and is not used"
    ]
    before.unlink()
    assert store(tmp_path).load() is None


def test_best_weights_written_while_old_ones_are_deleted_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = store(tmp_path)

    def meanwhile(path: Path) -> set[str]:
        there.keep_best(2, {"w": torch.zeros(5)})  # as the training's thread may
        return set()

    monkeypatch.setattr("gptmill.training.state.store._named_best", meanwhile)
    there.save(state(1), wait=True)
    assert [path.name for path in tmp_path.glob("best*")] == ["best-000000002.safetensors"]


def test_the_history_may_be_taken_back(tmp_path: Path) -> None:
    there = store(tmp_path)
    there.save(state(3), wait=True)
    there.save(state(4, rows=2), wait=True)
    there.close()
    found = store(tmp_path).load()
    assert found is not None
    assert found.rows == state(2).rows
    other = [*state(2).rows, {"step": 3, "loss": 9.0}, {"step": 4, "loss": 9.5}]
    there = store(tmp_path)
    for step, rows in ((5, state(3).rows), (6, other)):
        there.save(replace(state(step), rows=rows), wait=True)
    found = store(tmp_path).load()
    assert found is not None
    assert found.rows == other


def newest(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("place", [0, 40, -1, "middle"])
def test_one_flipped_bit_is_noticed_and_the_state_before_is_used(
    tmp_path: Path, place: int | str
) -> None:
    saved(tmp_path, 1, 2)
    path = newest(tmp_path)
    flip(path, path.stat().st_size // 2 if isinstance(place, str) else place)
    there = store(tmp_path)
    found = there.load()
    assert found is not None
    assert found.step == 1
    assert len(there.notes) == 1
    assert "the state of step 2 is damaged" in there.notes[0]
    assert not path.exists()


@pytest.mark.parametrize("length", [0, 10, 200])
def test_a_torn_file_is_noticed(tmp_path: Path, length: int) -> None:
    saved(tmp_path, 1, 2)
    os.truncate(newest(tmp_path), length)
    found = store(tmp_path).load()
    assert found is not None
    assert found.step == 1


def test_a_flipped_seal_or_none_means_the_state_before(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    flip(tmp_path / "step-000000003.sha256", 5)
    found = store(tmp_path).load()
    assert found is not None
    assert found.step == 2
    (tmp_path / "step-000000002.sha256").unlink()
    assert store(tmp_path).load() is None


def test_what_a_kill_in_mid_save_leaves_is_cleared_away(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    partial = tmp_path / ".step-000000002.safetensors.partial"
    partial.write_bytes(newest(tmp_path).read_bytes()[:100])
    unsealed = tmp_path / "step-000000002.safetensors"
    unsealed.write_bytes(newest(tmp_path).read_bytes())
    found = store(tmp_path).load()
    assert found is not None
    assert found.step == 1
    assert not partial.exists()
    saved(tmp_path, 2)
    assert (tmp_path / "step-000000002.sha256").exists()


def test_an_empty_folder_has_no_state(tmp_path: Path) -> None:
    assert store(tmp_path / "nothing").load() is None
    assert progress(tmp_path / "nothing") is None


def test_states_are_due_by_time(tmp_path: Path) -> None:
    assert store(tmp_path, every=0).due()
    assert not store(tmp_path, every=60).due()


FULL = """
import resource, sys
sys.path[:0] = ["src", "."]
from pathlib import Path
import torch
from tests.library.training.test_state_store import state, store
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
there = store(folder)
big = state(2)
tensors = {**big.tensors, "model/big": torch.zeros(100_000)}
there.save(type(big)(2, tensors, big.record, big.rows), wait=True)
"""


def test_a_full_disk_is_one_clear_error_and_older_states_stand(tmp_path: Path) -> None:
    """The limit on a file's size stands in for the disk's end: the write itself fails."""
    assert resource.RLIMIT_FSIZE is not None
    saved(tmp_path, 1)
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert "OSError: " in done.stderr.splitlines()[-1]
    assert "the training's state could not be saved" in done.stderr
    assert "earlier states are kept" in done.stderr
    found = store(tmp_path).load()
    assert found is not None
    assert found.step == 1
    assert list(tmp_path.glob(".*")) == []


def wait_until_due(there: StateStore) -> None:
    while not there.due():
        pass


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: full)
    there = store(tmp_path)
    with pytest.raises(OSError, match=r"bytes needed, 10 free.*make room"):
        there.save(state(1), wait=True)
    there.save(state(1))
    with pytest.raises(OSError, match="make room"):
        wait_until_due(there)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["save_file", "sha256", "replace", "seal"])
def test_a_step_saved_twice_is_never_without_a_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A training that goes on may save the step that it found; a death there must not cost it."""
    saved(tmp_path, 3)
    with monkeypatch.context() as patched:
        if place == "replace":
            patched.setattr(Path, "replace", stop_at(Path.replace, "safetensors"))
        elif place == "seal":
            patched.setattr(Path, "replace", stop_at(Path.replace, "sha256", after=1))
        else:
            patched.setattr(f"gptmill.training.state.store.{place}", stop_at(None, ""))
        with pytest.raises(KeyboardInterrupt):
            store(tmp_path).save(state(3, rows=2), wait=True)
    found = store(tmp_path).load()
    assert found is not None
    assert found.rows == state(3, rows=2 if place == "seal" else 3).rows


def stop_at(usual: Any, suffix: str, after: int = 0) -> Any:
    """Return a function that raises instead of doing its work on a file of this kind."""
    calls = [after]

    def stops(self: Any, *words: Any, **more: Any) -> Any:
        if str(words[0] if words else "").endswith(suffix):
            calls[0] -= 1
            if calls[0] < 0:
                raise KeyboardInterrupt
        return usual(self, *words, **more)

    return stops
