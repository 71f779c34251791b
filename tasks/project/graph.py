"""Contents of params.yaml, dvc.yaml and dvc.lock, and hashes on disk."""

import json
import re
import subprocess
from functools import cache, lru_cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gptmill.data.documents import decode_text
from gptmill.files import read_json
from gptmill.origins import MANIFEST, manifest_of
from gptmill.records import files_below
from tasks.project.cache import cached_file
from tasks.project.environment import ROOT
from tasks.project.hashes import known
from tasks.project.starts import check_start

REFERENCE = re.compile(r"\$\{([\w.]+)\}")
DATA = "data"


def read_text(path: Path) -> str:
    """Load a text file of the project, with newlines and without byte order mark.

    Raises ValueError for a file that is not UTF-8, and FileNotFoundError.
    """
    return decode_text(path.read_bytes(), path.name)


def read_yaml(path: Path) -> Any:
    """Load YAML as DVC does (YAML 1.2: `3e-4` is a number).

    Raises ValueError if the file is missing or not YAML.
    """
    name = path.relative_to(ROOT).as_posix()
    try:
        return parse_yaml(read_text(path), name)
    except FileNotFoundError:
        raise ValueError(
            f"{name} is missing: run `git checkout {name}` to restore the file"
        ) from None


def parse_yaml(text: str, name: str) -> Any:
    """Return the content of YAML text; raise ValueError with the file's name for other text."""
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ValueError(f"{name} is not YAML: {' '.join(str(error).split())}") from None


@cache
def params() -> dict[str, Any]:
    """Return params.yaml."""
    content = read_yaml(ROOT / "params.yaml")
    if not isinstance(content, dict):
        raise ValueError("params.yaml must hold a section per stage, `stage: {name: value}`")
    _check_shared(content)
    check_start(content)
    return content


def _check_shared(content: dict[str, Any]) -> None:
    """Raise ValueError for a shared value that every stage replaces with its own values.

    DVC's `-S shared.optimizer.warmup=0.2` writes out all values of all stages as before, so that
    the new value would have no effect, without any notice to the user. A shared value as in the
    last commit is accepted: the user replaced the value in every stage.
    """
    for block, shared in (content.get("shared") or {}).items():
        if not isinstance(shared, dict):
            continue
        users = {
            name: section[block]
            for name, section in content.items()
            if name != "shared" and isinstance(section, dict) and block in section
        }
        for key, value in shared.items():
            if users and all(values.get(key) != value for values in users.values()):
                explicit = _explicit_keys(block)
                written = all(set(shared) <= explicit.get(name, set()) for name in users)
                if written and value != _committed_value(block, key):
                    raise ValueError(
                        f"params.yaml: shared.{block}.{key} is {json.dumps(value)}, but every "
                        "stage has its own value. Set the value of one stage instead: "
                        f"-S {next(iter(users))}.{block}.{key}=..."
                    )


def _committed_value(block: str, key: str) -> Any:
    """Return a shared value of the last commit, or None where git has none."""
    command = ["git", "show", "HEAD:./params.yaml"]
    try:
        content = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        return YAML(typ="safe").load(content)["shared"][block][key]
    except (OSError, subprocess.CalledProcessError, YAMLError, KeyError, TypeError):
        return None


def _explicit_keys(block: str) -> dict[str, set[str]]:
    """Return, per section, the keys that are written out in a block and not merged into it."""
    root = YAML().compose(read_text(ROOT / "params.yaml"))
    sections = {name.value: dict(_children(section)) for name, section in root.value}
    return {
        name: {key for key, _ in _children(blocks[block])} - {"<<"}
        for name, blocks in sections.items()
        if block in blocks
    }


def _children(node: Any) -> list[tuple[str, Any]]:
    return [(key.value, value) for key, value in node.value] if node.id == "mapping" else []


