"""Words and sections of an encoder's report: weight tiles, embedding rows, time, and what a speedup would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from approxrt.significance.report import plots
from approxrt.significance.report.kind import PartWords, ReportKind
from approxrt.significance.report.page import block_name, details, number, percent, section, table


def _facts(document: Mapping[str, Any]) -> dict[str, str]:
    model, data = document["model"], document["data"]
    labels = ", ".join(f"{escape(name)} {percent(share)}" for name, share in data["labels"].items()) or "scores"
    return {
        "Model": f"{escape(model['architecture'])}, {model['layers']} layers, hidden size {model['hidden_size']}, "
        f"{model['parameters'] / 1e6:.1f} M parameters, {model['embedding_parameters'] / 1e6:.1f} M of them embeddings",
        "Texts": f"{data['samples']:,} held out of {data['train'] + data['validation']:,} training examples, "
        f"{data['tokens']['mean']:.0f} tokens on average, 95 % of them up to {data['tokens']['p95']:.0f}",
        "Labels": labels,
    }


def _findings(document: Mapping[str, Any]) -> list[str]:
    e = document["embeddings"]
    return [
        f"The training texts use {e['used']:,} of {e['rows']:,} embedding rows ({percent(e['used_share'])}); "
        f"the table is {percent(e['parameter_share'])} of all parameters."
    ]


def _tiles(document: Mapping[str, Any]) -> str:
    linears = document["linears"]
    if not linears:
        return ""
    quarter = sorted(linears, key=lambda x: _held(x["curve"], 0.25))
    even, peaked = quarter[0], quarter[-1]
    follows = (
        f"A quarter of the tiles holds {percent(_held(peaked['curve'], 0.25))} of the significance of "
        f"{peaked['name']}, but only {percent(_held(even['curve'], 0.25))} of that of {even['name']}: the first can "
        "be pruned hard, the second hardly."
    )
    shares = (0.1, 0.25, 0.5, 0.75)
    rows = [
        [x["name"], f"{x['tiles']:,}", *(percent(_held(x["curve"], s)) for s in shares), number(x["loss"])]
        for x in linears
    ]
    head = ["linear", "tiles", *(f"best {percent(s)}" for s in shares), "loss if all go"]
    return section(
        "Weights within blocks",
        "Weights are kept or dropped in tiles of 16 outputs by 4 inputs, the unit of the CPU kernels. Each line is one "
        "weight matrix: the further it bends to the upper left, the fewer of its tiles hold its significance, and the "
        "more of them can go. The dotted diagonal is a matrix whose tiles all matter alike.",
        escape(follows),
        plots.tile_curves(linears),
        details("All numbers", table(head, rows)),
    )


def _embeddings(document: Mapping[str, Any]) -> str:
    e = document["embeddings"]
    ten = _held(e["curve"], 0.1)
    follows = (
        f"{e['rows'] - e['used']:,} of {e['rows']:,} rows ({percent(1 - e['used_share'])}) are never used by the "
        f"training texts. A tenth of the rows holds {percent(ten)} of the significance. "
        f"{percent(e['unseen_tokens'], 2)} of the tokens of the held-out texts are pieces that training never showed: "
        "a vocabulary that is cut to the task reads so many by a synonym's row or spells them from shorter pieces."
    )
    return section(
        "Embedding rows",
        f"The table of word pieces is {percent(e['parameter_share'])} of the model. The line is the share of its "
        "significance (how much the loss reacts to a row's values) that the best rows hold; right of the dashed line "
        "are rows that no training text uses.",
        escape(follows),
        plots.embedding_curve(e),
    )


def _latency(document: Mapping[str, Any]) -> str:
    t = document["latency"]
    follows = (
        f"The whole model takes {t['f32_ms']:.1f} ms in float32 and {t['int8_ms']:.1f} ms in int8 for {t['texts']} "
        f"texts of the task ({t['tokens']:,} tokens) on {t['threads']} thread{'s' if t['threads'] != 1 else ''} "
        f"of {t['cpu']}. The parts below are measured one by one; together they predict "
        f"{percent(1 / t['correction'])} of the measured time."
    )
    return section(
        "Time",
        "Significance says what a part is worth; this says what it costs. Left: where the time goes. Right: what one "
        "block costs when only some of its weight tiles, heads or neurons are kept.",
        escape(follows),
        plots.latency_bars(t, document["model"]),
    )


def _front(document: Mapping[str, Any]) -> str:
    front = document["front"]
    if not front:
        return ""
    names = list(front[0]["blocks"])
    head = ["block", *(f"{p['speedup']:.2g}x" for p in front)]
    rows = []
    for name in names:
        row = [block_name(name)]
        for point in front:
            row.append(_choice(point["blocks"][name], "attention" in name))
        rows.append(row)
    totals = [
        ["loss, predicted", *(number(p["loss"], True) for p in front)],
        ["over float32", *(f"{p['speedup_f32']:.1f}x" for p in front)],
    ]
    fastest = front[-1]
    gone = [block_name(name) for name in names if not fastest["blocks"][name]["size"]]
    what = f"{len(gone)} of {len(names)} blocks are gone ({', '.join(gone)})" if gone else "no block is gone whole"
    follows = (
        f"At {fastest['speedup']:.2g} times the speed of the dense int8 model {what}. "
        "Predicted losses are for pruning without any training, summed over blocks; they are a guide to where to cut, "
        "and exceed what is measured once cuts are large. Training afterwards wins most of it back."
    )
    return section(
        "What a speedup would cost",
        "Each point is the choice of heads, neurons and tiles with the least predicted loss for one time budget, from "
        "the significance and the times above. The table says what each block keeps: its heads or neurons, and of "
        "their weight tiles which share; the paler, the less.",
        escape(follows),
        plots.pareto_curve(front),
        f'<div class="scroll">{table(head, totals)}{table(head, rows, raw=True)}</div>',
    )


def _choice(choice: Mapping[str, Any], heads: bool) -> str:
    """A cell whose blue is the share of the block's weights that stay."""
    if not choice["size"]:
        return '<td style="color:#8a8f98">removed</td>'
    share = choice["size"] / choice["of"] * choice["density"]
    # sky blue at full strength, white at none: dark text stays readable on all of it
    red, green, blue = (round(255 - (255 - c) * share * 0.75) for c in (86, 180, 233))
    size = f"{choice['size']} h" if heads else f"{choice['size']} n"
    return f'<td style="background:rgb({red},{green},{blue})">{size}, {percent(choice["density"])}</td>'


