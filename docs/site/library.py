"""The reference of the library, from the source of src/gptmill."""

import ast
from collections.abc import Iterator
from pathlib import Path

from docs.site.markdown import code
from tasks.project.environment import ROOT

SOURCE = ROOT / "src" / "gptmill"
Definition = ast.FunctionDef | ast.ClassDef


def page() -> str:
    """Return the page: packages, modules, public functions and classes."""
    parts = [
        "# Library\n\n`import gptmill` needs no Prefect, MLflow or DVC, and prints nothing. "
        "The list is generated from the source: signatures and the first paragraph of each "
        "docstring. Names that begin with an underscore are internal.\n"
    ]
    for package in sorted(path.parent for path in SOURCE.glob("*/__init__.py")):
        about = ast.get_docstring(_parsed(package / "__init__.py")) or ""
        parts.append(f"## {package.name}\n\n{about}\n")
        parts += [_module(path) for path in sorted(package.rglob("[!_]*.py"))]
    parts.append("## Top level\n")
    parts += [_module(path) for path in sorted(SOURCE.glob("[!_]*.py"))]
    return "\n".join(parts)


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
    tree = _parsed(path)
    lines = [f"### {name}\n\n{_first(tree)}\n"]
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            lines.append(f"- {code(_signature(node))}: {_first(node)}")
            lines += [f"    - {code(_signature(m))}: {_first(m)}" for m in _methods(node)]
    return "\n".join(lines) + "\n"


def _methods(node: Definition) -> Iterator[ast.FunctionDef]:
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                yield part


def _signature(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returns}".replace("self, ", "")


def _first(node: ast.Module | Definition) -> str:
    """Return the first paragraph of a docstring, in one line."""
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
