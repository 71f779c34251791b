"""Dotted keys of params.yaml and their values: put in place, written as YAML, shown in a line."""

import json
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

Changes = dict[str, Any]  # `pretrain.optimizer.warmup` and what it is to be


def encoded(choice: Any) -> str:
    """Return a choice as text: samplers and their records know plain values only."""
    return json.dumps(choice, sort_keys=True)


def put(content: Any, changes: Changes) -> None:
    """Put values under dotted keys into nested content, which has every key already."""
    for key, value in changes.items():
        *path, last = key.split(".")
        found = content
        for part in path:
            found = found[part]
        found[last] = value


def edited(text: str, changes: Changes) -> str:
    """Return params.yaml's text with other values; its comments and its shape stay."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(text)
    put(content, changes)
    out = StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def as_yaml(changes: Changes) -> str:
    """Return params as YAML that fits into params.yaml."""
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        *path, last = key.split(".")
        found = nested
        for part in path:
            found = found.setdefault(part, {})
        found[last] = value
    out = StringIO()
    YAML().dump(nested, out)
    return out.getvalue()


def shown(changes: Changes) -> str:
    """Write params in one line, by the shortest names that tell them apart."""
    names = short_names(list(changes))
    return ", ".join(f"{names[key]} {_plain(value)}" for key, value in changes.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def short_names(keys: list[str]) -> dict[str, str]:
    """Return each key's last word, or the whole key where two end in the same word."""
    ends = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}
