"""States of sharded trainings on disk; a group of one process stands in for several.

What two and three ranks make of them is in test_parallel.py.
"""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from gptmill.training import distributed
from gptmill.training.distributed import SINGLE_PROCESS, World
from gptmill.training.state.shards import ShardedStore, for_ranks, handed_out
from gptmill.training.state.store import State, StateStore, progress


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Return a group of one, which holds a share of all."""
    meeting = dist.FileStore(str(tmp_path / "meeting"), 1)
    dist.init_process_group("gloo", store=meeting, rank=0, world_size=1)
    yield World(0, 1, sharded=True)
    dist.destroy_process_group()
    distributed._on_cpu.cache_clear()


def share(value: float) -> DTensor:
    return distribute_tensor(torch.full((500, 7), value), distributed._on_cpu(1), [Shard(0)])


def state(step: int, *, value: float | None = None) -> State:
    weight = share(step if value is None else value)
    moments = {"optimizer/w.exp_avg": share(step / 2), "optimizer/w.step": torch.tensor(7.0)}
    record = {"progress": {"step": step, "seconds": step / 10}}
    return State(step, {"model/w": weight, **moments}, record, [{"step": step}])


def store(folder: Path, world: World) -> StateStore:
    made = for_ranks(StateStore(folder, every=0.0, keep=2), world)
    assert isinstance(made, ShardedStore)
    return made


def saved(folder: Path, world: World, *steps: int) -> None:
    there = store(folder, world)
    for step in steps:
        there.save(state(step), wait=True)
    there.close()


def names(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def share_file(folder: Path) -> Path:
    """Return the newest state's one file of shares."""
    (path,) = max(folder.glob("*.shards")).iterdir()
    return path


def test_shares_come_back_to_the_bit_sharded_and_whole(tmp_path: Path, world: World) -> None:
    folder = tmp_path / "states"
    saved(folder, world, 3)
    found = store(folder, world).load()
    assert found is not None
    assert (found.step, found.rows) == (3, [{"step": 3}])
    assert found.tensors.keys() == {"optimizer/w.step"}  # the rest is not read yet
    shared = handed_out(found, world, {"w": share(0.0)})
    alone = handed_out(found, SINGLE_PROCESS, {})
    assert shared is not None
    assert alone is not None
    for name, value in state(3).tensors.items():
        mine = shared.tensors[name]
        assert isinstance(mine, DTensor) == isinstance(value, DTensor)
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        assert alone.tensors[name].equal(whole)
        assert (mine.full_tensor() if isinstance(mine, DTensor) else mine).equal(whole)
    assert (done := progress(folder)) is not None
    assert done.step == 3


def test_a_whole_state_is_handed_out_in_shares(tmp_path: Path, world: World) -> None:
    plain = StateStore(tmp_path, every=0.0, keep=2)
    tensors = {"model/w": torch.full((500, 7), 3.0), "optimizer/w.step": torch.tensor(7.0)}
    plain.save(State(3, tensors, {"progress": {"step": 3, "seconds": 0.0}}, []), wait=True)
    found = handed_out(store(tmp_path, world).load(), world, {"w": share(0.0)})
    assert found is not None
    assert isinstance(found.tensors["model/w"], DTensor)
    assert found.tensors["model/w"].full_tensor().equal(tensors["model/w"])
    assert found.tensors["optimizer/w.step"].equal(tensors["optimizer/w.step"])


def test_shares_are_kept_as_long_as_their_states(tmp_path: Path, world: World) -> None:
    saved(tmp_path, world, 1, 2, 3, 4)
    assert names(tmp_path, "*.shards") == [f"step-00000000{step}-0.shards" for step in (3, 4)]
    assert names(tmp_path, ".*") == []


@pytest.mark.parametrize("fault", ["flipped", "torn", "missing"])
def test_a_damaged_share_is_noticed_and_the_state_before_is_used(
    tmp_path: Path, world: World, fault: str
) -> None:
    saved(tmp_path, world, 1, 2)
    file = share_file(tmp_path)
    content = file.read_bytes()
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:100] if fault == "torn" else content[:-1] + b"x")
    there = store(tmp_path, world)
    found = there.load()
    assert found is not None
    assert found.step == 1
    assert len(there.notes) == 1
    assert f"the state of step 2 is damaged ({file}" in there.notes[0]
    saved(tmp_path, world, 3)
    assert names(tmp_path, "*.shards") == ["step-000000001-0.shards", "step-000000003-0.shards"]


def test_shares_without_their_state_are_no_state(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*words: object) -> None:
        raise KeyboardInterrupt

    saved(tmp_path, world, 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(ShardedStore, "_write_file", stops)
        for step in (2, 3):  # of the step before again, too
            with pytest.raises(KeyboardInterrupt):
                store(tmp_path, world).save(state(step, value=9.0), wait=True)
    assert len(names(tmp_path, "*.shards")) == 4
    found = handed_out(store(tmp_path, world).load(), SINGLE_PROCESS, {})
    assert found is not None
    assert found.step == 2
    assert found.tensors["model/w"][0, 0] == 2
    assert len(names(tmp_path, "*.shards")) == 2


def test_a_step_saved_twice_leaves_the_second(tmp_path: Path, world: World) -> None:
    saved(tmp_path, world, 1, 2)
    store(tmp_path, world).save(state(2, value=9.0), wait=True)
    assert names(tmp_path, "*.shards") == ["step-000000001-0.shards", "step-000000002-1.shards"]
    found = handed_out(store(tmp_path, world).load(), SINGLE_PROCESS, {})
    assert found is not None
    assert found.tensors["model/w"][0, 0] == 9


def test_a_full_disk_is_one_clear_error_and_older_states_stand(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, world, 1)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, usual[1]))
    try:
        with pytest.raises(OSError, match=r"could not be saved as .*make room"):
            store(tmp_path, world).save(state(2), wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match=r"bytes needed, 10 free"):
        store(tmp_path, world).save(state(2), wait=True)
    assert names(tmp_path, "*.shards") == ["step-000000001-0.shards"]
    assert names(tmp_path, ".*") == []


def test_ranks_that_see_different_folders_are_told(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(ValueError, match=r"not the same folder for all.*pretrain\.shard to false"):
        store(tmp_path, world)
