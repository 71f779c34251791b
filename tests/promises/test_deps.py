"""Each stage's deps cover the code that can change its bytes: DVC cannot see a forgotten one."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tasks.project.environment import ROOT
from tasks.project.graph import stages

# Project files that every stage imports and that cannot change a byte of an artifact.
EXEMPT = {
    "tasks/__init__.py": "empty",
    "src/gptmill/__init__.py": "empty",
    "tasks/_environment.py": "where things are; no stage reads the environment for its work",
    "tasks/_locks.py": "keeps other processes out",
    "tasks/_models.py": "logs finished folders to MLflow",
    "tasks/_plots.py": "pictures for MLflow; no artifact holds one",
    "tasks/_process.py": "signals",
    "tasks/_progress.py": "what a person sees while a stage runs",
    "tasks/_project.py": "reads and checks records, and refuses; passes nothing into the work",
    "tasks/_ranks.py": "starts processes; what they compute together is src/gptmill/parallel.py's",
    "tasks/_receipt.py": "tells the flow what happened",
    "tasks/_resume.py": "where a training's state lies; what is in it is src/gptmill/state.py's",
    "tasks/_served_assistant.py": "what MLflow serves; runs after the pipeline",
    "tasks/_served_classifier.py": "what MLflow serves; runs after the pipeline",
    "tasks/_served_generator.py": "what MLflow serves; runs after the pipeline",
    "tasks/_stage.py": "the frame: checks, records, publishes what the body wrote",
    "tasks/_tracking.py": "MLflow",
}


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


def closure(path: str) -> set[str]:
    """Return every project file that running `path` can load, short of the exempt ones."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in found and file not in EXEMPT:
            found.add(file)
            waiting += imports(file)
    return found


def code_deps(stage: str) -> set[str]:
    return {dep for dep in stages()[stage]["deps"] if dep.endswith(".py")}


@pytest.mark.parametrize("stage", list(stages()))
def test_deps_are_the_code_that_the_stage_imports(stage: str) -> None:
    assert code_deps(stage) == closure(f"tasks/{stage}.py")


def test_what_is_exempt_exists() -> None:
    assert [path for path in EXEMPT if not (ROOT / path).exists()] == []


def test_no_stage_imports_another() -> None:
    files = {f"tasks/{stage}.py" for stage in stages()}
    assert all(closure(file) & files == {file} for file in files)


def test_init_files_import_nothing() -> None:
    for folder in ("tasks", "flows", "src/gptmill"):
        path = Path(folder) / "__init__.py"
        assert imports(str(path)) == frozenset()
