"""The C++ encoder against transformers and the reference; invariance; threads; forks.

f32: float32 sums in another order than torch's. torch's own float32 error against float64 on the
same model measures how well conditioned the model is; the engine may err by a small multiple of it.

int8: both sides quantise the same way, but a value within float32 error of a rounding boundary may
fall to the other side: one step of one input. Such flips are rare (probability about 127 eps times
the conditioning, an input), so typical outputs agree to float32 accuracy and the worst stays
far below the effect of quantisation itself.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES, build_checkpoint
from levels import EPS, every_level_of_linears
from specs import TOKENIZER_JSON, random_tensors, small_spec

from approxrt.artifact.reader import Artifact, read_artifact
from approxrt.artifact.spec.encoder import HeadSpec, LayerSpec
from approxrt.artifact.spec.formats import LINEAR_KINDS
from approxrt.artifact.writer import write_artifact
from approxrt.conversion import convert
from approxrt.runtime.cpu.engine import CpuEngine

SIZES = {
    "head_dim 32": {"hidden": 64, "heads": 2, "ffn": 128},
    "head_dim 64": {"hidden": 128, "heads": 2, "ffn": 80, "layers": 1},
    "head_dim 13": {"hidden": 39, "heads": 3, "ffn": 51, "layers": 3},
}


def sequences(vocab: int, lengths: tuple[int, ...] = (1, 2, 7, 33, 64)) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, vocab, n).tolist() for n in lengths]


def random_artifact(tmp_path: Path, name: str = "a", **options) -> Artifact:
    spec = small_spec(**options)
    return read_artifact(write_artifact(tmp_path / name, spec, random_tensors(spec), TOKENIZER_JSON, {}))


# -- numbers -----------------------------------------------------------------


@every_level_of_linears
@pytest.mark.parametrize("size", SIZES)
def test_f32_logits_equal_transformers_on_every_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, isa: str
) -> None:
    pytest.importorskip("torch", reason="compares with transformers, which needs torch")
    monkeypatch.setenv("APPROXRT_ISA", isa)
    compare_with_transformers(tmp_path, "bert", sequences(60), **SIZES[size])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_f32_logits_equal_transformers(tmp_path: Path, family: str, size: str) -> None:
    pytest.importorskip("torch", reason="compares with transformers, which needs torch")
    options = {"embedding": 24} if family == "electra" and size == "head_dim 32" else {}
    compare_with_transformers(tmp_path, family, sequences(60), **SIZES[size], **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_f32_logits_at_512_tokens(tmp_path: Path, family: str) -> None:
    pytest.importorskip("torch", reason="compares with transformers, which needs torch")
    compare_with_transformers(tmp_path, family, sequences(60, (512, 511)), layers=1)


def test_f32_logits_of_pairs(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="compares with transformers, which needs torch")
    ids = sequences(60)
    types = [[0] * (len(s) // 2) + [1] * (len(s) - len(s) // 2) for s in ids]
    compare_with_transformers(tmp_path, "bert", ids, types)


def compare_with_transformers(tmp_path, family, ids, types=None, **options) -> None:
    import torch
    import transformers

    folder = build_checkpoint(family, tmp_path / "c", **options)
    engine = CpuEngine(read_artifact(convert(folder, tmp_path / "a", bits=32)), threads=2)
    ours = engine.forward(ids, types, "logits")
    theirs = {}
    for dtype in (torch.float64, torch.float32):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
        with torch.no_grad():
            theirs[dtype] = np.stack(
                [
                    model(
                        input_ids=torch.tensor([s]),
                        **({} if types is None else {"token_type_ids": torch.tensor([types[i]])}),
                    ).logits[0].numpy()
                    for i, s in enumerate(ids)
                ]
            )  # fmt: skip
    truth = theirs[torch.float64]
    own_error = np.abs(theirs[torch.float32] - truth).max()
    largest = np.abs(truth).max()
    assert largest > 1e-2, "a comparison of zeros shows nothing"
    np.testing.assert_allclose(ours, truth, rtol=0, atol=8 * max(own_error, 8 * EPS * largest))


@every_level_of_linears
@pytest.mark.parametrize("kind", LINEAR_KINDS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_every_kind_equals_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, pooling: str, isa: str
) -> None:
    pytest.importorskip("torch", reason="the reference is written in PyTorch")
    from approxrt.runtime.reference.encoder import reference_hidden, reference_logits

    monkeypatch.setenv("APPROXRT_ISA", isa)
    artifact = random_artifact(tmp_path, kind=kind, head=HeadSpec(pooling=pooling, dense_features=40))
    engine = CpuEngine(artifact, threads=2)
    ids = sequences(30, (1, 2, 3, 5, 8, 13, 16) * 4)
    ours, truth = engine.forward(ids, None, "logits"), reference_logits(artifact.spec, artifact.tensors, ids)
    error = np.abs(ours - truth).max(axis=1)
    largest = np.abs(truth).max()
    # sums of up to 51 terms, a dozen in a row, well conditioned by the layer norms
    assert np.median(error) <= 12 * 51 * EPS * largest
    # one step of one input among the flips that may happen
    assert error.max() <= largest / 127
    hidden = reference_hidden(artifact.spec, artifact.tensors, ids[-1:])[0]
    assert np.median(np.abs(engine.hidden(ids[-1]) - hidden)) <= 12 * 51 * EPS * np.abs(hidden).max()


MIXTURES = {
    "int4, int8, f32": ("s4", "s8", "f32", "bsr_s4", "bsr_s8", "s4"),
    "int8 before int4": ("bsr_s8", "bsr_s4", "s4", "s8", "s4", "f32"),
    "a query that is not asked": ("s8", "s4", "s4", "f32", "f32", "s8"),
}


@every_level_of_linears
@pytest.mark.parametrize("kinds", MIXTURES)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_mixed_kinds_equal_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: str, pooling: str, isa: str
) -> None:
    """Query, key and value share one input, quantised once for each layout that they read."""
    pytest.importorskip("torch", reason="the reference is written in PyTorch")
    from approxrt.runtime.reference.encoder import reference_logits

    monkeypatch.setenv("APPROXRT_ISA", isa)
    layers = (LayerSpec(2, 20, 51, *MIXTURES[kinds]), LayerSpec(2, 20, 33, *MIXTURES[kinds][::-1]))
    head = HeadSpec(pooling=pooling, dense_features=40, dense_kind="s4", out_kind="s8")
    artifact = random_artifact(tmp_path, layers=layers, head=head, embedding_kind="s4")
    engine = CpuEngine(artifact, threads=2)
    ids = sequences(30, (1, 2, 3, 5, 8, 13, 16) * 4)
    ours, truth = engine.forward(ids, None, "logits"), reference_logits(artifact.spec, artifact.tensors, ids)
    error, largest = np.abs(ours - truth).max(axis=1), np.abs(truth).max()
    # as above, of two layers, int4 steps among them
    assert np.median(error) <= 24 * 51 * EPS * largest
    assert error.max() <= 4 * largest / 127
    warm = engine.info()["scratch_bytes"]
    engine.forward(ids, None, "logits")
    assert engine.info()["scratch_bytes"] == warm


@pytest.mark.parametrize("kind", ["bsr_s8", "bsr_s4"])
def test_levels_quantise_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Levels differ by float32 rounding only: the same model, the same answers to four digits."""
    from levels import SUPPORTED

    artifact = random_artifact(tmp_path, kind=kind)
    ids = sequences(30, (3, 16, 9))
    outputs = []
    for isa in SUPPORTED:
        monkeypatch.setenv("APPROXRT_ISA", isa)
        engine = CpuEngine(artifact, threads=1)
        assert engine.isa == engine.info()["isa"] == isa
        outputs.append(engine.forward(ids, None, "logits"))
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], atol=1e-2 * np.abs(outputs[0]).max())


