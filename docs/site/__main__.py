"""`python -m docs.site build` or `serve`, behind `make docs` and `make docs-serve`.

Copies the pages of docs/ to .state/docs/pages, generates the reference beside the copies, and runs
Zensical from .venv/docs. A link to a page or a heading that does not exist fails the build.
`python -m docs.site picture` draws docs/images/stages.svg and speed.svg again; `screenshots` takes
pictures of the pages.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from docs.site import artifacts, commands, library, params, picture, speed, variables
from gptmill.files import write_text

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "127.0.0.1:8001"  # `gptmill serve` has 8000
OUT = ROOT / ".state" / "docs"
IMAGES = ROOT / "docs" / "images"
PICTURES = {"stages.svg": picture.svg, "speed.svg": speed.svg}
TOOL = ROOT / ".venv" / "docs"
REFERENCE = {
    "params.md": params.page,
    "commands.md": commands.page,
    "library.md": library.page,
    "artifacts.md": artifacts.page,
    "environment.md": variables.page,
}


def main(words: list[str]) -> int:
    """Generate the pages and build or serve the site; return the exit status."""
    if words == ["picture"]:
        for name, draw in PICTURES.items():
            write_text(IMAGES / name, draw())
        return 0
    if words == ["screenshots"]:
        from docs.site import screenshots  # needs Chromium

        return screenshots.main(ROOT, IMAGES)
    if words not in (["build"], ["serve"]):
        print("usage: python -m docs.site build, serve, picture or screenshots", file=sys.stderr)
        return 2
    _write_pages(OUT / "pages")
    shutil.copy(Path(__file__).parent / "zensical.toml", OUT / "zensical.toml")
    environment = {**os.environ, "PYTHONPATH": str(TOOL), "NO_COLOR": "1"}
    zensical = [sys.executable, "-m", "zensical", *words]
    if words == ["serve"]:
        os.chdir(OUT)
        os.execve(sys.executable, [*zensical, "--dev-addr", ADDRESS], environment)
    command = [*zensical, "--strict", "--clean"]
    done = subprocess.run(command, cwd=OUT, env=environment, capture_output=True)
    if done.returncode:
        print(_warnings(done.stdout, done.stderr), file=sys.stderr)
    else:
        print(f"the site is in {OUT.relative_to(ROOT)}/site; `make docs-serve` shows the pages")
    return done.returncode


def _write_pages(out: Path) -> None:
    """Copy the pages and pictures of docs/, and generate the reference."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out, ignore=shutil.ignore_patterns("site", "__pycache__"))
    (out / "reference").mkdir()
    for name, page in REFERENCE.items():
        write_text(out / "reference" / name, page())


def _warnings(*streams: bytes) -> str:
    """Return the warnings of Zensical without colours and the traceback of its strict mode."""
    text = "".join(stream.decode("utf-8", "replace") for stream in streams)
    return re.sub(r"\x1b\[[\d;]*m", "", text.split("Traceback (most recent call last)")[0]).rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
