"""A decoder of SmolLM2-135M's sizes: decoding and reading a prompt, beside transformers in bf16.

Peers: transformers' model with a static cache, one token's step as a CUDA graph that is replayed (the fastest loop that
transformers' model allows); transformers.generate as it comes; and with its static cache, which compiles the step.
Ours: int8 and int4 weights. All choose tokens greedily; ours brings logits to the host for that, as the public API
does. Weights are random.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import common
import numpy as np

PROMPT, NEW = 128, 128


def loop(engine: Any, prompt: list[int], count: int) -> Callable[[], object]:
    """Read the prompt, then `count` tokens one by one."""

    def call() -> object:
        cache = engine.cache(len(prompt) + count)
        token = int(engine.prefill(cache, prompt).argmax())
        for _ in range(count):
            token = int(engine.step([cache], [[token]])[0].argmax())
        return token

    return call


def read(engine: Any, prompt: list[int]) -> Callable[[], object]:
    return lambda: engine.prefill(engine.cache(len(prompt)), prompt)


def graph_loop(model: Any, prompt: list[int], count: int) -> Callable[[], object]:
    """transformers with a static cache; the step is captured once and the token stays on the device."""
    import torch
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=len(prompt) + count + 1)
    ids = torch.tensor([prompt], device="cuda")
    token = torch.zeros(1, 1, dtype=torch.long, device="cuda")
    position = torch.zeros(1, dtype=torch.long, device="cuda")

    def step() -> None:
        out = model(
            token, past_key_values=cache, cache_position=position, position_ids=position[None], use_cache=True
        ).logits
        token.copy_(out[:, -1].argmax(-1, keepdim=True))
        position.add_(1)

    def begin() -> None:
        cache.reset()
        places = torch.arange(len(prompt), device="cuda")
        out = model(ids, past_key_values=cache, cache_position=places, position_ids=places[None], use_cache=True).logits
        token.copy_(out[:, -1].argmax(-1, keepdim=True))
        position.fill_(len(prompt))

    with torch.inference_mode():
        begin()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        begin()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

    def call() -> object:
        with torch.inference_mode():
            begin()
            for _ in range(count):
                graph.replay()
            return token.cpu()

    return call


def generate(model: Any, prompt: list[int], count: int, **options: Any) -> Callable[[], object]:
    import torch

    ids = torch.tensor([prompt], device="cuda")
    mask = torch.ones_like(ids)

    def call() -> object:
        with torch.inference_mode():
            return model.generate(
                ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, **options
            ).cpu()

    return call


def main() -> None:
    setting = common.parse(__doc__ or "")
    rows = common.Rows(setting.out)
    from subjects import decoder_peer, random_decoder

    from approxrt.runtime.cuda.decoder_engine import CudaDecoderEngine

    start = time.monotonic()
    subjects = {f"ours int{bits}": random_decoder(bits, setting.smoke) for bits in (8, 4)}
    vocab = subjects["ours int8"].decoder_spec.vocab_size
    engines = {name: CudaDecoderEngine(subject, setting.device, 4096) for name, subject in subjects.items()}
    rows.add({"what": "built", "took_s": round(time.monotonic() - start, 1)})
    rng = np.random.default_rng(0)
    prompt = rng.integers(1, vocab, setting.size(PROMPT, 5)).tolist()
    count = setting.size(NEW, 1)
    long = rng.integers(1, vocab, setting.size(1024, 6)).tolist()

    def timed(calls: dict[str, Any], tokens: int) -> dict[str, Any]:
        found = common.guarded(calls)
        times = common.host_times(found.made, setting.size(4, 0), setting.size(5, 1), warm=setting.size(3, 0))
        return {
            "tokens": tokens,
            "times": times,
            "tokens_a_second": {name: round(1e3 * tokens / t["ms"], 1) for name, t in times.items()},
            "errors": found.errors,
            "ratios to ours int8": common.ratios(times, "ours int8"),
        }

    def decode() -> dict[str, Any]:
        calls = {name: lambda engine=engine: loop(engine, prompt, count) for name, engine in engines.items()}
        if not setting.smoke:
            model = decoder_peer(subjects["ours int8"])
            calls["transformers, CUDA graph"] = lambda: graph_loop(model, prompt, count)
            calls["transformers generate"] = lambda: generate(model, prompt, count)
        return timed(calls, count)

    def prefill() -> dict[str, Any]:
        calls = {name: lambda engine=engine: read(engine, long) for name, engine in engines.items()}
        if not setting.smoke:
            import torch

            model = decoder_peer(subjects["ours int8"])
            ids = torch.tensor([long]).pin_memory()

            def theirs() -> object:
                with torch.inference_mode():
                    return model(ids.cuda(non_blocking=True), use_cache=True).logits[:, -1].float().cpu()

            calls["transformers"] = lambda: theirs
        return timed(calls, len(long))

    def compiled() -> dict[str, Any]:
        model = decoder_peer(subjects["ours int8"])
        calls: dict[str, Any] = {
            name: lambda engine=engine: loop(engine, prompt, count) for name, engine in engines.items()
        }
        calls["transformers generate, static cache"] = lambda: generate(
            model, prompt, count, cache_implementation="static"
        )
        return timed(calls, count)

    rows.attempt(f"decode {count} after {len(prompt)}", decode)
    rows.attempt(f"prompt of {len(long)}", prefill)
    if not setting.smoke:
        rows.attempt("decode beside the compiled step", compiled)
    rows.finish()


if __name__ == "__main__":
    main()
