"""`approxrt.load(path, device="cuda")`, texts in and answers out, beside the same artifact on the CPU."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from gpu_support import DEVICE

pytest.importorskip("approxrt._C", reason="the CPU engine, to compare with, is not built")
pytest.importorskip("transformers", reason="makes the checkpoints")

from decoders import build_decoder
from families import build_checkpoint

import approxrt
from approxrt.errors import DeviceError, InputError
from approxrt.runtime.cuda import decoder_engine as decoder_cuda
from approxrt.runtime.cuda import engine as cuda

pytestmark = pytest.mark.slow

TEXTS = ["a gripping film", "two hours that nobody in the room will ever get back"]


@pytest.fixture(autouse=True)
def engines_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the engines take the CPU, where kernels are interpreted; all else is as users have it."""
    if DEVICE == "cpu":
        monkeypatch.setattr(cuda, "require_cuda", lambda: None)
        monkeypatch.setattr(cuda, "CudaEngine", functools.partial(cuda.CudaEngine, device="cpu"))
        small = functools.partial(decoder_cuda.CudaDecoderEngine, device="cpu", cache_tokens=128)
        monkeypatch.setattr(decoder_cuda, "CudaDecoderEngine", small)


def test_classify_logits_and_embed(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "checkpoint", hidden=32, layers=1, ffn=48)
    path = approxrt.convert(folder, tmp_path / "artifact")
    gpu, cpu = approxrt.load(path, device="cuda"), approxrt.load(path, device="cpu", threads=1)
    got, want = gpu.logits(TEXTS), cpu.logits(TEXTS)
    assert np.abs(got - want).max() <= 0.03 * np.abs(want).max()
    for a, b in zip(gpu.classify(TEXTS, top_k=3), cpu.classify(TEXTS, top_k=3), strict=True):
        assert {p.label for p in a} == {p.label for p in b}
        assert [p.score for p in a] == pytest.approx([p.score for p in b], abs=0.02)
    vectors = gpu.embed(TEXTS[0])
    assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)
    assert float((vectors * cpu.embed(TEXTS[0])).sum()) > 0.999
    assert gpu.info["device"] == DEVICE and "gpu" in gpu.info
    with pytest.raises(DeviceError, match="profiling"), gpu.profiling():
        pass


def test_generate(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path / "checkpoint", layers=1)
    path = approxrt.convert(folder, tmp_path / "artifact")
    gpu, cpu = approxrt.load(path, device="cuda"), approxrt.load(path, device="cpu", threads=1)
    ids = [gpu.tokenize("the quick brown fox")]
    got, want = gpu.forward(ids), cpu.forward(ids)
    assert np.sqrt(np.mean((got - want) ** 2)) <= 0.03 * np.sqrt(np.mean(want**2))
    (answer,) = gpu.generate_many(["the quick brown fox"], max_new_tokens=3)
    assert answer.new_tokens == 3 or answer.finish_reason == "eos"
    assert "".join(gpu.generate("the quick brown fox", max_new_tokens=3, stream=True)) == answer.text
    with pytest.raises(InputError, match="a GPU keeps keys and values in f16"):
        approxrt.load(path, device="cuda", cache_kind="int8")
