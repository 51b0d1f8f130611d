"""`approxrt inspect`: what an artifact is made of and which kernels will run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from approxrt.cli import output

if TYPE_CHECKING:
    from approxrt.artifact.reader import Artifact

# What is shown of the MACs' shares: three kinds always, the others where they are used.
KINDS = {
    "s8": "int8",
    "bsr_s8": "block-sparse int8",
    "s4": "int4",
    "bsr_s4": "block-sparse int4",
    "g4": "int4 with float16 scales",
    "g6": "6 bits with float16 scales",
    "g8": "int8 with float16 scales",
    "f32": "f32",
}
ALWAYS = ("s8", "bsr_s8", "f32")


def command(
    artifact: Path = typer.Argument(..., help="Folder of the artifact."),
    json: bool = output.JSON_OPTION,
) -> None:
    """Show an artifact's sizes, density by layer, and the share of the work on fast kernels."""
    from approxrt.artifact.reader import read_artifact
    from approxrt.artifact.summary import summarize

    opened = read_artifact(artifact)
    summary = {**summarize(opened), "gpu": gpu_summary(opened)}
    if json:
        output.emit_json(summary)
    else:
        _show(summary)


def gpu_summary(artifact: Artifact) -> dict[str, Any]:
    """Return how a GPU would run a model's linears, and how many products it executes for each one stored."""
    from approxrt.runtime.cuda.engine import unsupported
    from approxrt.runtime.cuda.layout import model_cost, model_layouts

    if lacking := unsupported(artifact.any_spec):
        return {"target": "cpu", "refused": lacking}
    layouts = model_layouts(artifact.any_spec, artifact.tensors)
    return {
        "target": (artifact.card.get("method") or {}).get("target", "cpu"),
        "cost": round(model_cost(layouts), 3),
        "products": {
            name: {"block": layout.block, "macs": layout.macs, "stored_macs": layout.stored_macs}
            for name, layout in layouts.items()
        },
    }


def _gpu_line(gpu: dict[str, Any]) -> str:
    if "refused" in gpu:
        return f"made for cpu; a GPU does not run it: it has {' and '.join(gpu['refused'])}"
    sparse = sum(product["block"] is not None for product in gpu["products"].values())
    return (
        f"made for {gpu['target']}; on a GPU {sparse} of {len(gpu['products'])} products run in blocks, and "
        f"{gpu['cost']:.2f} products are executed for each one stored"
        + ("" if gpu["cost"] <= 1.1 else " (convert with --target cuda for less)")
    )


def _show(summary: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    sizes, share = summary["bytes"], summary["mac_share"]
    labels = ", ".join(summary["labels"][:6]) + (" ..." if len(summary["labels"]) > 6 else "")
    lines = [
        f"{summary['path']}",
        f"{summary['architecture']}, {summary['layers']} layers of {summary['hidden_size']}, {summary['task_type']}"
        + (f" ({labels})" if labels else "")
        + f", inputs {summary['inputs']}, up to {summary['max_length']} tokens",
        f"{_mb(sizes['total'])} on disk; weights: embeddings {_mb(sizes['embeddings'])}, "
        f"encoder {_mb(sizes['encoder'])}, head {_mb(sizes['head'])}",
        f"density {summary['density']:.3f}; linear MACs on "
        + ", ".join(f"{words} {share[kind]:.0%}" for kind, words in KINDS.items() if share[kind] or kind in ALWAYS),
    ]
    if summary["removed"]:
        lines.append(f"removed: {', '.join(summary['removed'])}")
    for kind in sorted({(x["keep"], x["sign_from"]) for x in summary["sign_matching"]}):
        layers = [str(x["layer"]) for x in summary["sign_matching"] if (x["keep"], x["sign_from"]) == kind]
        lines.append(f"sign matching: layers {', '.join(layers)} keep {kind[0]} keys in texts from {kind[1]} tokens on")
    if (preview := summary["head_preview"]) is not None:
        lines.append(
            f"head previewed by linears of {preview['width']}; words within {preview['margin']:g} of the largest logit "
            "are exact"
        )
    lines.append(_gpu_line(summary["gpu"]))
    for line in lines:
        output.stdout.print(escape(line), highlight=False, soft_wrap=True)
    table = Table("linear", "kind", "outputs x inputs", "density", "MACs a token", "size")
    for column in table.columns[3:]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    for linear in summary["linears"]:
        table.add_row(
            linear["name"],
            linear["kind"],
            f"{linear['out_features']} x {linear['in_features']}",
            f"{linear['density']:.3f}",
            f"{linear['macs']:,}",
            f"{linear['bytes'] / 1e3:,.1f} kB",
        )
    for block in summary["removed"]:
        table.add_row(block, "removed", "", "", "0", "")
    output.stdout.print(table)
    table = Table("kind", "bytes", "share")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, size in summary["bytes_by_kind"].items():
        table.add_row(kind, f"{size:,}", f"{size / sizes['weights']:.1%}")
    output.stdout.print(table)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
