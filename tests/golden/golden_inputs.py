"""Make the inputs of the golden cases once, in a folder that all cases share: data, checkpoints, decoders."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any


def once(folder: Path, make: Callable[[Path], Any]) -> Path:
    if not folder.exists():
        make(folder)
    return folder


def sentences(root: Path) -> Path:
    """Short texts in two classes."""
    from sentences import write_data

    return once(root / "sentences", lambda folder: write_data(folder, train=160, dev=24))


def pairs(root: Path) -> Path:
    def make(folder: Path) -> None:
        folder.mkdir()
        lines = (sentences(root) / "train.csv").read_text().splitlines()[1:]
        rows = [line.rsplit(",", 1) for line in lines]
        text = ["text,text_pair,label"] + [f"{a},{b},{label}" for (a, label), (b, _) in itertools.pairwise(rows)]
        (folder / "train.csv").write_text("\n".join(text) + "\n")

    return once(root / "pairs", make)


def scores(root: Path) -> Path:
    def make(folder: Path) -> None:
        folder.mkdir()
        lines = (sentences(root) / "train.csv").read_text().splitlines()[1:]
        rows = [line.rsplit(",", 1) for line in lines]
        text = ["text,label"] + [f"{a},{len(a) / 10 + (1.0 if label == 'pos' else 0.5)}" for a, label in rows]
        (folder / "train.csv").write_text("\n".join(text) + "\n")

    return once(root / "scores", make)


def base(root: Path) -> Path:
    from families import build_checkpoint

    sizes = {"hidden": 64, "heads": 4, "layers": 2, "ffn": 192, "positions": 64}
    return once(root / "base", lambda folder: build_checkpoint("bert", folder, plain=True, **sizes))


def embedder(root: Path) -> Path:
    from families import build_checkpoint

    sizes = {"hidden": 64, "heads": 4, "layers": 2, "ffn": 192, "positions": 64}
    return once(root / "embedder", lambda f: build_checkpoint("bert", f, plain=True, pooling="mean", **sizes))


def tuned(root: Path, data: Callable[[Path], Path] = sentences) -> Path:
    """A classifier (or what the data asks for) of a few steps."""
    from approxrt.training.finetune import FinetuneOptions, finetune

    options = FinetuneOptions(epochs=3, lr=5e-3, batch_size=16, seed=3, val_fraction=0.2, precision="f32")
    name = f"tuned-{data.__name__}"
    return once(root / name, lambda folder: finetune(base(root), "csv", data(root), folder, options))


def lm_text(root: Path) -> Path:
    from lm_checkpoints import text

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "train.txt").write_text(text())
        (folder / "dev.txt").write_text(text()[:1500])

    return once(root / "lm-text", make)


def llama(root: Path) -> Path:
    from lm_checkpoints import trained_llama

    return once(root / "llama", trained_llama)


def gpt2(root: Path) -> Path:
    from decoders import build_decoder

    return once(root / "gpt2", lambda folder: build_decoder("gpt2", folder, positions=64, hidden=32, inner=64))
