"""Whole encoders, from token ids in host memory to logits in host memory, beside transformers on torch.

Peers, bf16 with SDPA: eager; eager in a CUDA graph; torch.compile(mode="max-autotune"), which captures graphs itself.
All sequences are full, so that no peer computes padding. Ours: int8, dense and with 75 % of the layers' 64x64 blocks
pruned. Weights are random: this measures time and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np

MODELS = {"bert-base": (768, 3072, 12, 12), "minilm": (384, 1536, 6, 12)}


def engines(setting: common.Setting, sizes: tuple[int, int, int, int]) -> dict[str, Any]:
    """Our engines by name, and the dense subject's spec."""
    from subjects import random_encoder

    from approxrt.runtime.cuda.engine import CudaEngine

    hidden, ffn, layers, heads = sizes
    vocab = setting.size(30522, 500)
    subjects = {
        "ours int8": random_encoder(hidden, ffn, layers, heads, 1.0, vocab),
        "ours int8, 75 % pruned": random_encoder(hidden, ffn, layers, heads, 0.25, vocab),
    }
    return {name: (CudaEngine(subject, setting.device), subject) for name, subject in subjects.items()}


def ours(engine: Any, ids: np.ndarray) -> Callable[[], object]:
    sequences = list(ids.astype(np.int32))
    return lambda: engine.forward(sequences, None, "logits")


def theirs(model: Any, ids: np.ndarray) -> Callable[[], object]:
    """transformers' model from pinned ids to logits on the host."""
    import torch

    host = torch.tensor(ids, dtype=torch.int64).pin_memory()

    def call() -> object:
        with torch.inference_mode():
            return model(input_ids=host.to("cuda", non_blocking=True)).logits.float().cpu()

    return call


def in_graph(model: Any, ids: np.ndarray) -> Callable[[], object]:
    """The same with the forward pass as one CUDA graph."""
    import torch

    host = torch.tensor(ids, dtype=torch.int64).pin_memory()
    device = host.cuda()
    with torch.inference_mode():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                model(input_ids=device)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(input_ids=device).logits.float()

    def call() -> object:
        device.copy_(host, non_blocking=True)
        graph.replay()
        return logits.cpu()

    return call


def compare(calls: dict[str, Callable[[], Callable[[], object]]], setting: common.Setting) -> dict[str, Any]:
    """Time what the makers in `calls` make."""
    found = common.guarded(calls)
    times = common.host_times(found.made, setting.size(2, 0), setting.size(10, 1), setting.size(3, 0))
    return {
        "times": times,
        "errors": found.errors,
        **{f"ratios to {name}": common.ratios(times, name) for name in times if name.startswith("ours")},
    }


def main() -> None:
    setting = common.parse(__doc__ or "")
    rows = common.Rows(setting.out)
    models = {"tiny": (128, 128, 1, 2)} if setting.smoke else MODELS
    shapes = [(2, 8)] if setting.smoke else [(32, 128), (1, 128)]
    built: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for name, sizes in models.items():
        start = time.monotonic()
        built[name] = engines(setting, sizes)
        info = {
            what: sorted({x["kernel"] for x in e.info()["kernels"].values()}) for what, (e, _) in built[name].items()
        }
        rows.add({"what": f"{name} built", "took_s": round(time.monotonic() - start, 1), "kernels": info})
        for batch, length in shapes:
            ids = rng.integers(5, built[name]["ours int8"][1].spec.vocab_size, (batch, length))

            def plain(ids: np.ndarray = ids, name: str = name) -> dict[str, Any]:
                calls: dict[str, Any] = {
                    what: lambda engine=engine: ours(engine, ids) for what, (engine, _) in built[name].items()
                }
                if not setting.smoke:
                    import torch
                    from subjects import hugging_face

                    model = hugging_face(built[name]["ours int8"][1], torch.bfloat16)
                    calls["torch eager"] = lambda: theirs(model, ids)
                    calls["torch eager, CUDA graph"] = lambda: in_graph(model, ids)
                return compare(calls, setting)

            rows.attempt(f"{name} {batch}x{length}", plain)
    # What takes longest to start comes last: each shape is compiled and autotuned for tens of seconds.
    for name in () if setting.smoke else models:
        for batch, length in shapes:
            ids = rng.integers(5, 30522, (batch, length))

            def compiled(ids: np.ndarray = ids, name: str = name) -> dict[str, Any]:
                import torch
                from subjects import hugging_face

                torch._dynamo.reset()
                model = hugging_face(built[name]["ours int8"][1], torch.bfloat16)
                calls: dict[str, Any] = {
                    what: lambda engine=engine: ours(engine, ids) for what, (engine, _) in built[name].items()
                }
                fast = torch.compile(model, mode="max-autotune", dynamic=False)
                calls["torch.compile max-autotune"] = lambda: theirs(fast, ids)
                return compare(calls, setting)

            rows.attempt(f"{name} {batch}x{length} beside torch.compile", compiled)
    rows.finish()


if __name__ == "__main__":
    main()
