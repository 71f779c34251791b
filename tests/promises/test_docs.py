"""README and docs/: each command exists, and runs here or says what it needs.

A block of commands without a comment `needs:` before it runs in the slow test, in a tiny project.
The quick tests check every command, marked or not, with the parsers and the Makefile.
"""

import ast
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from docs.site import artifacts, commands, library, params, speed, variables
from docs.site.__main__ import PICTURES
from tasks.project import graph
from tasks.project.environment import ROOT
from tests.support.project import TINY, Project, commit, copy_tree, source_entry, write_tiny_data

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {
    *("GPU", "Ollama", "The Verdict", "a cluster", "a person", "a registered model", "a server"),
    *("a second clone", "llama.cpp", "long", "network", "registered models", "two machines"),
    *("the extra", "two terminals", "vLLM"),
}
# programs of other projects, and of the shell
OTHERS = {
    *("bash", "benchmarks/gpu.sh", "cd", "docker", "done", "echo", "export", "for", "git", "less"),
    *("llama-cli", "mlflow", "ollama", "pip", "prefect", "srun", "vllm"),
}
BLOCK = re.compile(r"(?:<!-- needs: (?P<needs>.*?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.S)


class Block(NamedTuple):
    page: str
    kind: str
    text: str
    needs: str | None


def blocks(kind: str) -> Iterator[Block]:
    for path in PAGES:
        for found in BLOCK.finditer(path.read_text(encoding="utf-8")):
            if found["kind"] == kind:
                page = path.relative_to(ROOT).as_posix()
                yield Block(page, kind, found["text"], found["needs"])


def lines(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command, without variables set before."""
    text = re.sub(r"'[^']*\n[^']*'", "SCRIPT", block.text)
    for line in re.split(r"\n|&&", text):
        words = shlex.split(line, comments=True)
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words:
            yield words


def mistake(words: list[str]) -> str | None:
    """Return the mistake in a command, None without a mistake."""
    program, *rest = words
    match program:
        case "make":
            return make_mistake(rest)
        case "gptmill":
            return gptmill_mistake(rest)
        case "python":
            module = rest[rest.index("-m") + 1]
            return (
                None
                if (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
                or (ROOT / module.replace(".", "/")).is_dir()
                else f"no module {module}"
            )
        case "pytest":
            missing = [w for w in rest if w.startswith("tests") and not (ROOT / w).exists()]
            return f"{missing} is missing" if missing else None
        case "dvc":
            return None if rest[0] in {"exp", "pull", "push", "remote", "repro"} else "no such verb"
        case _:
            return None if program in OTHERS else "an unknown program"


def make_mistake(words: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        if is_variable and not re.search(rf"\b{name}\b", makefile):
            return f"the Makefile has no {name}"
        if not is_variable and word not in {*commands.targets(), *graph.stages()}:
            return f"the Makefile has no target {word}"
    return None


def gptmill_mistake(words: list[str]) -> str | None:
    verb, *rest = (re.sub("^models:/.*", "a-version", word) for word in words)
    parser = commands.parsers().get(verb)
    try:
        return "no such verb" if parser is None else parser.parse_args(rest) and None
    except ValueError as error:
        return str(error)


def test_every_command_exists() -> None:
    mistakes = [
        f"{block.page}: {' '.join(words)}: {wrong}"
        for block in blocks("sh")
        for words in lines(block)
        if (wrong := mistake(words))
    ]
    assert mistakes == []
    needs = {need for block in blocks("sh") for need in (block.needs or "").split(", ") if need}
    assert needs == NEEDS


def test_commands_within_sentences_exist() -> None:
    targets = {*commands.targets(), *graph.stages()}
    for path in PAGES:
        prose = BLOCK.sub("", path.read_text(encoding="utf-8"))
        found = re.findall(r"`(?:make|gptmill) ([a-z][\w-]*)", prose)
        assert set(found) <= {*targets, *commands.parsers(), "x"}, path


@pytest.mark.parametrize("block", list(blocks("python")), ids=lambda block: block.page)
def test_python_compiles_and_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            spec = find_spec(node.module or "")
            assert spec is not None
            assert spec.origin is not None
            source = Path(spec.origin).read_text(encoding="utf-8")
            assert all(re.search(rf"\b{name.name}\b", source) for name in node.names)
    if block.page.startswith("docs/tutorial/") and "data/" not in block.text:
        exec(compile(block.text, block.page, "exec"), {})


def test_all_pages_are_in_the_navigation_and_links_lead_somewhere() -> None:
    site = tomllib.loads((ROOT / "docs/site/zensical.toml").read_text(encoding="utf-8"))
    listed = set(re.findall(r"'([\w/.-]+\.md)'", str(site["project"]["nav"])))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES[1:]}
    generated = {page for page in listed if page.startswith("reference/")}
    assert listed - generated == pages
    for path in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            target = (path.parent / link).resolve()
            inside = target.is_relative_to(ROOT / "docs/reference")
            assert inside or target.exists(), f"{path}: {link}"


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_the_graph_and_the_tables(name: str) -> None:
    drawn = (ROOT / "docs/images" / name).read_text(encoding="utf-8")
    assert drawn == PICTURES[name](), "draw it again: `python -m docs.site picture`"
    assert len(drawn) < 30_000


def test_the_bars_of_speed_are_the_best_of_each_package() -> None:
    assert speed.best("## Side by side") == {
        "ours": 773,
        "book": 415,
        "litgpt": 372,
        "transformers": 435,
    }


def test_the_reference_names_everything() -> None:
    page = params.page()
    for key in set(re.findall(r"^ +([a-z]\w+):", (ROOT / "params.yaml").read_text(), re.M)):
        assert re.search(rf"\b{key}\b", page), key
    assert set(artifacts.FILES) == set(graph.stages())
    assert all(f"`make {name}`" in commands.page() for name in commands.targets())
    assert "gptmill.model.gpt" in library.page()
    source = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("src", "tasks", "flows")
        for path in (ROOT / folder).rglob("*.py")
    )
    names = set(re.findall(r"\"(GPTMILL_[A-Z_]+)\"|environ.*(GPTMILL_[A-Z_]+)", source))
    assert {a or b for a, b in names} <= set(re.findall(r"GPTMILL_\w+", variables.page()))


def project_with_sources(root: Path) -> Project:
    """Make a tiny project whose data come from sources.toml, and the files that docs/ name."""
    project = copy_tree(root)
    project.base("pretrain")
    project.params(TINY)
    project.params({"pretrain": {"steps": 41}})
    raw = root / "raw"
    write_tiny_data(raw)
    shutil.rmtree(raw / "manifest")
    for number, path in enumerate(sorted((raw / "text").iterdir())):  # no near-duplicates
        words = path.read_text(encoding="utf-8").split()
        path.write_text(" ".join(f"{word}{'abcdefghijkl'[number]}" for word in words), "utf-8")
    kinds = [kind.name for kind in sorted(raw.iterdir())]
    table = [source_entry(kind, kind, licence="CC0-1.0", path=f"raw/{kind}") for kind in kinds]
    (root / "sources.toml").write_text("\n".join(table), encoding="utf-8")
    (root / "books").mkdir()
    prose = (raw / "text" / "00.txt").read_text(encoding="utf-8")
    for number in range(4):
        (root / "books" / f"{number}.txt").write_text(f"{number} {prose}", encoding="utf-8")
    (root / "book.txt").write_text(prose, encoding="utf-8")
    (root / "texts.csv").write_text("text\nsee you\n", encoding="utf-8")
    tickets = [f"my invoice {k} is wrong,billing\nthe app crashes {k},bug" for k in range(40)]
    (root / "tickets.csv").write_text("\n".join(["message,category", *tickets]) + "\n")
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Say {k}."},
                {"role": "assistant", "content": f"{k}"},
            ]
        }
        for k in range(60)
    ]
    (root / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    commit(project, "a tiny project")
    return project


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_block_without_needs_runs(tmp_path: Path) -> None:
    """Tests named in a block run by themselves."""
    project = project_with_sources(tmp_path / "project")
    for command in ("make data", "make pipeline"):
        run(project, command)
    commit(project, "the first models")
    seen: set[str] = set()
    for block in blocks("sh"):
        for line in block.text.splitlines() if block.needs is None else []:
            command = " ".join(shlex.split(line, comments=True))
            if not line.startswith("pytest") and (command not in seen or "pipeline" in command):
                seen.add(command)
                run(project, line)
        if project.run("git", "status", "--porcelain").stdout:
            commit(project, f"after {block.page}")


def run(project: Project, line: str) -> None:
    """Run a line as a user would; the environment exists already, and need not be made."""
    line = re.sub(r"^make ", "make -o .venv/installed ", line)
    done = project.run("bash", "-c", line, timeout=900)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
