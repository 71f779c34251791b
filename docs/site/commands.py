"""The reference of both command lines, from the Makefile, dvc.yaml and the parsers."""

import argparse
import os
import re

from docs.site.markdown import code, table
from gptmill.cli import frame
from tasks.project import graph
from tasks.project.environment import ROOT


def targets() -> dict[str, str]:
    """Return the description of each make command."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z-]+):.*?## (.*)$", text, re.MULTILINE))


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each verb of `gptmill`."""
    parser = frame._parser([])
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def page() -> str:
    """Return the page."""
    os.environ["COLUMNS"] = "88"  # argparse wraps at this width
    commands = [(code(f"make {name}"), text) for name, text in targets().items()]
    stages = [(code(f"make {name}"), entry["desc"]) for name, entry in graph.stages().items()]
    verbs = [
        f"### gptmill {name}\n\n```text\n{parser.format_help().rstrip()}\n```\n"
        for name, parser in parsers().items()
    ]
    return "\n".join(
        [
            "# Commands\n\n## make\n",
            table(("command", "effect"), commands),
            "A stage alone, with the stages before if they are up to date:\n",
            table(("command", "effect"), stages),
            "## gptmill\n\nThese commands need no orchestrator. The exit status is 0 for success, "
            "2 for a mistake that you can correct (one sentence on standard error), 1 for any "
            "other failure, and 130 after Ctrl-C.\n",
            *verbs,
        ]
    )
