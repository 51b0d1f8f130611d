"""The analysis of a decoder as one HTML page: `approxrt.significance.report.encoder`, for what text a decoder
writes."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from approxrt.significance.report.page import page, percent, section, table
from approxrt.significance.report.sections import (
    block_title,
    blocks_section,
    harmless,
    most_needed,
    parts_section,
    verdict,
)
from approxrt.version import __version__

PARTS = {
    "groups": ("key-value group", "Key-value groups", "a key and a value head with the query heads that read them"),
    "heads": ("query head", "Query heads", "one of the query heads that share keys and values"),
    "units": ("group of FFN channels", "Groups of FFN channels", "some neighbouring channels of a feed-forward block"),
}


def render_decoder(document: Mapping[str, Any]) -> str:
    """The page of an `approxrt.significance.analyze_decoder.analyze_decoder` document. Needs matplotlib."""
    model = document["model"]
    title = f"What {model['name']} needs to write its text"
    blocks = blocks_section(document, judge="text", samples="tokens")
    parts = [_parts(document, key) for key in PARTS]
    return page(title, [_summary(document), _weights(document), blocks, *parts, _method(document)])


def decoder_findings(document: Mapping[str, Any]) -> list[str]:
    """Plain sentences on what can go, the most useful first; not escaped."""
    dense, blocks = document["dense"], {b["name"]: b for b in document["blocks"]}
    ranking = document["ranking"]
    out = [f"{block_title(blocks[name])}: {verdict(blocks[name], dense)}" for name in ranking[:3]]
    if ranking:
        out.append(most_needed(document, 2))
    for key, (what, *_) in PARTS.items():
        rows = document[key]
        if rows:
            plural = what.replace("group of", "groups of") if " of " in what else what + "s"
            out.append(
                f"{harmless(rows)} of {len(rows)} {plural} can each be removed without a loss that stands out from "
                "noise."
            )
    return out


def _summary(document: Mapping[str, Any]) -> str:
    model, data, dense = document["model"], document["data"], document["dense"]
    facts = {
        "Model": f"{escape(model['architecture'])}, {model['layers']} layers, hidden size {model['hidden_size']}, "
        f"{model['parameters'] / 1e6:.1f} M parameters",
        "Text": f"{data['tokens']:,} tokens; the first four fifths give statistics, losses are measured on "
        f"{data['samples']:,} tokens of the rest (without parts of a block: {data['part_samples']:,})",
        "Whole model": f"loss {dense['loss']:.4f} nats a token, {escape(dense['metric'])} {dense['value']:.3f}",
    }
    items = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items())
    points = "".join(f"<li>{escape(text)}</li>" for text in decoder_findings(document))
    return (
        '<p class="lead">A model that writes one kind of text carries much that this text does not need. This page '
        "shows where: parts are taken out one at a time, on text that is held out, and the loss is measured.</p>"
        f'<dl class="facts">{items}</dl><h2>In short</h2><ul>{points}</ul>'
    )


def _weights(document: Mapping[str, Any]) -> str:
    weights = document["weights"]
    total = sum(weights.values())
    names = {"attention": "attention blocks", "ffn": "feed-forward blocks", "head": "head (all words' logits)"}
    rows = [[names[key], f"{count / 1e6:.1f} M", percent(count / total)] for key, count in weights.items()]
    largest = max(weights, key=weights.__getitem__)
    return section(
        "What a token costs",
        "To write one token every weight below is read once, and reading them is what takes the time: a part's share "
        "of the weights is its share of the time, and fewer bits a weight, or fewer weights, are less of it.",
        escape(f"The {names[largest]} are {percent(weights[largest] / total)} of it."),
        table(["part", "weights read a token", "share"], rows),
    )


def _parts(document: Mapping[str, Any], key: str) -> str:
    what, title, explained = PARTS[key]
    return parts_section(document, key, what=what, title=title, cells=f"Each cell is {explained}", samples="tokens")


def _method(document: Mapping[str, Any]) -> str:
    return section(
        "How it was measured",
        "Removal follows Nagarajan et al. 2020 (arXiv 2010.03688): a block that is taken out keeps its residual path, "
        "and its mean output stays as a constant. “Predicted” is the second-order estimate of the increase (optimal "
        "brain surgeon with the empirical Fisher information of outputs) once all other weights of the block's last "
        "linear have made up for what went. Losses are cross entropies of the next token in nats; noise is twice the "
        "standard error over tokens, of differences token by token.",
        f"Made by approxrt {escape(__version__)} in {document['seconds']:.0f} s.",
    )
