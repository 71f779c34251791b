import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gptmill.checkpoint.weights import (
    drop_pages,
    open_folder,
    read_shapes,
    read_tensors,
    save_safetensors,
)
from gptmill.files import write_json

FORMS = ["safetensors", "bin", "old bin", "sharded safetensors", "sharded bin"]


def some_tensors() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "wte.weight": torch.randn(7, 3),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "h.0.ln_1.weight": torch.randn(3).half(),
        "h.0.mask": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    }


def write(folder: Path, tensors: dict[str, Tensor], form: str) -> None:
    match form:
        case "safetensors":
            save_file(tensors, folder / "model.safetensors")
        case "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        case "old bin":
            path = folder / "pytorch_model.bin"
            torch.save(tensors, path, _use_new_zipfile_serialization=False)
        case "sharded safetensors":
            _write_shards(folder, tensors, name="model.safetensors", save=save_file)
        case "sharded bin":
            _write_shards(folder, tensors, name="pytorch_model.bin", save=torch.save)


def _write_shards(
    folder: Path,
    tensors: dict[str, Tensor],
    *,
    name: str,
    save: Callable[[dict[str, Tensor], Path], None],
) -> None:
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard, members in (("1", names[::2]), ("2", names[1::2])):
        save({member: tensors[member] for member in members}, folder / f"shard-{shard}-{name}")
        weight_map |= dict.fromkeys(members, f"shard-{shard}-{name}")
    write_json(folder / f"{name}.index.json", {"metadata": {}, "weight_map": weight_map})


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_tensors(tmp_path: Path, form: str) -> None:
    expected = some_tensors()
    write(tmp_path, expected, form)
    found = read_tensors(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    assert read_shapes(tmp_path) == shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_safetensors_are_written_as_the_library_does(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    tensors = {"b": torch.randn(7, 3).t(), "a.weight": torch.randn(3), "\u00e9": torch.ones(())}
    save_safetensors(tmp_path / "ours", tensors, dtype)
    named = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(named, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_tensor_at_an_odd_place_is_read_and_kept(tmp_path: Path) -> None:
    header = (
        b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},'
        b'"b":{"dtype":"F32","shape":[2],"data_offsets":[3,11]}}'
    )
    values = torch.tensor([1.5, -2.0])
    content = len(header).to_bytes(8, "little") + header + b"abc" + values.numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(content)
    tensors = open_folder(tmp_path)
    assert torch.equal(tensors.take("b").tensor, values)


def test_a_header_that_does_not_add_up_is_told(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a has 8 bytes; the size must match shape \(3,\)"):
        read_shapes(tmp_path)


def test_pages_that_were_given_back_are_read_again(tmp_path: Path) -> None:
    values = torch.randn(300, 1000)
    save_file({"x": values}, tmp_path / "model.safetensors")
    tensors = open_folder(tmp_path)
    for _ in range(2):
        found, mapped = tensors.take("x")
        assert mapped
        assert torch.equal(found, values)
        drop_pages(found)


@pytest.mark.parametrize("name", ["../model.safetensors", "a" * 300])
def test_a_shard_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"x": name}})
    with pytest.raises(ValueError, match=rf"names '{name[:80]}'; allowed are files in the same"):
        read_shapes(tmp_path)


def test_safetensors_come_first(tmp_path: Path) -> None:
    write(tmp_path, some_tensors(), "bin")
    write(tmp_path, {"other": torch.zeros(1)}, "safetensors")
    assert read_shapes(tmp_path) == {"other": (1,)}


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no weights; allowed are model.safetensors, "):
        read_shapes(tmp_path)


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    write(tmp_path, some_tensors(), "sharded safetensors")
    (tmp_path / "shard-2-model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names missing files: shard-2-model.safetensors"):
        read_shapes(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_cut_file_is_told(tmp_path: Path, keep: int) -> None:
    write(tmp_path, some_tensors(), "safetensors")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors (is not a complete|has \d+ bytes)"):
        read_shapes(tmp_path)


def test_a_cut_header_is_told(tmp_path: Path) -> None:
    write(tmp_path, some_tensors(), "safetensors")
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: 8 + int.from_bytes(content[:8], "little") - 4])
    with pytest.raises(ValueError, match=r"model.safetensors is not a complete safetensors file"):
        read_shapes(tmp_path)


def test_what_is_no_safetensors_file_is_told(tmp_path: Path) -> None:
    for content in (b"version https://git-lfs.example\noid sha256:12\nsize 5\n", b"\2" + bytes(9)):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"model.safetensors is not a complete safetensors file"
        ):
            read_shapes(tmp_path)


class Harmful:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("content", [Harmful(), {"x": Harmful()}, {"x": 1}, [1]])
def test_a_pickle_with_more_than_tensors_is_refused_and_not_run(
    tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin .* allowed"):
        read_tensors(tmp_path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x02" + b"x" * 50])
def test_a_broken_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model.bin .* allowed"):
        read_shapes(tmp_path)
