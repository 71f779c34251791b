"""The picture of training speed, drawn from the tables in benchmarks/README.md.

`python -m docs.site picture` writes docs/images/speed.svg; a test compares file and tables.
"""

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

TABLES = Path(__file__).resolve().parents[2] / "benchmarks" / "README.md"
PANELS = {  # title, heading above the table
    "2 CPU cores (AMD EPYC), 124M, bf16": "## Side by side",
    "one H100, 124M, bf16": "### Measured on one H100",
}
WIDTH, ROW, BAR = 530, 26, 220
FREE = "not deterministic"
"""Our figure with algorithms whose sums have no fixed order, as the others' have none."""
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2933 }
  .title { font-weight: 600 }
  rect.bar { fill: #b8c4d0 }
  rect.ours { fill: #2f855a }
"""


def best(heading: str) -> dict[str, float]:
    """Return the best tokens per second of each contestant in the table below a heading.

    The first column names the contestant, with eager or compiled behind a comma; on the GPU, eager
    and compiled have a column each.
    """
    found: dict[str, float] = {}
    for name, cells in _rows(heading):
        contestant, _, mode = name.partition(", ")
        if contestant.startswith("ours to") or mode not in ("", "eager", "compiled", FREE):
            continue
        contestant, mode = (name, "") if mode == FREE else (contestant, mode)
        values = [_number(cell) for cell in (cells[:1] if mode else cells)]
        found[contestant] = max(found.get(contestant, 0.0), *values)
    return found


def _rows(heading: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of the first table with a row `ours` below a heading."""
    text = TABLES.read_text(encoding="utf-8").split(f"{heading}\n", 1)[1]
    table = next(block for block in text.split("\n\n") if re.search(r"^\| ours", block, re.M))
    for line in table.splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if _is_contestant(name):
            yield name, cells


def _is_contestant(name: str) -> bool:
    return name.split(",")[0] in {"ours", "book", "litgpt", "transformers"}


def _number(cell: str) -> float:
    return float(cell.strip("*").split("(")[0].strip(" *").replace(",", ""))


def svg() -> str:
    """Return the picture: a panel for each machine, a bar for each contestant."""
    panels = [(title, best(heading)) for title, heading in PANELS.items()]
    height = 48 + ROW * max(len(bars) for _, bars in panels)
    parts = [_panel(title, bars, WIDTH * place) for place, (title, bars) in enumerate(panels)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(panels)} {height}" '
        'role="img" aria-label="Training speed beside other packages">\n'
        f'<style>{STYLE}</style>\n<rect width="100%" height="100%" rx="10" fill="#fff"/>\n'
        + "".join(parts)
        + "</svg>\n"
    )


def _panel(title: str, bars: dict[str, float], left: int) -> str:
    lines = [f'<text class="title" x="{left + 16}" y="26">tokens/s on {escape(title)}</text>']
    most = max(bars.values())
    for place, (name, value) in enumerate(sorted(bars.items(), key=lambda bar: -bar[1])):
        y = 40 + ROW * place
        kind = "bar ours" if name.startswith("ours") else "bar"
        width = round(BAR * value / most)
        shown = name.replace("ours", "gptmill")
        lines += [
            f'<text x="{left + 16}" y="{y + 15}">{shown}</text>',
            f'<rect class="{kind}" x="{left + 192}" y="{y}" width="{width}" height="19"/>',
            f'<text x="{left + 200 + width}" y="{y + 15}">{value:,.0f}</text>',
        ]
    return "\n".join(lines) + "\n"
