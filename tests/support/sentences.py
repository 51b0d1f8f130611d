"""Texts that tell their class by one word."""

from __future__ import annotations

from pathlib import Path

import numpy as np

GOOD = ("good", "great", "fine", "excellent", "wonderful")


BAD = ("bad", "awful", "terrible", "poor", "dreadful")


FILLER = ("film", "the", "a", "story", "rain", "town", "price", "work", "hours", "room")


def write_data(folder: Path, train: int = 400, dev: int = 40, seed: int = 0) -> Path:
    """Texts of some filler words and one word that tells the class."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("dev", dev)):
        lines = ["text,label"]
        for i in range(count):
            words = [str(w) for w in rng.choice(FILLER, rng.integers(1, 9))]
            words.insert(int(rng.integers(0, len(words) + 1)), str(rng.choice(GOOD if i % 2 else BAD)))
            lines.append(f"{' '.join(words)},{'pos' if i % 2 else 'neg'}")
        if count:
            (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder
