"""Figures of an analysis as SVG text to put into a page. Colours are those of Okabe & Ito, or maps from them to white,
so that they differ for colour-blind readers, too."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from approxrt.errors import MissingDependencyError

BLUE, ORANGE, GREEN, PINK, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8a8f98"
INK = "#30343b"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b6bac2",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e6e8ec",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
WIDTH = 8.4  # inches; the page scales it


def require_matplotlib() -> None:
    """Raise MissingDependencyError without it."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "compress", "the report's figures")


def block_bars(blocks: Sequence[Mapping[str, Any]]) -> str:
    """The loss's change without each block, with two standard errors."""
    labels = [f"{'Attention' if b['kind'] == 'attention' else 'FFN'} {b['layer']}" for b in blocks]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        places = np.arange(len(blocks))[::-1]
        colours = [BLUE if b["kind"] == "attention" else ORANGE for b in blocks]
        errors = [2 * b["stderr"] for b in blocks]
        axes.barh(places, [b["change"] for b in blocks], xerr=errors, color=colours, height=0.7, ecolor=INK, capsize=2)
        zeros = [b["zero_change"] for b in blocks if "zero_change" in b]
        if zeros:
            axes.plot(zeros, places, "D", color=INK, markersize=3.5, markerfacecolor="white")
        axes.set_yticks(places, labels)
        axes.axvline(0, color=INK, linewidth=0.8)
        what = "bars: mean output kept; diamonds: nothing kept" if zeros else "its mean output is kept"
        axes.set_xlabel(f"change of the mean loss without the block ({what})")
        _signed_log(axes, [b["change"] for b in blocks] + zeros)
        axes.grid(axis="x")

    return _svg("blocks", draw, 0.28 * len(blocks) + 0.9, "Change of the loss without each block")


def part_heatmap(entries: Sequence[Mapping[str, Any]], layers: int, what: str) -> str:
    """Layers down, heads or groups across: the loss's change without each."""
    columns = max((e["part"] for e in entries), default=0) + 1
    values = np.full((layers, columns), np.nan)
    for entry in entries:
        values[entry["layer"], entry["part"]] = entry["change"]

    def draw(figure: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap, SymLogNorm

        axes = figure.subplots()
        limit = max(float(np.nanmax(np.abs(values))) if entries else 0.0, 1e-6)
        colours = LinearSegmentedColormap.from_list("change", [BLUE, "#ffffff", ORANGE])
        norm = SymLogNorm(linthresh=limit / 30, vmin=-limit, vmax=limit)
        mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, norm=norm, edgecolors="white", linewidth=1.5)
        axes.set_facecolor("#eceef1")
        axes.invert_yaxis()
        axes.set_xticks(np.arange(columns) + 0.5, [str(i) for i in range(columns)])
        axes.set_yticks(np.arange(layers) + 0.5, [f"layer {i}" for i in range(layers)])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(what)
        if columns <= 16:
            scale, _ = _milli(limit)
            for (i, j), value in np.ndenumerate(values):
                if np.isfinite(value):
                    dark = norm(value) > 0.93 or norm(value) < 0.07
                    colour = "white" if dark else INK
                    text = f"{value * scale:.1f}".replace("-0.0", "0.0")
                    axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
        legend = figure.colorbar(mesh, ax=axes, pad=0.02, ticks=[-limit, 0, limit], format="%.2g")
        legend.outline.set_visible(False)
        legend.solids.set(rasterized=False, edgecolor="face")

    return _svg(f"heat-{what}", draw, 0.34 * layers + 1.0, f"Change of the loss without each {what}")


