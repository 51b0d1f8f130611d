"""Words and sections of a decoder's report: which weights are read to write a token."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from approxrt.significance.report.kind import PartWords, ReportKind
from approxrt.significance.report.page import percent, section, table


def _facts(document: Mapping[str, Any]) -> dict[str, str]:
    model, data = document["model"], document["data"]
    return {
        "Model": f"{escape(model['architecture'])}, {model['layers']} layers, hidden size {model['hidden_size']}, "
        f"{model['parameters'] / 1e6:.1f} M parameters",
        "Text": f"{data['tokens']:,} tokens; the first four fifths give statistics, losses are measured on "
        f"{data['samples']:,} tokens of the rest (without parts of a block: {data['part_samples']:,})",
    }


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


DECODER = ReportKind(
    title="What {name} needs to write its text",
    lead="A model that writes one kind of text carries much that this text does not need. This page shows where: "
    "parts are taken out one at a time, on text that is held out, and the loss is measured.",
    judge="text",
    samples="tokens",
    parts=(
        PartWords(
            "groups",
            "key-value group",
            "key-value groups",
            "Key-value groups",
            "Each cell is a key and a value head with the query heads that read them",
        ),
        PartWords(
            "heads",
            "query head",
            "query heads",
            "Query heads",
            "Each cell is one of the query heads that share keys and values",
        ),
        PartWords(
            "units",
            "group of FFN channels",
            "groups of FFN channels",
            "Groups of FFN channels",
            "Each cell is some neighbouring channels of a feed-forward block",
        ),
    ),
    facts=_facts,
    findings=lambda document: [],
    before=(_weights,),
    after=(),
    method="Removal follows Nagarajan et al. 2020 (arXiv 2010.03688): a block that is taken out keeps its residual "
    "path, and its mean output stays as a constant. “Predicted” is the second-order estimate of the increase (optimal "
    "brain surgeon with the empirical Fisher information of outputs) once all other weights of the block's last linear "
    "have made up for what went. Losses are cross entropies of the next token in nats; noise is twice the standard "
    "error over tokens, of differences token by token.",
)
