"""Each stage's deps cover the code that can change its bytes: DVC cannot see a forgotten one."""

import ast
from functools import cache
from pathlib import Path

import pytest

from gptmill.records import files_below
from tasks.project.environment import ROOT
from tasks.project.graph import inputs, stages

# Folders of code that every stage imports and that cannot change a byte of an artifact.
EXEMPT = {
    "tasks/frame": "checks inputs, records, resumes, publishes what the body wrote",
    "tasks/processes": "signals, locks, and what a person sees while a stage runs",
    "tasks/project": "reads and checks params and records; what it passes on, DVC sees as params",
    "tasks/tracking": "MLflow, and plots, which no artifact holds",
}
WHOLE = 0.6
"""A stage that imports this share of a folder's lines depends on the folder."""
MOST_LINES = 106
"""What the code deps of all stages may take up in dvc.yaml."""


def file_of(module: str) -> str | None:
    """Return the project file of a module, relative to the root."""
    path = module.replace(".", "/")
    for place in (f"src/{path}", path):
        for found in (f"{place}.py", f"{place}/__init__.py"):
            if (ROOT / found).exists():
                return found
    return None


@cache
def imports(path: str) -> frozenset[str]:
    """Return the project files that a file imports anywhere in it, functions included."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    parents = {name.rsplit(".", 1)[0] for name in names if "." in name}
    found = {file_of(name) for name in names | parents}
    return frozenset(name for name in found if name is not None)


def is_exempt(path: str) -> bool:
    """Return whether a file is of an exempt folder, or says nothing but what a folder holds."""
    return path.endswith("/__init__.py") or path.startswith(tuple(f"{name}/" for name in EXEMPT))


@cache
def closure(path: str) -> frozenset[str]:
    """Return every project file that running `path` can load, short of the exempt ones."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in found and not is_exempt(file):
            found.add(file)
            waiting += imports(file)
    return frozenset(found)


def code_deps(stage: str) -> list[str]:
    return [dep for dep in stages()[stage]["deps"] if dep not in inputs(stage)]


@cache
def files_of(dep: str) -> frozenset[str]:
    """Return the Python files of a dep; those that say nothing do not count."""
    if (ROOT / dep).is_file():
        return frozenset({dep})
    below = (path.relative_to(ROOT).as_posix() for path in files_below(ROOT / dep))
    return frozenset(path for path in below if path.endswith(".py") and not is_exempt(path))


def n_lines(paths: frozenset[str]) -> int:
    return sum(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in paths)


def used(stage: str, dep: str) -> float:
    """Return the share of a folder's lines that a stage imports."""
    return n_lines(files_of(dep) & closure(f"tasks/{stage}.py")) / n_lines(files_of(dep))


@pytest.mark.parametrize("stage", list(stages()))
def test_deps_cover_the_code_that_the_stage_imports(stage: str) -> None:
    covered = frozenset[str]().union(*map(files_of, code_deps(stage)))
    assert closure(f"tasks/{stage}.py") - covered == frozenset()


@pytest.mark.parametrize("stage", list(stages()))
def test_every_dep_is_imported_and_a_folder_for_the_most_part(stage: str) -> None:
    for dep in code_deps(stage):
        assert used(stage, dep) >= (WHOLE if (ROOT / dep).is_dir() else 1), dep


@pytest.mark.parametrize("stage", list(stages()))
def test_a_folder_is_named_where_most_of_it_is_imported(stage: str) -> None:
    for folder in {Path(path).parent.as_posix() for path in closure(f"tasks/{stage}.py")}:
        if folder not in ("tasks", "src/gptmill", "tasks/shared") and used(stage, folder) >= WHOLE:
            deps = code_deps(stage)
            assert any(folder == dep or folder.startswith(f"{dep}/") for dep in deps), folder


def test_no_dep_is_a_whole_layer_and_the_graph_is_one_screen() -> None:
    deps = [dep for stage in stages() for dep in code_deps(stage)]
    assert {"tasks", "src/gptmill", "src"}.isdisjoint(deps)
    assert len(deps) <= MOST_LINES


def test_what_is_exempt_exists() -> None:
    assert [path for path in EXEMPT if not (ROOT / path).is_dir()] == []


def test_no_stage_imports_another() -> None:
    files = {f"tasks/{stage}.py" for stage in stages()}
    assert all(closure(file) & files == {file} for file in files)


def test_init_files_say_what_a_folder_holds_and_nothing_more() -> None:
    """So a stage may import one file of a package without the others."""
    for folder in ("tasks", "flows", "src/gptmill"):
        for path in (ROOT / folder).rglob("__init__.py"):
            assert len(ast.parse(path.read_text(encoding="utf-8")).body) == 1, path
