"""docs/compression.svg, the README's picture, from bench/results/compression/: SST-2 by engine, how fast, how large."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.significance.report.plots import BLUE, GREY, INK, STYLE

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import compression_table  # noqa: E402
from compression_table import F32_PEERS, ratio  # noqa: E402

# Engine, its name, bytes a weight.
PEERS = (("torch-eager", "PyTorch", 4), ("onnxruntime-f32", "ONNX Runtime", 4), ("openvino-int8", "OpenVINO, int8", 1))
ASKED = {"8x faster": "--speedup 8", "20x smaller": "--shrink 20", "25x smaller": "--shrink 25"}
CPU = "AMD EPYC"


def main() -> None:
    """Draw it anew."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = [json.loads(path.read_text()) for path in sorted((ROOT / "bench/results/compression").glob("sst2-*.json"))]
    rows = [row for row in rows if compression_table.cpu(row) == CPU]
    ours = {asked: [row for row in rows if compression_table.key_of(row) == ("sst2", asked)] for asked in ASKED}
    ours = {asked: found for asked, found in ours.items() if found}
    shown = [row for found in ours.values() for row in found]
    bars = [
        (name, ratio(shown, F32_PEERS, engine), np.mean([f32_bytes(row) * width / 4 for row in shown]), "")
        for engine, name, width in PEERS
    ]
    for asked, found in ours.items():
        size = np.mean([row["validation"]["bytes"] for row in found])
        bars.append((f"approxrt {ASKED[asked]}", ratio(found, F32_PEERS), size, accuracy(found)))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "approxrt"}):
        figure, axes = pyplot.subplots(1, 2, figsize=(8.4, 0.42 * len(bars) + 0.7), sharey=True, layout="constrained")
        places = np.arange(len(bars))[::-1]
        colours = [BLUE if name.startswith("approxrt") else GREY for name, *_ in bars]
        columns = (
            (axes[0], [b[1] for b in bars], "times as fast as the fastest float32 engine", "{:.1f}x"),
            (axes[1], [b[2] / 1e6 for b in bars], "MB", "{:.1f}"),
        )
        for axis, values, title, form in columns:
            axis.barh(places, values, color=colours, height=0.68)
            axis.set_title(title)
            axis.set_yticks(places, [name for name, *_ in bars])
            axis.tick_params(length=0)
            axis.set_xticks([])
            axis.spines["bottom"].set_visible(False)
            axis.set_xlim(0, max(values) * 1.45)
            for place, value, bar in zip(places, values, bars, strict=True):
                label = form.format(value) + (f"   {bar[3]}" if axis is axes[1] and bar[3] else "")
                axis.annotate(label, (value, place), (4, 0), textcoords="offset points", va="center", color=INK)
        figure.savefig(ROOT / "docs" / "compression.svg", metadata={"Date": None})


def f32_bytes(row: dict[str, Any]) -> float:
    """Bytes of the float32 weights that a row's artifact is compared with."""
    return float(row["validation"]["bytes"] * row["validation"]["shrink"])


def accuracy(rows: Sequence[dict[str, Any]]) -> str:
    """Of the dev file, float32 and then."""
    before, after = (100 * np.mean([row["dev"][when]["accuracy"] for row in rows]) for when in ("before", "after"))
    return f"accuracy {before:.1f} → {after:.1f}"


if __name__ == "__main__":
    main()
