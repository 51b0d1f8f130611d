"""A decoder on the GPU's kernels against the reference without a cache, and against the CPU engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from decoders import small_decoder_spec
from gpu_support import DEVICE, INTERPRETED
from specs import random_tensors

pytest.importorskip("approxrt._C", reason="the CPU engine, to compare with, is not built")

from approxrt.artifact.spec.decoder import DecoderSpec, HeadPreviewSpec
from approxrt.errors import InputError, TargetWarning
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.cuda.decoder_engine import CudaDecoderEngine
from approxrt.runtime.reference.decoder import DecoderReference

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::approxrt.errors.TargetWarning")]


@dataclasses.dataclass
class Weights:
    decoder_spec: DecoderSpec
    tensors: dict[str, np.ndarray]


def build(kind: str, **changes) -> Weights:
    spec = small_decoder_spec(kind, **changes)
    return Weights(spec, random_tensors(spec))


def gpt_like(kind: str) -> Weights:
    spec = small_decoder_spec(
        kind, positions="learned", rope=None, norm="layer", gated=False, activation="gelu_tanh", tied_embeddings=False,
        head_kind=kind,
    )  # fmt: skip
    spec = dataclasses.replace(spec, layers=tuple(dataclasses.replace(l, ffn_gate="f32") for l in spec.layers))
    return Weights(spec, random_tensors(spec))


def without_blocks(kind: str) -> Weights:
    spec = small_decoder_spec(kind)
    attention = dict.fromkeys(("query", "key", "value", "attention_output"), "f32")
    ffn = dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "f32")
    first, second = spec.layers
    first = dataclasses.replace(first, num_heads=0, num_kv_heads=0, **attention)
    second = dataclasses.replace(second, intermediate_size=0, **ffn)
    spec = dataclasses.replace(spec, layers=(first, second))
    return Weights(spec, random_tensors(spec))


PROMPT = [3, 17, 42, 5, 69, 1, 8, 8, 30, 12, 55, 2, 7, 61, 33, 4, 9, 21]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """RMS of the difference over RMS of b."""
    return float(np.sqrt(np.mean((a - b) ** 2)) / np.sqrt(np.mean(b**2)))


# float16 of projections and steps of the quantiser, as in test_gpu_engine.py: about one part in a hundred.
LIMIT = 0.03


@pytest.mark.parametrize("kind", ["f32", "s8", "bsr_s8", "s4", "bsr_s4", "g4", "g8"])
def test_every_kind(kind: str) -> None:
    weights = build(kind, count=1)
    want = DecoderReference(weights.decoder_spec, weights.tensors).next_logits(PROMPT)
    engine = CudaDecoderEngine(weights, DEVICE, cache_tokens=100)
    cache = engine.cache(30)
    got = engine.step([cache], [PROMPT[:11]], all_logits=True)
    assert got.shape == (11, 70) and got.dtype == np.float32 and cache.length == 11
    limit = 0.002 if kind == "f32" else LIMIT
    assert distance(got, want[:11]) <= limit
    # The rest one by one, which other kernels do.
    for i in range(11, 13):
        step = engine.step([cache], [PROMPT[i : i + 1]])
        assert step.shape == (1, 70) and distance(step[0], want[i]) <= limit
    cpu = DecoderEngine(weights, threads=1)
    assert distance(engine.prefill(engine.cache(18), PROMPT), cpu.prefill(cpu.cache(18), PROMPT)) <= limit
    kernels = {name: info["kernel"] for name, info in engine.info()["kernels"].items()}
    assert kernels["layers.0.attention.query+layers.0.attention.key+layers.0.attention.value"] == {
        "f32": "gemm_f32", "s4": "gemm_int4", "g4": "gemm_f32", "g8": "gemm_f32",
    }.get(kind, "gemm_int8")  # fmt: skip


def rotated(gated: bool) -> Weights:
    """Outliers spread by Hadamard blocks before the down projection."""
    spec = small_decoder_spec("s8", count=1, gated=gated, down_block=16)
    (layer,) = spec.layers
    changes = {} if gated else {"ffn_gate": "f32"}
    spec = dataclasses.replace(spec, layers=(dataclasses.replace(layer, intermediate_size=48, **changes),))
    return Weights(spec, random_tensors(spec))


@pytest.mark.parametrize(
    "weights",
    [gpt_like("s8"), without_blocks("s8"), rotated(True), rotated(False)],
    ids=["gpt", "removed blocks", "rotated", "rotated, no gate"],
)
def test_shapes_of_models(weights: Weights) -> None:
    want = DecoderReference(weights.decoder_spec, weights.tensors).next_logits(PROMPT)
    engine = CudaDecoderEngine(weights, DEVICE, cache_tokens=100)
    cache = engine.cache(30)
    assert distance(engine.step([cache], [PROMPT[:17]], all_logits=True), want[:17]) <= LIMIT
    assert distance(engine.step([cache], [PROMPT[17:]])[0], want[17]) <= LIMIT


def test_sequences_do_not_depend_on_each_other() -> None:
    """Bit for bit: prompts of unequal length in one step, then single tokens, alone and together."""
    engine = CudaDecoderEngine(build("s8", count=1), DEVICE, cache_tokens=200)
    prompts = [PROMPT, PROMPT[:3]]
    together = [engine.cache(30) for _ in prompts]
    alone = [engine.cache(30) for _ in prompts]
    first = engine.step(together, prompts)
    for row, cache, prompt in zip(first, alone, prompts, strict=True):
        np.testing.assert_array_equal(engine.step([cache], [prompt])[0], row)
    second = engine.step(together, [[4], [9]])
    for row, cache, token in zip(second, alone, (4, 9), strict=True):
        np.testing.assert_array_equal(engine.step([cache], [[token]])[0], row)
    together[0].truncate(18)
    np.testing.assert_array_equal(engine.step([together[0]], [[4]])[0], second[0])


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_graphs_replay_the_same() -> None:
    engine = CudaDecoderEngine(build("s8"), DEVICE, cache_tokens=200)
    cache = engine.cache(60)
    engine.prefill(cache, PROMPT)
    rows = []
    for _ in range(4):  # launches, capture and replay, replay, replay
        rows.append(engine.step([cache], [[5]])[0])
        cache.truncate(len(PROMPT))
    assert engine.info()["graphs"] == 1
    for row in rows[1:]:
        np.testing.assert_array_equal(row, rows[0])


def test_wrong_steps() -> None:
    engine = CudaDecoderEngine(build("s8", count=1), DEVICE, cache_tokens=60)
    cache = engine.cache(4)
    with pytest.raises(InputError, match="5 tokens do not fit behind the 0 of a cache for 4"):
        engine.step([cache], [[1, 2, 3, 4, 5]])
    with pytest.raises(InputError, match="token id 70; the vocabulary has ids 0 to 69"):
        engine.step([cache], [[1, 70]])
    with pytest.raises(InputError, match="sequence 0 is empty"):
        engine.step([cache], [[]])
    with pytest.raises(InputError, match="twice"):
        engine.step([cache, cache], [[1], [2]])
    with pytest.raises(InputError, match="the prompt is empty"):
        engine.prefill(cache, [])
    with pytest.raises(InputError, match="capacity is 65; it must be between 1 and 64"):
        engine.cache(65)
    with pytest.raises(InputError, match=r"no 60 tokens in one piece are left.*56 are free"):
        engine.cache(60)
    del cache
    assert engine.cache(60).bytes == 60 * 4 * 20


def test_what_was_made_for_a_cpu_says_so() -> None:
    """Scattered tiles, and signs that only a CPU matches: the GPU attends to all keys, as without them."""
    sparse = build("bsr_s8", max_positions=128)
    signs = {"attention_keep": 8, "sign_from": 64, "sign_window": 2}
    layers = tuple(dataclasses.replace(l, **signs) for l in sparse.decoder_spec.layers)
    matching = Weights(dataclasses.replace(sparse.decoder_spec, layers=layers), sparse.tensors)
    with pytest.warns(TargetWarning) as caught:
        engine = CudaDecoderEngine(matching, DEVICE)
    texts = [str(w.message) for w in caught]
    assert any("--target cuda" in text for text in texts)
    assert any("2 layers of this decoder match signs on a CPU" in text for text in texts)
    ids = np.random.default_rng(0).integers(0, 70, 90).tolist()
    got = engine.step([engine.cache(90)], [ids])[0]
    want = DecoderReference(sparse.decoder_spec, sparse.tensors).next_logits(ids)[-1]
    assert distance(got, want) < 0.05


def test_a_previewed_head_is_computed_whole() -> None:
    weights = build("g8")
    spec = dataclasses.replace(weights.decoder_spec, head_preview=HeadPreviewSpec(32, 0.5))
    previewed = Weights(spec, random_tensors(spec) | weights.tensors)
    logits = [
        engine.step([engine.cache(len(PROMPT))], [PROMPT], True)
        for engine in (CudaDecoderEngine(w, DEVICE) for w in (previewed, weights))
    ]
    np.testing.assert_array_equal(logits[0], logits[1])
