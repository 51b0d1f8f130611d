"""The checkpoint as an ONNX graph, shared by the engines that start from one."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

from approxrt.benchmark.source import Source


def export_onnx(source: Source, work: Path) -> Path:
    """Write work/model.onnx (inputs input_ids, attention_mask i64[batch, sequence]; output logits) unless it exists."""
    path = work / "model.onnx"
    if path.exists():
        return path
    import torch

    sample = torch.ones(2, 16, dtype=torch.int64)
    dynamic = {0: "batch", 1: "sequence"}
    # Eager attention is plain matmul and softmax, which every graph optimiser understands.
    module = source.module("eager")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (sample, sample),
                str(path),
                dynamo=False,
                opset_version=17,
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_axes={"input_ids": dynamic, "attention_mask": dynamic, "logits": {0: "batch"}},
            )
    finally:
        logging.disable(level)
    return path
