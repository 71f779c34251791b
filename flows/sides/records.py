"""Records of the making of artifacts, from dvc.lock: params, data, code."""

from collections.abc import Mapping
from typing import Any

from flows.sides.cached import ARTIFACTS, CODE
from tasks.tracking.runs import flatten

Entries = Mapping[str, Mapping[str, Any]]
Record = dict[str, dict[str, str]]
OUTPUTS = "outputs"
"""The kind of record with the hash of each output; two versions differ in hashes anyway."""


def of_lock(entries: Entries) -> Record:
    """Return the record of dvc.lock's entries."""
    record: Record = {"params": {}, "data": {}, "code": {}, OUTPUTS: outputs(entries)}
    for entry in entries.values():
        values = flatten(entry.get("params", {}).get("params.yaml", {}))
        record["params"] |= {name: plain(value) for name, value in values.items()}
        for dep in entry.get("deps", []):
            kind = "code" if dep["path"].startswith(CODE) else "data"
            if not dep["path"].startswith(ARTIFACTS):
                record[kind][dep["path"]] = dep["md5"]
    return record


def outputs(entries: Entries) -> dict[str, str]:
    """Return the hash of each output in artifacts/."""
    outs = (out for entry in entries.values() for out in entry.get("outs", []))
    return {out["path"]: out["md5"] for out in outs if out["path"].startswith(ARTIFACTS)}


def plain(value: object) -> str:
    """Return a param as text; numbers and lists have one form, as dvc.lock and MLflow write two."""
    text = str(value)
    if text[:1] in ("[", "("):  # a list in dvc.lock is a tuple in MLflow
        return f"[{text[1:-1].rstrip(',')}]"
    try:
        return repr(float(text))
    except ValueError:
        return text
