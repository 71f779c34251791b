"""Random damage to bytes, JSON, lines and pickles; equal generators give equal damage."""

import copy
import io
import json
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from gptmill.formats.tensorflow import index_rows
from tests.support.forms import write_index

Mutator = Callable[[Random, bytes], bytes]

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 255, 2**31, 2**63, 2**64, 10**30),
    *(1.5, -0.5, 1e308, "", "x", "1", "\x00", "\u00e9", "../x", "a" * 300, "<|endoftext|>"),
    *([], {}, [1], ["a"], [[]], {"a": 1}, [None], {"content": None}),
]
NUMBERS = [0, 1, 2, 7, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


def damage_bytes(random: Random, content: bytes) -> bytes:
    """Change, cut, insert or repeat bytes; most changes are near the start."""
    out = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        at = int(len(out) * random.random() ** random.choice((1, 3, 6)))
        random.choice(BYTE_CHANGES)(random, out, at)
    return bytes(out)


def _flip(random: Random, out: bytearray, at: int) -> None:
    if at < len(out):
        out[at] ^= 1 << random.randrange(8)


def _number(random: Random, out: bytearray, at: int) -> None:
    width = random.choice((4, 8))
    out[at : at + width] = (random.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")


def _cut(random: Random, out: bytearray, at: int) -> None:
    del out[at:]


def _remove(random: Random, out: bytearray, at: int) -> None:
    del out[at : at + random.randrange(1, 9)]


def _insert(random: Random, out: bytearray, at: int) -> None:
    out[at:at] = random.randbytes(random.randrange(1, 9))


BYTE_CHANGES = [_flip, _flip, _number, _number, _cut, _remove, _insert]


def damage_json(random: Random, content: bytes) -> bytes:
    """Change values, keys or the encoding of JSON."""
    value = json.loads(content)
    if random.random() < 0.08:
        return random.choice(ENCODINGS)(random, content)
    return json.dumps(damage_value(random, value)).encode()


ENCODINGS: list[Mutator] = [
    damage_bytes,
    damage_bytes,
    lambda random, content: b"\xef\xbb\xbf" + content,
    lambda random, content: content.decode().encode("utf-16"),
    lambda random, content: POINTER,
    lambda random, content: b"",
    lambda random, content: b"[" * 100_000,
    lambda random, content: b'{"a": 1, "a": 2}',
    lambda random, content: content.replace(b'"', b'"\\ud800', 1),
    lambda random, content: content.replace(b": 1", b": NaN", 1),
]


def damage_value(random: Random, value: Any) -> Any:
    """Return a JSON value with one to three changes."""
    root = [copy.deepcopy(value)]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        parent, key = _place(random, root)
        random.choice(VALUE_CHANGES)(random, parent, key)
    return root[0] if root else None


def _place(random: Random, root: list[Any]) -> tuple[Any, Any]:
    """Choose a place in a value, shallow places first."""
    parent: Any = root
    key: Any = 0 if root else None
    while isinstance(parent, list | dict) and key is not None:
        child = parent[key]
        keys = (
            list(child)
            if isinstance(child, dict)
            else [*range(len(child))]
            if isinstance(child, list)
            else []
        )
        if not keys or (parent is not root and random.random() < 0.35):
            break
        parent, key = child, random.choice(keys)
    return parent, key


def _replace(random: Random, parent: Any, key: Any) -> None:
    if key is not None:
        parent[key] = copy.deepcopy(random.choice(ODD))


def _delete(random: Random, parent: Any, key: Any) -> None:
    if isinstance(parent, dict) or (key is not None and len(parent) > 1):
        del parent[key]


def _rename(random: Random, parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[random.choice(("x", "", f"{key}2", *parent))] = parent.pop(key)


def _wrap(random: Random, parent: Any, key: Any) -> None:
    if key is not None:
        parent[key] = random.choice(([parent[key]], {"a": parent[key]}, str(parent[key])))


def _scale(random: Random, parent: Any, key: Any) -> None:
    if key is not None and isinstance(parent[key], int):
        parent[key] = random.choice((-parent[key], parent[key] + 1, parent[key] * 10**6, 0.5))


def _swap(random: Random, parent: Any, key: Any) -> None:
    if key is not None:
        other = random.choice(list(parent) if isinstance(parent, dict) else [*range(len(parent))])
        parent[key], parent[other] = parent[other], parent[key]


VALUE_CHANGES = [_replace, _replace, _replace, _delete, _rename, _wrap, _scale, _swap]


def damage_safetensors(random: Random, content: bytes) -> bytes:
    """Change the header of a safetensors file as JSON, or any bytes."""
    if random.random() < 0.2:
        return damage_bytes(random, content)
    length = int.from_bytes(content[:8], "little")
    header = damage_json(random, content[8 : 8 + length])
    stated = len(header) if random.random() < 0.95 else random.choice(NUMBERS)
    return stated.to_bytes(8, "little") + header + content[8 + length :]


def damage_lines(random: Random, content: bytes) -> bytes:
    """Change, repeat, remove or swap lines, or any bytes."""
    if random.random() < 0.3:
        return random.choice((damage_bytes, *ENCODINGS[2:6]))(random, content)
    lines = content.split(b"\n")
    at = random.randrange(len(lines))
    other = random.choice((b"", b"x", b"a b c", b" ", b'x: "y"', lines[0], lines[at] * 2))
    lines[at : at + random.randrange(2)] = [other]
    return b"\n".join(lines)


def damage_pickle(random: Random, content: bytes) -> bytes:
    """Change the objects in a PyTorch file, or any bytes."""
    if random.random() < 0.4:
        return damage_bytes(random, content)
    value = torch.load(io.BytesIO(content), weights_only=True)
    for name in random.sample(list(value), random.choice((1, 1, 2))):
        value[name] = random.choice(TENSOR_CHANGES)(value[name])
        if random.random() < 0.2:
            value[random.choice(("x", 3, None, ("a",), "module." + name))] = value.pop(name)
    out = io.BytesIO()
    torch.save(random.choice((value, value, value, [value], {"model": value})), out)
    return out.getvalue()


TENSOR_CHANGES: list[Callable[[Any], Any]] = [
    lambda tensor: tensor[0],
    lambda tensor: tensor[None],
    lambda tensor: tensor.long(),
    lambda tensor: tensor > 0,
    lambda tensor: tensor.to("meta"),
    lambda tensor: tensor.to(torch.complex64),
    lambda tensor: tensor.to_sparse(),
    lambda tensor: tensor * float("nan"),
    lambda tensor: tensor[:0],
    lambda tensor: torch.zeros(1).expand(2**45),
    lambda tensor: torch.tensor(3.0),
    lambda tensor: None,
    lambda tensor: "x",
    lambda tensor: {"a": tensor},
]


def damage_index(random: Random, content: bytes) -> bytes:
    """Change the rows of a TensorFlow index behind valid checksums, or any bytes."""
    if random.random() < 0.3:
        return damage_bytes(random, content)
    rows = sorted(index_rows(content).items())
    at = random.randrange(len(rows))
    key, value = rows[at]
    rows[at] = random.choice(
        ((key, damage_bytes(random, value)), (damage_bytes(random, key), value))
    )
    return write_index(rows)
