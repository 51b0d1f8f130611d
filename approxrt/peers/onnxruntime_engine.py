"""ONNX Runtime as a peer: f32 after its transformer optimiser, and dynamic int8 on top of that."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.peers.onnx_export import export_onnx
from approxrt.peers.source import Source

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
    # Per-channel s8 weights. Where the CPU has only saturating 16-bit sums (AVX2), 7-bit weights keep them exact: ORT's
    # own advice for such machines. Measured on one (Zen 3, MiniLM, 32 x 128, 2 repetitions each in turns): s8 and u8,
    # per channel or not, 7 or 8 bits all lie within 593 to 649 ms, and the largest difference to f32's logits is 0.47
    # with this choice, 0.78 with 8 bits. u8 per channel is closer still (0.35) and was no faster.
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
    """A session with `threads` intra-op threads that spin during a run, ORT's default, but not after it.

    Threads of an idle session that spin on take cores from whoever is measured next, its own family first. Zen 3, 2
    threads, MiniLM 1 x 32, f32, int8 and approxrt in turns in one process, medians in ms: f32 8.4, int8 6.0 so; 8.6 and
    9.1 (p80 14) with the default; 9.6 and 7.1 without any spinning. Each alone in a process, spinning: 8.0 to 8.7
    and 4.9 to 5.2.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
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