def _resolve(text: str) -> str:
    """Replace every `${stage.name}` by the param, as DVC does."""

    def value(match: re.Match[str]) -> str:
        node: Any = params()
        for part in match[1].split("."):
            if not isinstance(node, dict) or part not in node:
                raise ValueError(f"dvc.yaml refers to {match[1]}, a key missing in params.yaml")
            node = node[part]
        return str(node)

    return REFERENCE.sub(value, text)


@cache
def stages() -> dict[str, dict[str, Any]]:
    """Return dvc.yaml's stages by name, in the file's order.

    Params are substituted into the paths.
    """
    graph: dict[str, dict[str, Any]] = json.loads(
        _resolve(json.dumps(read_yaml(ROOT / "dvc.yaml")["stages"]))
    )
    _check_order(graph)
    return graph


def _check_order(graph: dict[str, dict[str, Any]]) -> None:
    """Raise ValueError for stages that need each other's outputs."""
    makers = {
        name: {maker for path in stage["deps"] if (maker := _producer(graph, path))}
        for name, stage in graph.items()
    }
    try:
        TopologicalSorter(makers).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        read = {
            path
            for before, after in pairwise(circle)
            for path in graph[after]["deps"]
            if _producer(graph, path) == before
        }
        values = [f"{key} ({value})" for key, value in _references() if value in read]
        raise ValueError(
            f"the stages {' -> '.join(circle)} need each other's outputs: change "
            f"{' or '.join(values) or 'the deps in dvc.yaml'}, so that no stage reads an output "
            "made from the stage's own"
        ) from None


def _references() -> list[tuple[str, str]]:
    """Return the keys of params.yaml that dvc.yaml refers to, with their values."""
    keys = dict.fromkeys(REFERENCE.findall(read_text(ROOT / "dvc.yaml")))
    return [(key, _resolve(f"${{{key}}}")) for key in keys]


def forget() -> None:
    """Load dvc.yaml and params.yaml again at their next use."""
    params.cache_clear()
    stages.cache_clear()


def one_stage(words: list[str]) -> str:
    """Return the stage named by a command's words.

    Raises ValueError unless the words are the name of exactly one stage.
    """
    if len(words) != 1 or words[0] not in stages():
        text = " ".join(words) or "nothing"
        raise ValueError(f"name one stage of {', '.join(stages())}; given: {text}")
    return words[0]


def producer(path: str) -> str | None:
    """Return the stage that writes `path`, or None.

    `path` is an output or lies below an output folder.
    """
    return _producer(stages(), path)


def _producer(graph: dict[str, dict[str, Any]], path: str) -> str | None:
    for name, stage in graph.items():
        if any(path == out or path.startswith(out + "/") for out in stage["outs"]):
            return name
    return None


def upstream(stage: str) -> list[str]:
    """Return the stages directly upstream of `stage`.

    Each stage appears once, in dvc.yaml's order.
    """
    producers = {producer(path) for path in stages()[stage]["deps"]}
    return [name for name in stages() if name in producers]


def ancestors(stage: str) -> list[str]:
    """Return all direct and indirect upstream stages, in dvc.yaml's order."""
    names = set(upstream(stage))
    for name in list(names):
        names.update(ancestors(name))
    return [name for name in stages() if name in names]


def inputs(stage: str) -> list[str]:
    """Return the data and artifact paths read by `stage`, each once, without code."""
    deps = dict.fromkeys(stages()[stage]["deps"])
    return [path for path in deps if path.split("/")[0] in (DATA, "artifacts")]


def lock() -> dict[str, Any]:
    """Load dvc.lock's stages: inputs and outputs of the last runs."""
    path = ROOT / "dvc.lock"
    return dict(_locked(read_text(path)) if path.exists() else {})


@lru_cache(maxsize=1)
def _locked(text: str) -> dict[str, Any]:
    """Parse dvc.lock, once per content: a pipeline run asks 60 times, of 50 ms each."""
    return parse_lock(text, "dvc.lock")


