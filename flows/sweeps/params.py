"""Dotted keys of params.yaml and their values.

The functions set values, write YAML and format params in a single line.
"""

import json
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.representer import RoundTripRepresenter

Changes = dict[str, Any]  # new values by key: `pretrain.optimizer.warmup`


class Representer(RoundTripRepresenter):
    """ruamel.yaml's representer, with `null` written out: an empty value looks forgotten."""


Representer.add_representer(
    type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def encoded(choice: Any) -> str:
    """Encode a choice as text.

    Samplers and their records accept plain values only.
    """
    return json.dumps(choice, sort_keys=True)


def put(content: Any, changes: Changes) -> None:
    """Set values under dotted keys in nested content.

    The content must have every key already.
    """
    for key, value in changes.items():
        *path, last = key.split(".")
        section = content
        for part in path:
            section = section[part]
        section[last] = _in_one_line(value) if isinstance(value, dict) else value


def _in_one_line(value: dict[str, Any]) -> CommentedMap:
    mapping = CommentedMap(value)
    mapping.fa.set_flow_style()
    return mapping


def edited(text: str, changes: Changes) -> str:
    """Return params.yaml's text with changed values.

    Comments and layout stay unchanged.
    """
    yaml = YAML()
    yaml.Representer = Representer
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(text)
    put(content, changes)
    out = StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def as_yaml(changes: Changes) -> str:
    """Return params as YAML, ready to paste into params.yaml."""
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        *path, last = key.split(".")
        section = nested
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    out = StringIO()
    YAML().dump(nested, out)
    return out.getvalue()


def shown(changes: Changes) -> str:
    """Format params in a single line, with short unique names."""
    names = short_names(list(changes))
    return ", ".join(f"{names[key]} {_plain(value)}" for key, value in changes.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def short_names(keys: list[str]) -> dict[str, str]:
    """Return each key's shortest unique name.

    The name is the key's last word, or the whole key where two keys end in the same word.
    """
    ends = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}
