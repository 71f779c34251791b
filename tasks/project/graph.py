"""What the project's own files say: params.yaml, dvc.yaml, dvc.lock, and the hashes on disk."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gptmill.files import md5, read_json, sha256
from gptmill.origins import MANIFEST, manifest_of
from gptmill.records import content_hash, files_below
from tasks.project.environment import ROOT

REFERENCE = re.compile(r"\$\{([\w.]+)\}")
DATA = "data"


def read_yaml(path: Path) -> Any:
    """Read YAML as DVC does (YAML 1.2: `3e-4` is a number)."""
    name = path.relative_to(ROOT)
    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{name} is missing: `git checkout {name}` brings it back") from None
    except YAMLError as error:
        raise ValueError(f"{name} is not YAML: {' '.join(str(error).split())}") from None


@cache
def params() -> dict[str, Any]:
    """Return params.yaml."""
    content = read_yaml(ROOT / "params.yaml")
    if not isinstance(content, dict):
        raise ValueError("params.yaml must hold one section a stage, `stage: {name: value}`")
    _check_shared(content)
    return content


def _check_shared(content: dict[str, Any]) -> None:
    """Raise ValueError for a value of the section `shared` that no stage has.

    DVC's `-S shared.optimizer.warmup=0.2` writes every stage's values out as they were, so that
    the new one would be without effect, and nobody would know.
    """
    for block, shared in (content.get("shared") or {}).items():
        sections = {name: section for name, section in content.items() if name != "shared"}
        users = {
            name: section[block]
            for name, section in sections.items()
            if isinstance(section, dict) and block in section
        }
        for key, value in shared.items() if isinstance(shared, dict) else [("", shared)]:
            taken = [own.get(key) if isinstance(shared, dict) else own for own in users.values()]
            if value not in taken:
                where = ".".join(filter(None, [block, key]))
                raise ValueError(
                    f"params.yaml: shared.{where} is {json.dumps(value)}, and no stage has that "
                    f"value. `-S` sets a stage's own: -S {next(iter(users), 'STAGE')}.{where}=..."
                )


def _resolve(text: str) -> str:
    """Put params into `${stage.name}`, as DVC does."""

    def value(match: re.Match[str]) -> str:
        found: Any = params()
        for part in match[1].split("."):
            if not isinstance(found, dict) or part not in found:
                raise ValueError(f"params.yaml has no {match[1]}, which dvc.yaml refers to")
            found = found[part]
        return str(found)

    return REFERENCE.sub(value, text)


@cache
def stages() -> dict[str, dict[str, Any]]:
    """Return dvc.yaml's stages by name, in the file's order, with params put into paths."""
    graph: dict[str, dict[str, Any]] = json.loads(
        _resolve(json.dumps(read_yaml(ROOT / "dvc.yaml")["stages"]))
    )
    return graph


def one_stage(words: list[str]) -> str:
    """Return the stage that a command names. Raises ValueError where it is not just one."""
    if len(words) != 1 or words[0] not in stages():
        given = " ".join(words) or "nothing"
        raise ValueError(f"name one stage of {', '.join(stages())}; given: {given}")
    return words[0]


def producer(path: str) -> str | None:
    """Return the stage whose output holds `path`; None where no stage makes it."""
    for name, stage in stages().items():
        if any(path == out or path.startswith(out + "/") for out in stage["outs"]):
            return name
    return None


def upstream(stage: str) -> list[str]:
    """Return the stages whose outputs `stage` reads, each once, in dvc.yaml's order."""
    makers = {producer(path) for path in stages()[stage]["deps"]}
    return [name for name in stages() if name in makers]


def ancestors(stage: str) -> list[str]:
    """Return every stage that `stage` rests on, in dvc.yaml's order."""
    found = set(upstream(stage))
    for name in list(found):
        found.update(ancestors(name))
    return [name for name in stages() if name in found]


def inputs(stage: str) -> list[str]:
    """Return the paths of data and artifacts that `stage` reads; its code is not among them."""
    return [path for path in stages()[stage]["deps"] if path.split("/")[0] in (DATA, "artifacts")]


def lock() -> dict[str, Any]:
    """Return dvc.lock's stages: what the last run of each read and wrote."""
    path = ROOT / "dvc.lock"
    content = read_yaml(path) if path.exists() else None
    return dict((content or {}).get("stages") or {})


def locked_outputs(stage: str) -> dict[str, str]:
    """Return the hash that dvc.lock holds for each output of `stage`; empty if it never ran."""
    return {out["path"]: out["md5"] for out in lock().get(stage, {}).get("outs", [])}


def check_inputs(stage: str) -> dict[str, str]:
    """Return the hash of each input of `stage`, each being what the records say it is.

    A stage alone cannot know whether its inputs are what the pipeline made: DVC's
    `--single-item` does not look. Raises ValueError naming the file and the command.
    """
    found = {}
    for path in inputs(stage):
        maker = producer(path)
        remedy = "make data" if path.split("/")[0] == DATA else f"make {maker or 'data'}"
        if not (ROOT / path).exists():
            raise ValueError(f"{stage}: {path} is missing: `{remedy}` makes it")
        found[path] = content_hash(ROOT / path)
        if maker is not None:
            _check_artifact(stage, path, found[path], maker)
        elif path.split("/")[0] == DATA:
            _check_raw(stage, path)
    return found


def _check_artifact(stage: str, path: str, found: str, maker: str) -> None:
    recorded = locked_outputs(maker).get(path)
    if recorded is None:
        raise ValueError(f"{stage}: dvc.lock has no record of {path}: `make {maker}` makes it")
    if found != recorded:
        which = _first_difference(ROOT / path, recorded) or path
        raise ValueError(
            f"{stage}: {which} is not what {maker} wrote (dvc.lock records {recorded}, "
            f"found {found}): `make {maker}` makes it again"
        )


def _first_difference(folder: Path, recorded: str) -> str | None:
    """Name the first file that differs from DVC's own listing, where the cache has it."""
    listing = ROOT / ".dvc/cache/files/md5" / recorded[:2] / recorded[2:]
    if not (folder.is_dir() and listing.exists()):
        return None
    was = {entry["relpath"]: entry["md5"] for entry in read_json(listing)}
    now = {file.relative_to(folder).as_posix(): md5(file) for file in files_below(folder)}
    changed = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    return f"{folder.relative_to(ROOT)}/{changed[0]}" if changed else None


def _check_raw(stage: str, path: str) -> None:
    """Compare raw files with their manifest in data/manifest/, which data.dvc pins.

    `dvc repro` alone takes changed raw data without a word and rewrites data.dvc, so the
    manifest is asked, which only `make data` writes.
    """
    if path.startswith(f"{DATA}/{MANIFEST}/"):
        return
    manifest = manifest_of(ROOT / DATA, path.removeprefix(f"{DATA}/"))
    name = manifest.relative_to(ROOT).as_posix()
    if not manifest.exists():
        raise ValueError(f"{stage}: {name} is missing: `make data` makes it")
    recorded = {file: entry["sha256"] for file, entry in read_json(manifest)["files"].items()}
    root = ROOT / path
    below = files_below(root) if root.is_dir() else [root]
    found = {file.relative_to(ROOT / DATA).as_posix(): sha256(file) for file in below}
    prefix = path.removeprefix(DATA).strip("/")
    expected = {file for file in recorded if file == prefix or file.startswith(prefix + "/")}
    for file in sorted(expected | set(found)):
        if found.get(file) != recorded.get(file):
            raise ValueError(
                f"{stage}: data/{file} is not what {name} records: raw data changes "
                "by an edit of sources.toml and `make data`, which pins it"
            )