def part_unit(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return what the numbers in a heatmap's cells count: "thousandths" and the like."""
    return _milli(max((abs(e["change"]) for e in entries), default=0.0))[1]


def tile_curves(linears: Sequence[Mapping[str, Any]]) -> str:
    """Share of significance that the best tiles hold: one panel a kind of linear, one line a layer."""
    kinds = sorted({_kind(x["name"]) for x in linears}, key=["query", "key", "value", "output", "up", "down"].index)
    layers = max(_layer(x["name"]) for x in linears) + 1

    def draw(figure: Any) -> None:
        panels = figure.subplots(2, 3, sharex=True, sharey=True, squeeze=False).ravel()
        for axes in panels[len(kinds) :]:
            axes.set_visible(False)
        for axes, kind in zip(panels, kinds, strict=False):
            for linear in linears:
                if _kind(linear["name"]) == kind:
                    share, held = np.array(linear["curve"]).T * 100
                    axes.plot(share, held, color=_ramp(_layer(linear["name"]), layers), linewidth=1.4)
            axes.plot([0, 100], [0, 100], ":", color=GREY, linewidth=1)
            axes.set_title(TITLES[kind])
            axes.grid()
        handles = [panels[0].plot([], [], color=_ramp(i, layers))[0] for i in (0, layers - 1)]
        panels[0].legend(handles, ["first layer", "last layer"], fontsize=8, loc="lower right")
        figure.supxlabel("share of tiles kept, %", fontsize=9.5)
        figure.supylabel("share of significance kept, %", fontsize=9.5)

    return _svg("tiles", draw, 4.6, "Share of significance by share of tiles, for each linear")


def embedding_curve(embeddings: Mapping[str, Any]) -> str:
    """Share of significance that the best rows hold, and how many the training texts use."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        share, held = np.array(embeddings["curve"]).T * 100
        axes.plot(share, held, color=BLUE, linewidth=1.8)
        used = 100 * embeddings["used_share"]
        axes.axvline(used, color=ORANGE, linewidth=1.4, linestyle="--")
        left = used > 60
        axes.annotate(
            f"used by the training texts: {used:.0f} %",
            (used, 12),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            color=ORANGE,
        )
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 104)
        axes.set_xlabel("share of rows kept, the most significant first, %")
        axes.set_ylabel("share of significance, %")
        axes.grid()

    return _svg("rows", draw, 2.9, "Share of significance by share of embedding rows")


def latency_bars(latency: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Left: where the time of the dense int8 model goes. Right: one block's time by density."""

    def draw(figure: Any) -> None:
        first, second = figure.subplots(1, 2, width_ratios=[1, 1.25])
        parts = [("embeddings, norms, head", latency["base_ms"], GREY)]
        for kind, title, colour in (("attention", "attention", BLUE), ("ffn", "FFN", ORANGE)):
            if kind in latency:
                sizes = model["heads"] if kind == "attention" else model["units"]
                whole = np.interp(sizes, [0, *latency[kind]["sizes"]], [0, *(row[-1] for row in latency[kind]["ms"])])
                parts.append((title, float(whole.sum()), colour))
                axes_ms = latency[kind]["ms"]
                densities = 100 * np.array(latency[kind]["densities"])
                second.plot(densities, axes_ms[-1], "o-", color=colour, markersize=4, label=f"{title}, all of it")
                half = len(axes_ms) // 2
                size = latency[kind]["sizes"][half]
                unit = "heads" if kind == "attention" else "neurons"
                second.plot(
                    densities, axes_ms[half], "s:", color=colour, markersize=3.5, label=f"{title}, {size} {unit}"
                )
        total = sum(ms for _, ms, _ in parts) or 1.0
        places = np.arange(len(parts))[::-1]
        first.barh(places, [ms for _, ms, _ in parts], color=[c for _, _, c in parts], height=0.62)
        first.set_yticks(places, [name for name, _, _ in parts])
        for place, (_, ms, _) in zip(places, parts, strict=True):
            first.annotate(
                f"{100 * ms / total:.0f} %", (ms, place), xytext=(4, 0), textcoords="offset points", va="center"
            )
        first.set_xlim(0, 1.18 * max(ms for _, ms, _ in parts))
        first.set_xlabel("ms, all layers")
        first.set_title("Dense int8 model")
        second.set_xlabel("share of weight tiles kept, %")
        second.set_ylabel("ms")
        second.set_ylim(bottom=0)
        second.set_title("One block")
        second.legend(fontsize=8)
        second.grid()

    return _svg("latency", draw, 2.9, "Time of the model's parts")


def pareto_curve(front: Sequence[Mapping[str, Any]]) -> str:
    """Predicted loss increase over predicted speedup."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        x, y = [p["speedup"] for p in front], [p["loss"] for p in front]
        axes.plot(x, y, "o-", color=BLUE, markersize=5, linewidth=1.6)
        _signed_log(axes, y, "y")
        axes.set_xlabel("predicted speedup over the dense int8 model")
        axes.set_ylabel("predicted increase of the loss")
        axes.grid()

    return _svg("front", draw, 3.0, "Predicted loss by predicted speedup")


TITLES = {
    "query": "Attention: query",
    "key": "Attention: key",
    "value": "Attention: value",
    "output": "Attention: output",
    "up": "FFN: up",
    "down": "FFN: down",
}


def _kind(name: str) -> str:
    return name.rsplit(".", 1)[1]


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _ramp(place: int, count: int) -> Any:
    """Return a ramp of colours from light to dark blue."""
    weight = 0.25 + 0.75 * (place / max(1, count - 1))
    light, dark = np.array([0.80, 0.88, 0.96]), np.array([0.0, 0.22, 0.42])
    return tuple(light + (dark - light) * weight)


def _milli(limit: float) -> tuple[float, str]:
    for scale, name in ((1.0, "units"), (1e3, "thousandths"), (1e6, "millionths")):
        if limit * scale >= 2:
            return scale, name
    return 1e6, "millionths"


def _signed_log(axes: Any, values: Sequence[float], axis: str = "x") -> None:
    """A scale that is linear near zero where the values differ by more than a factor of 30."""
    sizes = sorted(abs(v) for v in values if v)
    if sizes and sizes[-1] > 30 * sizes[len(sizes) // 2]:
        threshold = max(sizes[len(sizes) // 4], sizes[-1] / 1000)
        (axes.set_xscale if axis == "x" else axes.set_yscale)("symlog", linthresh=threshold)


def _svg(name: str, draw: Any, height: float, label: str) -> str:
    """The drawing as an <svg> element that scales with the page; ids are the figure's own."""
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure_id = f"figure-{name}".replace(" ", "-")
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = _own_ids(text, figure_id)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def _own_ids(text: str, figure: str) -> str:
    """An id must be unique in the page: those that nothing refers to go, the others get the figure's name."""
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{figure}-{m[1]}"' if m[1] in used else "", text)
    return re.sub(r'(href="|url\()#', rf"\1#{figure}-", text)
