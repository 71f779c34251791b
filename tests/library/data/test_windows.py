from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from gptmill.data.token_file import TokenFile
from gptmill.data.windows import WindowConfig, WindowIndex, order


def token_file(folder: Path, count: int) -> TokenFile:
    ids = np.arange(count, dtype=np.uint32)
    return TokenFile.write(
        folder / "train.bin",
        [ids],
        names=["a.txt"],
        separator=count,
        vocab_size=count + 1,
        fingerprint="abc",
    )


def index_of(folder: Path, count: int, *, max_length: int, stride: int) -> WindowIndex:
    config = WindowConfig(max_length=max_length, stride=stride)
    return WindowIndex.build(token_file(folder, count), config, part="training")


@pytest.mark.parametrize(
    ("count", "max_length", "stride"), [(50, 4, 1), (50, 4, 4), (51, 8, 3), (9, 8, 8), (40, 4, 9)]
)
def test_windows_are_those_of_a_plain_loop(tmp_path, count, max_length, stride):
    tokens = token_file(tmp_path, count)
    index = WindowIndex.build(tokens, WindowConfig(max_length, stride), part="training")
    starts = range(0, count - max_length, stride)
    inputs, targets = index.batch(tokens, np.arange(len(index)))
    ids = tokens.ids.tolist()
    assert inputs.tolist() == [ids[start : start + max_length] for start in starts]
    assert targets.tolist() == [ids[start + 1 : start + max_length + 1] for start in starts]


@pytest.mark.parametrize(("count", "missing"), [(8, 1), (3, 6)])
def test_too_little_text_says_how_much_is_missing(tmp_path, count, missing):
    with pytest.raises(ValueError, match=rf"training part has {count} tokens, {missing} too few"):
        index_of(tmp_path, count, max_length=8, stride=8)


def test_a_saved_index_is_the_same_index_and_the_same_bytes(tmp_path):
    index = index_of(tmp_path, 50, max_length=4, stride=3)
    for name in ("train", "again"):
        index.save(tmp_path, name)
    loaded = WindowIndex.load(tmp_path, "train")
    assert loaded.config == index.config
    assert loaded.offsets.tolist() == index.offsets.tolist()
    assert (tmp_path / "train.npy").read_bytes() == (tmp_path / "again.npy").read_bytes()


def test_the_order_is_a_permutation_of_seed_and_epoch():
    assert sorted(order(100, 1, 0)) == list(range(100))
    first = order(100, 1, 0).tolist()
    order.cache_clear()
    assert order(100, 1, 0).tolist() == first
    others = [order(100, 2, 0).tolist(), order(100, 1, 1).tolist(), list(range(100))]
    assert first not in others


@pytest.mark.parametrize("batch_size", [1, 3, 7, 25])
def test_epochs_follow_without_a_gap_and_read_every_window_once(tmp_path, batch_size):
    index = index_of(tmp_path, 29, max_length=4, stride=3)
    n = len(index)
    assert n == 9
    steps = (index.rows_at(s, batch_size=batch_size, seed=5).tolist() for s in range(3 * n))
    rows = list(chain.from_iterable(steps))[: 3 * n]
    for epoch in range(3):
        assert rows[epoch * n : (epoch + 1) * n] == order(n, 5, epoch).tolist()


def test_spread_takes_windows_from_the_whole_file(tmp_path):
    index = index_of(tmp_path, 1001, max_length=4, stride=4)
    assert len(index) == 250
    assert index.spread(1000).tolist() == list(range(250))
    some = index.spread(60)
    assert len(some) == len(set(some.tolist())) == 60
    assert some[0] == 0
    assert some[-1] > 240


def test_overlap_is_the_share_read_again():
    assert WindowConfig(max_length=8, stride=8).overlap == 0
    assert WindowConfig(max_length=8, stride=10).overlap == 0
    assert WindowConfig(max_length=8, stride=2).overlap == 0.75


@pytest.mark.parametrize("name", ["max_length", "stride"])
def test_lengths_are_at_least_one(name):
    with pytest.raises(ValueError, match=f"{name} is 0 but must be at least 1"):
        WindowConfig(**{"max_length": 8, "stride": 8, name: 0})
