"""An analysis as one HTML page that needs nothing else: figures are inline SVG, there are no scripts and no links out.

It is written for a reader who knows what a transformer is and nothing of the method. Every text that comes from a model
or from data is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from approxrt.significance.report.decoder import DECODER
from approxrt.significance.report.encoder import ENCODER
from approxrt.significance.report.kind import ReportKind
from approxrt.significance.report.page import page, section
from approxrt.significance.report.sections import (
    block_title,
    blocks_section,
    harmless,
    most_needed,
    parts_section,
    verdict,
)
from approxrt.version import __version__


def kind_of(document: Mapping[str, Any]) -> ReportKind:
    """Return how a document of `approxrt.significance.analyze.analyze` is told."""
    return ENCODER if "embeddings" in document else DECODER


def render(document: Mapping[str, Any]) -> str:
    """The page of an `approxrt.significance.analyze.analyze` document. Needs matplotlib."""
    kind = kind_of(document)
    sections = [
        _summary(document, kind),
        *(section(document) for section in kind.before),
        blocks_section(document, kind),
        *(parts_section(document, words, kind.samples) for words in kind.parts),
        *(section(document) for section in kind.after),
        _method(document, kind),
    ]
    return page(kind.title.format(name=document["model"]["name"], task=document["data"]["task"]), sections)


def findings(document: Mapping[str, Any]) -> list[str]:
    """Plain sentences on what can go, the most useful first; not escaped."""
    dense, blocks = document["dense"], {b["name"]: b for b in document["blocks"]}
    ranking, kind = document["ranking"], kind_of(document)
    out = [f"{block_title(blocks[name])}: {verdict(blocks[name], dense)}" for name in ranking[:3]]
    if ranking:
        out.append(most_needed(document))
    for words in kind.parts:
        rows = document[words.key]
        if rows:
            out.append(
                f"{harmless(rows)} of {len(rows)} {words.plural} can each be removed without a loss that stands out "
                "from the noise."
            )
    return out + kind.findings(document)


def _summary(document: Mapping[str, Any], kind: ReportKind) -> str:
    dense = document["dense"]
    facts = kind.facts(document) | {
        "Whole model": f"loss {dense['loss']:.4f} ± {2 * dense['stderr']:.4f}, "
        f"{escape(dense['metric'])} {dense['value']:.4f}"
    }
    items = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items())
    seen = (
        '<p class="note">The checkpoint does not say which texts it was trained on, so it may have learnt from those '
        "that were held out here. The loss is then too small, and what removals cost looks larger against it.</p>"
        if document["data"].get("seen")
        else ""
    )
    points = "".join(f"<li>{escape(text)}</li>" for text in findings(document))
    return (
        f'<p class="lead">{escape(kind.lead)}</p><dl class="facts">{items}</dl>{seen}<h2>In short</h2><ul>{points}</ul>'
    )


def _method(document: Mapping[str, Any], kind: ReportKind) -> str:
    drawn = f", seed {document['data']['seed']}" if "seed" in document["data"] else ""
    return section(
        "How it was measured",
        kind.method,
        f"Made by approxrt {escape(__version__)} in {document['seconds']:.0f} s{drawn}.",
    )
