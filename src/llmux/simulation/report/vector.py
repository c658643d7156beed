"""Draws pictures as SVG, and puts a whole report into one HTML file that needs nothing else."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import assert_never

from llmux.simulation.report.figures import LowerBound, RunFigures
from llmux.simulation.report.shapes import Box, Label, Line, Picture, Shape
from llmux.simulation.report.table import NOTE, Rows, rest_rows, wait_rows

FONT = "font-family:system-ui,sans-serif"
STYLE = """
body{font-family:system-ui,sans-serif;margin:2em;color:#24292f;max-width:1140px}
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}
th,td{padding:.2em .7em;text-align:right;border-bottom:1px solid #d0d7de}
th:first-child,td:first-child{text-align:left}
tr.whole{font-weight:600}
th,p{color:#57606a;font-weight:normal}
"""


def svg(picture: Picture) -> str:
    """The picture as an SVG element."""
    shapes = "".join(map(_element, picture.shapes))
    size = f'width="{picture.width:g}" height="{picture.height:g}" viewBox="0 0 {picture.width:g} {picture.height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{FONT};background:#fff">{shapes}</svg>'


def html(
    title: str, facts: Sequence[str], runs: Sequence[RunFigures], bound: LowerBound | None, pictures: Sequence[Picture]
) -> str:
    """Figures and pictures as one page."""
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(fact)}</p>" for fact in facts)]
    parts += _table(wait_rows(runs, bound))
    parts += _table(rest_rows(runs))
    parts.append(f"<p>{escape(NOTE)}</p>")
    parts += map(svg, pictures)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _table(rows: Rows) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{escape(head)}</th>" for head in rows.heads) + "</tr>"
    for is_whole, cells in rows.rows:
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        yield f'<tr class="whole">{row}</tr>' if is_whole else f"<tr>{row}</tr>"
    yield "</table>"


def _element(shape: Shape) -> str:
    match shape:
        case Box(x, y, width, height, colour, hint):
            title = f"<title>{escape(hint)}</title>" if hint else ""
            return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{colour}">{title}</rect>'
        case Line(points, colour, width):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>'
        case Label(x, y, text, size, colour, anchor):
            place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor.value}" fill="{colour}"'
            return f"<text {place}>{escape(text)}</text>"
        case _:
            assert_never(shape)
