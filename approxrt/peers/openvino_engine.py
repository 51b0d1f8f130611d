"""OpenVINO as a peer: f32, and int8 by NNCF's post-training quantisation with the transformer preset."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.peers.source import Source

VARIANTS = ("f32", "int8")
PACKAGES = ("openvino", "nncf", "torch", "transformers")


class OpenVinoEngine:
    """A compiled model with dynamic shapes; see `engines.Engine`."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
        # Inputs are shared, not copied; the answer is copied, since the request owns it until its next run.
        self._request.infer([input_ids, mask], share_inputs=True, share_outputs=True)
        return np.array(self._request.get_output_tensor(0).data)


def prepare(variant: str, source: Source, work: Path) -> Path:
    """Convert from torch, and quantise with the source's texts for "int8"."""
    import openvino

    plain = work / "openvino-f32.xml"
    if not plain.exists():
        openvino.save_model(_convert(source), plain, compress_to_fp16=False)
    if variant == "f32":
        return plain
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    samples = source.sample_ids

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for ids in samples:
            yield {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}

    quantised = nncf.quantize(
        openvino.Core().read_model(plain),
        nncf.Dataset(list(feeds())),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
    )
    path = work / "openvino-int8.xml"
    openvino.save_model(quantised, path, compress_to_fp16=False)
    return path


def open_engine(variant: str, path: Path, threads: int) -> OpenVinoEngine:
    """Compile for latency with `threads` threads, computing in f32 where nothing is quantised.

    Zen 3, 2 threads, MiniLM 1 x 32, in turns: 8.8 ms f32 and 12.4 ms int8 so; static shapes 8.7 and 12.0, the
    throughput hint with one stream 8.8 and 12.4, no pinning 8.8 and 12.3. None is better beyond its own spread.
    """
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    return OpenVinoEngine(openvino.Core().compile_model(str(path), "CPU", settings))


def _convert(source: Source) -> Any:
    import openvino
    import torch

    sample = torch.ones(2, 16, dtype=torch.int64)
    with torch.inference_mode():
        model = openvino.convert_model(source.module(), example_input=(sample, sample))
    for port, name in zip(model.inputs, ("input_ids", "attention_mask"), strict=True):
        port.get_tensor().set_names({name})
    model.reshape({port: openvino.PartialShape([-1, -1]) for port in model.inputs})
    model.validate_nodes_and_infer_types()
    return model
