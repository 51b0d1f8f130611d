"""approxrt itself, behind the same interface as its peers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PACKAGES: tuple[str, ...] = ()


class ApproxrtEngine:
    """An artifact; see `engines.Engine`."""

    def __init__(self, path: Path, threads: int) -> None:
        from approxrt.runtime.loading import load

        self.model = load(path, device="cpu", threads=threads)

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        if attention_mask is None:
            return self.run_packed(input_ids.tolist())
        lengths = attention_mask.sum(1)
        return self.run_packed([row[:n].tolist() for row, n in zip(input_ids, lengths, strict=True)])

    def run_packed(self, texts: list[list[int]]) -> np.ndarray:
        """All texts in one call; the runtime splits and sorts them itself. Logits of tokens are averaged, as peers'."""
        if self.model.spec.per_token:
            return np.stack([rows.mean(axis=0) for rows in self.model.forward_tokens(texts)])
        return self.model.forward(texts)


def open_engine(variant: str, path: Path, threads: int) -> ApproxrtEngine:
    """Load the artifact. `variant` is its name in reports and changes nothing."""
    return ApproxrtEngine(path, threads)
