"""`make plots`: the curves of each stage on a page that needs no network.

DVC's own page loads Vega from a server. This page contains Vega, in the versions of DVC's page,
taken from npm once. `make plots AGAINST=HEAD~1` draws a revision's curves beside the present.
"""

import tarfile
from pathlib import Path

from flows.commands.arguments import named
from flows.dvc.command import dvc
from gptmill.files import write_text
from gptmill.sources.fetch import fetch
from gptmill.sources.table import Place
from tasks.project.environment import ROOT

USAGE = "usage: make plots, or make plots AGAINST=REVISION"
VEGA = {  # as in dvc_render/vega.py; package: version, hash, bytes
    "vega": ("5.20.2", "d77deab01d6104b1239228720721f93003e60797d2faced7ffdd759fa70f989d", 3737810),
    "vega-lite": (
        *("5.2.0", "f64ca4745f043447ac86b67dc9e9592ec2b85ac8b8dafc35faf970f142463e4b"),
        1937519,
    ),
    "vega-embed": (
        *("6.18.2", "93aeee312e92077b0252ef026c0fe0ec8fa430c19825aeada6cd3a6804e68e1b"),
        561698,
    ),
}
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Plots</title>
{scripts}
<style>
body {{ font-family: system-ui, sans-serif; margin: 1rem; }}
</style>
</head>
<body>
{{plot_divs}}
</body>
</html>
"""


def main(arguments: list[str]) -> int:
    """Write the page and print the path."""
    against = named(arguments, ("AGAINST",), USAGE).get("AGAINST")
    page = template(ROOT / ".state" / "downloads")
    words = ("diff", against) if against else ("show",)
    print(dvc(ROOT, "plots", *words, "--html-template", str(page)).strip())
    return 0


def template(downloads: Path) -> Path:
    """Return the page's template, made from the packages where missing."""
    versions = "-".join(version for version, *_ in VEGA.values())
    page = downloads / f"plots-{versions}.html"
    if not page.exists():
        scripts = [f"<script>\n{_script(name, downloads)}\n</script>" for name in VEGA]
        write_text(page, PAGE.format(scripts="\n".join(scripts)))
    return page


def _script(name: str, downloads: Path) -> str:
    """Return a package's script, without the line of the source map."""
    version, sha256, size = VEGA[name]
    at = {"package": name, "version": version, "sha256": sha256}
    place = Place("npm", at, size=size, members=(), make="", options={})
    with tarfile.open(fetch(place, downloads, root=ROOT)) as archive:
        member = archive.extractfile(f"package/build/{name}.min.js")
        assert member is not None
        text = member.read().decode("utf-8")
    return "\n".join(line for line in text.splitlines() if "sourceMappingURL" not in line)