def parse_lock(text: str, name: str) -> dict[str, Any]:
    """Return the stages of a dvc.lock; raise ValueError with the name for other texts."""
    content = parse_yaml(text, name) or {}
    if not isinstance(content, dict) or not isinstance(content.get("stages") or {}, dict):
        raise ValueError(f"{name} is no dvc.lock: `stages` must hold an entry for each stage")
    return content.get("stages") or {}


def locked_outputs(stage: str) -> dict[str, str]:
    """Return dvc.lock's hash for each output of `stage`.

    Empty if the stage never ran.
    """
    return {out["path"]: out["md5"] for out in lock().get(stage, {}).get("outs", [])}


def check_inputs(stage: str) -> dict[str, str]:
    """Return the hashes of a stage's inputs, verified against the records.

    A stage alone cannot know whether the pipeline wrote the inputs: DVC's `--single-item` does
    not check. Raises ValueError naming the missing or changed file and the command to run.
    """
    hashes = {}
    for path in inputs(stage):
        maker = producer(path)
        remedy = "make data" if path.split("/")[0] == DATA else f"make {maker or 'data'}"
        if not (ROOT / path).exists():
            raise ValueError(f"{stage}: {path} is missing: run `{remedy}`")
        hashes[path] = known().content_hash(ROOT / path)
        if maker is not None:
            _check_artifact(stage, path, hashes[path], maker)
        elif path.split("/")[0] == DATA:
            _check_raw(stage, path)
    return hashes


def _check_artifact(stage: str, path: str, actual: str, maker: str) -> None:
    recorded = locked_outputs(maker).get(path)
    if recorded is None:
        raise ValueError(f"{stage}: dvc.lock has no record of {path}: run `make {maker}`")
    if actual != recorded:
        file = _first_difference(ROOT / path, recorded) or path
        raise ValueError(
            f"{stage}: {file} differs from the output of {maker} (hash in dvc.lock {recorded}, "
            f"on disk {actual}): run `make {maker}` to restore the output"
        )


def _first_difference(folder: Path, recorded: str) -> str | None:
    """Return the first file that differs from DVC's cached listing.

    None if no file differs, if `folder` is a file, or if the cache has no listing.
    """
    listing = cached_file(ROOT, recorded)
    if not (folder.is_dir() and listing.exists()):
        return None
    cached = {entry["relpath"]: entry["md5"] for entry in read_json(listing)}
    actual = {
        file.relative_to(folder).as_posix(): known().md5(file) for file in files_below(folder)
    }
    names = {*cached, *actual}
    changed = sorted(name for name in names if cached.get(name) != actual.get(name))
    return f"{folder.relative_to(ROOT)}/{changed[0]}" if changed else None


def _check_raw(stage: str, path: str) -> None:
    """Compare raw files with their manifest in data/manifest/.

    data.dvc pins the manifest, but `dvc repro` alone accepts changed raw data silently and
    rewrites data.dvc. The manifest itself is the reference, since only `make data` writes the
    manifest.
    """
    if path.startswith(f"{DATA}/{MANIFEST}/"):
        return
    manifest = manifest_of(ROOT / DATA, path.removeprefix(f"{DATA}/"))
    name = manifest.relative_to(ROOT).as_posix()
    if not manifest.exists():
        raise ValueError(f"{stage}: {name} is missing: run `make data`")
    recorded = {file: entry["sha256"] for file, entry in read_json(manifest)["files"].items()}
    root = ROOT / path
    files = files_below(root) if root.is_dir() else [root]
    actual = {file.relative_to(ROOT / DATA).as_posix(): known().sha256(file) for file in files}
    prefix = path.removeprefix(DATA).strip("/")
    expected = {file for file in recorded if file == prefix or file.startswith(prefix + "/")}
    for file in sorted(expected | set(actual)):
        if actual.get(file) != recorded.get(file):
            raise ValueError(
                f"{stage}: data/{file} differs from the record in {name}: to change raw data, "
                "edit sources.toml and run `make data` to pin the new bytes"
            )
