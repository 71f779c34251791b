"""The wheel in an empty environment, without the orchestrators, and the example that uses it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from gptmill.sources.fetch import NO_NETWORK
from tasks.project.environment import ROOT
from tests.support.project import commit, copy_tree
from tests.support.talkers import make_models

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LIBRARY = PROJECT["dependencies"]
EXTRAS = PROJECT["optional-dependencies"]
PIPELINE = [*LIBRARY, *EXTRAS["pipeline"]]
ORCHESTRATORS = ("prefect", "dvc", "mlflow")
PINNED = ("--constraint", ROOT / "configs" / "constraints.txt")
LEAST_F1 = 0.9
"""Of the example's classifier on other machines than those of the README."""
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, kernel_name="python3").execute()
outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
print([kind for output in outputs for kind in output.get("data", {}) if kind == "image/png"])
"""
IMPORT_ALL = f"""
import importlib, pkgutil, gptmill
from importlib.util import find_spec
assert "site-packages" in gptmill.__file__
for module in pkgutil.walk_packages(gptmill.__path__, "gptmill."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print([name for name in {ORCHESTRATORS} if find_spec(name)])
"""


def normalized(requirement: str) -> str:
    """Return the name of a package in a requirement, as indexes spell it."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def brought(requirements: list[str]) -> set[str]:
    """Return the packages that are named, and those that they themselves need."""
    named = {normalized(requirement) for requirement in requirements}
    needed = (line for name in named for line in metadata.requires(name) or [])
    return named | {normalized(line) for line in needed if "extra ==" not in line}


def imported(folder: str) -> set[str]:
    """Return the packages that the modules of a folder import, functions included."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


@pytest.mark.parametrize(
    ("folder", "requirements"), [("src", LIBRARY), ("tasks", PIPELINE), ("flows", PIPELINE)]
)
def test_the_requirements_cover_the_imports(folder: str, requirements: list[str]) -> None:
    allowed, packages = brought(requirements), metadata.packages_distributions()
    missing = {
        name
        for name in imported(folder) - {"gptmill", "tasks", "flows"}
        if allowed.isdisjoint(map(normalized, packages.get(name, [name])))
    }
    optional = {"flows": {normalized(one) for one in EXTRAS["shards"]}, "tasks": {"pynvml"}}
    assert missing == optional.get(folder, set())  # of the extras `shards` and `gpu`
    assert folder != "src" or allowed.isdisjoint(ORCHESTRATORS)


def run(*words: str | Path, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user without this tree on the path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [*map(str, words)], cwd=cwd, env={**kept, **extra}, capture_output=True, text=True
    )


def pip(*words: str | Path, cwd: Path) -> None:
    """Run pip with the machine's own settings; skip the test where the index is out of reach."""
    done = run(sys.executable, "-m", "pip", "-q", *words, cwd=cwd)
    if done.returncode and NO_NETWORK.search(done.stderr):
        pytest.skip(f"no package index: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def built(source: Path, out: Path) -> Path:
    """Build the wheel as `make wheel` does."""
    pip("wheel", "--no-deps", "--wheel-dir", out, source, cwd=source)
    [wheel] = out.glob("gptmill-*.whl")
    return wheel


def version(wheel: Path) -> str:
    return wheel.name.split("-")[1]


@pytest.mark.slow
def test_the_version_comes_from_the_tags(tmp_path: Path) -> None:
    """The tree without git is below this one: another project's tags must not count."""
    project = copy_tree(tmp_path / "project")
    commit(project, "a release")
    assert re.fullmatch(r"0\.1\.dev1\+g\w+", version(built(project.root, tmp_path / "none")))
    project.run("git", "tag", "v0.3.0")
    assert version(built(project.root, tmp_path / "tag")) == "0.3.0"
    archive = project.root / "archive"
    shutil.copytree(ROOT / "src", archive / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, archive)
    assert version(built(archive, tmp_path / "archive")) == "0.1.dev0"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the tools of an environment with the wheel alone, and the wheel's version."""
    root = tmp_path_factory.mktemp("wheel")
    wheel, tools = built(ROOT, root / "dist"), root / "env" / "bin"
    run(sys.executable, "-m", "venv", "--without-pip", root / "env", cwd=root)
    pip("--python", tools / "python", "install", *PINNED, wheel, cwd=root)
    return tools, version(wheel)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_runs_in_an_empty_environment(
    installed: tuple[Path, str], tmp_path: Path
) -> None:
    tools, number = installed
    make_models(tmp_path)

    def output(*words: str | Path) -> str:
        done = run(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    gptmill = tools / "gptmill"
    assert output(tools / "python", "-c", IMPORT_ALL) == "[]\n"
    assert output(gptmill, "--version") == f"gptmill {number}\n"
    assert "classify" in output(gptmill, "--help")
    assert output(gptmill, "generate", "lm", "You have", "--max-new-tokens", "4")
    assert output(gptmill, "classify", "classifier", "See you").split("\t")[2] == "See you\n"
    done = run(gptmill, "classify", "models:/gptmill-classifier@champion", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "MLflow, which is not installed: `pip install 'gptmill[pipeline]'`" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_example_runs_with_the_wheel(installed: tuple[Path, str], tmp_path: Path) -> None:
    """The whole example: the mails from npm, both trainings, the notebook in a kernel."""
    python, folder = installed[0] / "python", tmp_path / "example"
    shutil.copytree(
        ROOT / "examples" / "spam-mail", folder, ignore=shutil.ignore_patterns("out", "downloads")
    )
    pip("--python", python, "install", *PINNED, *PROJECT["optional-dependencies"]["examples"],
        cwd=folder)  # fmt: skip
    done = run(python, "train.py", cwd=folder)
    if done.returncode and re.search(r"could not be fetched|needs npm", done.stderr):
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["gptmill"]["f1"]["value"] > LEAST_F1
    done = run(python, "-c", EXECUTE, "spam_mail.ipynb", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['image/png']\n"
