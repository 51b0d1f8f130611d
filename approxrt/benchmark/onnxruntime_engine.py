"""ONNX Runtime as a peer: f32 after its transformer optimiser, and dynamic int8 on top of that."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.benchmark.onnx_export import export_onnx
from approxrt.benchmark.source import Source

VARIANTS = ("f32", "int8")
PACKAGES = ("onnxruntime", "onnx", "torch", "transformers")


class OrtEngine:
    """An inference session; see `engines.Engine`."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
        answer: np.ndarray = self._session.run(None, {"input_ids": input_ids, "attention_mask": mask})[0]
        return answer


def prepare(variant: str, source: Source, work: Path) -> Path:
    """Export, fuse (attention, layer norm, GELU), and quantise for "int8"."""
    fused = _fuse(source, work)
    if variant == "f32":
        return fused
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = work / "ort-int8.onnx"
    # Per-channel s8 weights. Where the CPU has only saturating 16-bit sums (AVX2), 7-bit weights keep them exact;
    # ORT's own advice for such machines.
    quantize_dynamic(
        str(fused),
        str(path),
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not _has_vnni(),
        # ONNX's shape inference stops at the fused operators: what it cannot tell is float.
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    return path


def open_engine(variant: str, path: Path, threads: int) -> OrtEngine:
    """A session with `threads` intra-op threads that spin, ORT's default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return OrtEngine(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))


def _fuse(source: Source, work: Path) -> Path:
    path = work / "ort-f32.onnx"
    if path.exists():
        return path
    from onnxruntime.transformers import optimizer

    config = source.config
    heads = getattr(config, "num_attention_heads", None) or config.n_heads
    hidden = getattr(config, "hidden_size", None) or config.dim
    logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
    logging.getLogger("fusion_base").setLevel(logging.ERROR)
    model = optimizer.optimize_model(
        str(export_onnx(source, work)), model_type="bert", num_heads=heads, hidden_size=hidden, opt_level=1
    )
    model.save_model_to_file(str(path))
    return path


def _has_vnni() -> bool:
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
