"""The checkpoint as an ONNX graph, shared by the engines that start from one."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

from approxrt.peers.source import Source


def export_onnx(source: Source, work: Path) -> Path:
    """Write work/model.onnx (inputs input_ids, attention_mask i64[batch, sequence]; output logits) unless it exists."""
    path = work / "model.onnx"
    if path.exists():
        return path
    import torch

    sample = torch.ones(2, 16, dtype=torch.int64)
    # With padding in it, so that the trace keeps the mask.
    mask = sample.clone()
    mask[1, 9:] = 0
    dynamic = {0: "batch", 1: "sequence"}
    # Eager attention with the model's own mask: the form that ONNX Runtime's optimiser fuses into its Attention.
    module = source.module("eager", additive_mask=False)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (sample, mask),
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
