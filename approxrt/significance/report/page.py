"""A report's page of HTML that needs nothing else: no scripts, no links out. What goes in as text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root { --ink: #22262c; --soft: #5b626d; --line: #dfe2e7; --wash: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55 Georgia, "Times New Roman", serif; }
main { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, h3, table, figcaption, .facts, svg text { font-family: "Helvetica Neue", Helvetica, Arial, sans-serif; }
svg text { font-family: "Helvetica Neue", Helvetica, Arial, sans-serif !important; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; font-weight: 600; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .5rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0 .8rem; max-width: 46rem; }
.lead { color: var(--soft); margin: 0 0 1.4rem; }
.finding { border-left: 3px solid #0072B2; padding: .1rem 0 .1rem .9rem; }
.note { background: var(--wash); border: 1px solid var(--line); border-radius: 4px; padding: .6rem .9rem; }
.note, figcaption, .facts { font-size: .88rem; }
figure { margin: 1rem 0; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; margin: .8rem 0; min-width: 24rem; }
th, td { padding: .28rem .65rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; }
td { font-variant-numeric: tabular-nums; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 1rem 0; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; }
ul { max-width: 46rem; padding-left: 1.2rem; } li { margin: .25rem 0; }
details > summary { cursor: pointer; color: var(--soft); font: .88rem Helvetica, Arial, sans-serif; }
@media print { h2, figure { break-inside: avoid; } main { padding: 0; } }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """The whole page; `sections` are HTML, empty ones are left out."""
    body = "\n".join(section for section in sections if section)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n<h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def section(title: str, text: str, follows: str, *rest: str) -> str:
    figures = "".join(f"<figure>{part}</figure>" if part.startswith("<svg") else part for part in rest)
    finding = f'<p class="finding">{follows}</p>' if follows else ""
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{finding}{figures}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], raw: bool = False) -> str:
    """`raw`: cells after the first are HTML already, with their <td>."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = []
    for row in rows:
        cells = "".join(row[1:]) if raw else "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        body.append(f"<tr><td>{escape(row[0])}</td>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def block_name(name: str) -> str:
    """ "layers.3.ffn" -> "FFN of layer 3", counted from 0 as in artifacts and JSON."""
    _, layer, kind = name.split(".")
    return f"{'Attention' if kind == 'attention' else 'FFN'} of layer {int(layer)}"


def number(value: float, sign: bool = False) -> str:
    """Three digits that count, no needless exponent."""
    if value == 0:
        return "0"
    digits = f"{value:.3g}" if 1e-4 <= abs(value) < 1e4 else f"{value:.1e}"
    return f"+{digits}" if sign and value > 0 else digits.replace("-", "\u2212")


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