def _held(curve: Sequence[Sequence[float]], share: float) -> float:
    return float(min(curve, key=lambda point: abs(point[0] - share))[1])


ENCODER = ReportKind(
    title="What {name} needs for {task}",
    lead="A model that is fine-tuned for one task carries much that the task does not need. This page shows where: "
    "parts are taken out one at a time, on texts that are held out, and the loss is measured.",
    judge="task",
    samples="texts",
    parts=(
        PartWords("heads", "head", "attention heads", "Attention heads", "Each cell is one attention head"),
        PartWords(
            "groups",
            "group",
            "groups of FFN channels",
            "Groups of FFN channels",
            "The channels of each FFN are cut into up to 12 groups of neighbours; each cell is one group",
        ),
    ),
    facts=_facts,
    findings=_findings,
    before=(),
    after=(_tiles, _embeddings, _latency, _front),
    method="Removal follows Nagarajan et al. 2020 (arXiv 2010.03688): a block that is taken out keeps its residual "
    "path and its layer norm. “Predicted” is the second-order estimate of the increase (optimal brain surgeon with the "
    "Fisher information of outputs, statistics from as many training texts): for heads, channels and tiles after all "
    "other weights have made up for them as well as they can. “Fisher” is the mean square of the gradient of a gate on "
    "the output. Losses are cross entropies in nats, or squared errors, a text. Noise is twice the standard error over "
    "texts, of differences text by text.",
)
