"""PyTorch as a peer: eager, and compiled by inductor. f32, fused (SDPA) attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from approxrt.peers.source import Source, build_module

VARIANTS = ("eager", "compile")
PACKAGES = ("torch", "transformers")


class TorchEngine:
    """Runs the module as it is; see `engines.Engine`."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        import torch

        mask = None if attention_mask is None else torch.from_numpy(attention_mask)
        with torch.inference_mode():
            answer: np.ndarray = self._module(torch.from_numpy(input_ids), mask).numpy()
        return answer


def prepare(variant: str, source: Source, work: Path) -> Path:
    """Nothing to convert: PyTorch runs the checkpoint."""
    return source.checkpoint


def open_engine(variant: str, path: Path, threads: int) -> TorchEngine:
    """Load the checkpoint; "compile" compiles at the first run of each shape class."""
    import torch

    torch.set_num_threads(threads)
    module = build_module(path)
    if variant == "compile":
        # Symbolic shapes: a service meets every length, and a compilation for each would outlast any benchmark. Zen 3,
        # 2 threads, MiniLM: 1 x 32 in 17.4 ms so and 17.5 with fixed shapes, 32 x 128 in 887 and 853 (2 repetitions).
        module = torch.compile(module, dynamic=True)
    return TorchEngine(module)
