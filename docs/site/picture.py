"""The picture of the stages in README, drawn from dvc.yaml.

`python -m docs.site picture` writes docs/images/stages.svg; a test compares file and graph.
"""

from html import escape

from tasks.project import graph

WIDTH, HEIGHT = 960, 330
BOX = (132, 52)
PLACES = {  # left and top of each box
    "tokenize": (140, 30),
    "sample": (312, 30),
    "pretrain": (484, 30),
    "load_gpt2": (312, 114),
    "split": (312, 228),
    "instruct": (484, 108),
    "classify": (484, 180),
    "lora": (484, 252),
    "evaluate": (656, 142),
}
RESULTS = {
    "tokenize": "token ids",
    "sample": "training windows",
    "pretrain": "a GPT from scratch",
    "load_gpt2": "a pretrained base",
    "split": "clean train/test parts",
    "instruct": "an assistant",
    "classify": "a classifier",
    "lora": "a small adapter",
    "evaluate": "scores and intervals",
}
RAW = {"tokenize": "your text", "load_gpt2": "any weights", "split": "labels, chats"}
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2933 }
  .name { font-weight: 600 }
  .result { font-size: 12px; fill: #52606d }
  .stage { fill: #eef4ff; stroke: #3b6fd4; stroke-width: 1.2 }
  .model { fill: #e6f6ec; stroke: #2f855a }
  .raw { fill: #fff7e6; stroke: #b7791f; stroke-dasharray: 4 3 }
  .end { fill: #f3e8ff; stroke: #6b46c1 }
  path { fill: none; stroke: #7b8794; stroke-width: 1.4; marker-end: url(#tip) }
"""


def svg() -> str:
    """Return the picture."""
    parts = [_arrow(_right(source), _left(target)) for source, target in edges()]
    for name, text in RAW.items():
        x, y = 8, PLACES[name][1] + 8
        parts += [_box("raw", (x, y), (108, 36), text), _arrow((x + 108, y + 18), _left(name))]
    for name, place in PLACES.items():
        kind = "stage model" if name in {"pretrain", "instruct", "classify", "lora"} else "stage"
        parts.append(_box(kind, place, BOX, name, RESULTS[name]))
    parts.append(_arrow(_right("evaluate"), (824, _right("evaluate")[1])))
    parts.append(_box("end", (824, 142), (128, 52), "champion", "only if better"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="The stages, and the result of each">\n'
        f"<style>{STYLE}</style>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" '
        'style="fill:#7b8794;stroke:none;marker-end:none"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#fff"/>\n'
        + "".join(parts)
        + "</svg>\n"
    )


def edges() -> list[tuple[str, str]]:
    """Return the arrows between stages, without those that a longer way implies."""
    found = []
    for target in graph.stages():
        before = graph.upstream(target)
        for source in before:
            if not any(source in graph.ancestors(other) for other in before):
                found.append((source, target))
    return found


def _left(name: str) -> tuple[int, int]:
    x, y = PLACES[name]
    return x, y + BOX[1] // 2


def _right(name: str) -> tuple[int, int]:
    x, y = _left(name)
    return x + BOX[0], y


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    (x, y), (to_x, to_y) = start, end
    middle = (x + to_x) // 2
    return f'<path d="M{x} {y}C{middle} {y} {middle} {to_y} {to_x - 2} {to_y}"/>\n'


def _box(
    kind: str, place: tuple[int, int], size: tuple[int, int], name: str, result: str = ""
) -> str:
    (x, y), (width, height) = place, size
    center = x + width // 2
    top = y + (height // 2 + 5 if not result else 22)
    lines = [
        f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="7"/>',
        f'<text class="name" x="{center}" y="{top}" text-anchor="middle">{escape(name)}</text>',
    ]
    if result:
        at = f'x="{center}" y="{y + 41}" text-anchor="middle"'
        lines.append(f'<text class="result" {at}>{escape(result)}</text>')
    return "\n".join(lines) + "\n"
