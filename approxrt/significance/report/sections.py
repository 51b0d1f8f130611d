"""Render what removals cost as sections of a report's page, for encoders and decoders alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from approxrt.significance.report import plots
from approxrt.significance.report.kind import PartWords, ReportKind
from approxrt.significance.report.page import block_name, details, number, percent, section, table


def block_title(block: Mapping[str, Any]) -> str:
    return block_name(block["name"])


def verdict(block: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    """Tell whether a block can go, as the end of a sentence; not escaped."""
    change, noise = block["change"], 2 * block["stderr"]
    value = f"{dense['metric']} {dense['value']:.3f} → {block['metric']:.3f}"
    if change < -noise:
        return f"removing it alone lowers the loss by {number(-change)} ({value}): it does harm."
    if change <= noise:
        return f"it can go: the change of the loss, {number(change, True)} ± {number(noise)}, is noise ({value})."
    share = change / dense["loss"] if dense["loss"] > 0 else float("inf")
    ease = "it can go at a small price" if share < 0.1 else "it is the next to go, at a price"
    return f"{ease}: the loss rises by {number(change)} ± {number(noise)} ({value})."


def most_needed(document: Mapping[str, Any]) -> str:
    """The sentence on the block that matters most; not escaped."""
    dense, name = document["dense"], document["ranking"][-1]
    block = next(b for b in document["blocks"] if b["name"] == name)
    return (
        f"{block_title(block)} matters most: without it the loss rises by {number(block['change'])} "
        f"({dense['metric']} {dense['value']:.3f} → {block['metric']:.3f})."
    )


def harmless(entries: Sequence[Mapping[str, Any]]) -> int:
    """Return how many raise the loss by no more than two standard errors."""
    return sum(entry["change"] <= 2 * entry["stderr"] for entry in entries)


def blocks_section(document: Mapping[str, Any], kind: ReportKind) -> str:
    """Attention and feed-forward blocks, each taken out alone."""
    blocks, dense = document["blocks"], document["dense"]
    by_name = {b["name"]: b for b in blocks}
    least = [by_name[name] for name in document["ranking"][:1]]
    follows = "".join(f"<strong>{escape(block_title(b))}</strong>: {escape(verdict(b, dense))} " for b in least)
    rows = [
        [
            block_title(b),
            number(b["change"], True),
            "± " + number(2 * b["stderr"]),
            number(b["zero_change"], True),
            f"{b['metric']:.4f}",
            percent(b["improved"]),
            number(b["second_order"], True),
        ]
        for b in sorted(blocks, key=lambda b: b["change"])
    ]
    head = ["block", "loss", "noise", "loss, no mean kept", dense["metric"], f"{kind.samples} better", "predicted"]
    return section(
        "Blocks",
        "Each bar is the change of the mean loss when one attention or feed-forward block is taken out and leaves only "
        "its average output; whiskers are two standard errors. A bar whose whisker reaches zero is a block that this "
        f"{kind.judge} does not need by itself. Several such blocks together can still matter: each was tried alone.",
        follows,
        plots.block_bars(blocks),
        details("All numbers", table(head, rows)),
    )


def parts_section(document: Mapping[str, Any], words: PartWords, samples: str) -> str:
    """Parts of blocks, each taken out alone; nothing where there are none.

    samples   what losses are measured on: "texts"
    """
    what = words.what
    entries = document[words.key]
    if not entries:
        return ""
    ranked = sorted(entries, key=lambda e: e["change"])
    least, most = ranked[0], ranked[-1]
    text = (
        f"{words.cells}. Its number or colour is the change of the loss without it, in {plots.part_unit(entries)}: "
        "orange rises, blue falls, white is no effect."
    )
    follows = (
        f"{harmless(entries)} of {len(entries)} have no effect beyond two standard errors. Most needed is {what} "
        f"{most['part']} of layer {most['layer']} ({number(most['change'], True)}); least needed is {what} "
        f"{least['part']} of layer {least['layer']} ({number(least['change'], True)})."
    )
    fisher = all("fisher" in e for e in entries)
    rows = [
        [
            f"layer {e['layer']}, {what} {e['part']}",
            number(e["change"], True),
            "± " + number(2 * e["stderr"]),
            percent(e["improved"]),
            number(e["second_order"], True),
            *([number(e["fisher"])] if fisher else []),
        ]
        for e in ranked
    ]
    head = [what, "loss", "noise", f"{samples} better", "predicted", *(["Fisher"] if fisher else [])]
    figure = plots.part_heatmap(entries, document["model"]["layers"], what)
    return section(words.title, text, escape(follows), figure, details("All numbers", table(head, rows)))