# -- invariance --------------------------------------------------------------


@every_level_of_linears
@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_a_sequence_does_not_depend_on_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, isa: str
) -> None:
    monkeypatch.setenv("APPROXRT_ISA", isa)
    for pooling in ("cls", "mean"):
        artifact = random_artifact(tmp_path, pooling, kind=kind, max_positions=80, head=HeadSpec(pooling=pooling))
        rng = np.random.default_rng(1)
        ids = [rng.integers(0, 30, n).tolist() for n in (1, 80, 3, 17, 64, 5, 33, 2, 79, 48, 1, 12)]
        one, two = CpuEngine(artifact, threads=1), CpuEngine(artifact, threads=2)
        together = two.forward(ids, None, "logits")
        for i, sequence in enumerate(ids):
            np.testing.assert_array_equal(together[i], one.forward([sequence], None, "logits")[0])
            np.testing.assert_array_equal(together[i], two.forward([sequence], None, "logits")[0])
        order = rng.permutation(len(ids))
        np.testing.assert_array_equal(two.forward([ids[i] for i in order], None, "logits"), together[order])
        np.testing.assert_array_equal(one.forward(ids, None, "logits", budget=100), together)


def test_cls_pooling_skips_work_but_not_numbers(tmp_path: Path) -> None:
    """With CLS pooling the last layer runs for first tokens alone; the full pass gives the same rows."""
    artifact = random_artifact(tmp_path, kind="s8")
    engine = CpuEngine(artifact, threads=2)
    for n in (1, 5, 16):
        ids = sequences(30, (n,))[0]
        np.testing.assert_array_equal(engine.forward([ids], None, "pooled")[0], engine.hidden(ids)[0])


# -- threads, forks, memory --------------------------------------------------


def test_several_python_threads_get_their_own_answers(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path, kind="bsr_s8")
    engine = CpuEngine(artifact, threads=2)
    rng = np.random.default_rng(2)
    batches = [[rng.integers(0, 30, n).tolist() for n in rng.integers(1, 17, 9)] for _ in range(6)]
    expected = [engine.forward(batch, None, "logits") for batch in batches]
    wrong: list[int] = []

    def ask(i: int) -> None:
        for _ in range(40):
            if not np.array_equal(engine.forward(batches[i], None, "logits"), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_answers_and_so_does_the_parent(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path, kind="s8", max_positions=128)
    engine = CpuEngine(artifact, threads=2)
    ids = sequences(30, (100, 128, 60))
    expected = engine.forward(ids, None, "logits")  # the pool's workers run now
    for _ in range(3):
        child = os.fork()
        if child == 0:
            same = all(np.array_equal(engine.forward(ids, None, "logits"), expected) for _ in range(5))
            os._exit(0 if same else 1)
        np.testing.assert_array_equal(engine.forward(ids, None, "logits"), expected)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def test_no_allocation_after_warm_up(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path, kind="s8", max_positions=128)
    engine = CpuEngine(artifact, threads=2)
    ids = sequences(30, (128, 100, 3))
    engine.forward(ids, None, "logits")
    engine.forward(ids[:1], None, "pooled")
    warm = engine.info()["scratch_bytes"]
    assert warm > 0
    for _ in range(5):
        engine.forward(ids, None, "logits")
        engine.forward(ids[:1], None, "pooled")
    assert engine.info()["scratch_bytes"] == warm


def test_an_idle_pool_uses_no_cpu(tmp_path: Path) -> None:
    import time

    engine = CpuEngine(random_artifact(tmp_path), threads=2)
    engine.forward(sequences(30, (16, 16, 16)), None, "logits")
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
