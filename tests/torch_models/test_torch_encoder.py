"""The torch model: the same model as the artifact's reference, whatever is removed, and what its hooks see."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES, build_checkpoint
from specs import random_tensors, small_spec

torch = pytest.importorskip("torch", reason="models are torch modules")

from approxrt.artifact.spec.encoder import LayerSpec  # noqa: E402
from approxrt.artifact.storage.bsr import expand_mask, grid  # noqa: E402
from approxrt.runtime.reference.encoder import reference_hidden, reference_logits  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, dequantized, make_batch, predict, sample_losses  # noqa: E402

IDS = [[3, 4, 5, 6], [7], [8, 9, 10, 11, 12, 13, 14, 15, 3], [4, 4]]
TYPES = [[0, 0, 1, 1], [0], [0] * 9, [1, 0]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("removed", ["nothing", "attention", "ffn", "both"])
def test_equals_reference(pooling: str, removed: str) -> None:
    spec = small_spec("f32")
    odd = LayerSpec(0 if removed in ("attention", "both") else 3, 20, 0 if removed in ("ffn", "both") else 17)
    spec = dataclasses.replace(
        spec, layers=(spec.layers[0], odd, LayerSpec(1, 8, 33)), head=dataclasses.replace(spec.head, pooling=pooling)
    )
    tensors = random_tensors(spec)
    got = predict(TorchEncoder(spec, tensors), IDS, TYPES)
    np.testing.assert_allclose(got, reference_logits(spec, tensors, IDS, TYPES), rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, tmp_path: Path) -> None:
    from approxrt.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(build_checkpoint(family, tmp_path / "c", hidden=32, heads=2, ffn=48, positions=32))
    got = predict(TorchEncoder(checkpoint.spec, checkpoint.tensors), IDS, None)
    want = reference_logits(checkpoint.spec, checkpoint.tensors, IDS)
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-5)


def test_a_model_for_reading_takes_no_memory(tmp_path: Path) -> None:
    """Its weights are the file's pages; torch's warning that they cannot be written is no news."""
    from approxrt.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(build_checkpoint("bert", tmp_path / "c", hidden=32, heads=2, ffn=48, positions=32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = TorchEncoder(checkpoint.spec, checkpoint.tensors, copy=False)
    name = "layers.0.ffn.up.weight"
    assert not checkpoint.tensors[name].flags.writeable
    assert model.weight(name).data_ptr() == checkpoint.tensors[name].ctypes.data
    want = predict(TorchEncoder(checkpoint.spec, checkpoint.tensors), IDS, None)
    np.testing.assert_array_equal(predict(model, IDS, None), want)


def test_long_texts_take_the_fused_attention() -> None:
    spec = dataclasses.replace(small_spec("f32"), max_positions=400, max_length=400)
    tensors = random_tensors(spec)
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 30, n).tolist() for n in (300, 270)]
    hidden = TorchEncoder(spec, tensors)(make_batch(ids)).hidden[-1].detach().numpy()
    for i, want in enumerate(reference_hidden(spec, tensors, ids)):
        np.testing.assert_allclose(hidden[i, : len(want)], want, rtol=0, atol=5e-5)


def test_masks_zero_tiles_and_stay() -> None:
    spec = small_spec("f32")
    model = TorchEncoder(spec, random_tensors(spec))
    name = "layers.0.ffn.up"
    mask = np.zeros(grid(51, 40), bool)
    mask[1, 2:5] = True
    model.set_masks({name: mask})
    weight = model.weight(f"{name}.weight")
    assert (weight.detach().numpy() != 0).sum() == 16 * 12
    with torch.no_grad():
        weight.add_(1.0)
    model.apply_masks()
    np.testing.assert_array_equal(weight.detach().numpy() != 0, expand_mask(mask, 51, 40))


def test_hooks_see_every_linear() -> None:
    spec = small_spec("f32")
    model = TorchEncoder(spec, random_tensors(spec))
    seen: dict[str, tuple[int, ...]] = {}
    model.input_hook = lambda name, x: seen.setdefault(name, tuple(x.shape)) and x
    predict(model, IDS, TYPES)
    assert set(seen) == {name for name, _ in spec.linears()}
    model.weight_hook = lambda name, weight: weight * 0
    zero = predict(model, IDS, TYPES)
    np.testing.assert_allclose(zero, np.broadcast_to(model.weight("head.out.bias").detach().numpy(), zero.shape))


def test_embeddings_are_frozen_and_rows_are_as_stored() -> None:
    spec = small_spec("s4")
    plain, tensors = dequantized(spec, random_tensors(spec))
    assert plain.embedding_kind == "f32" and tensors["embeddings.word.weight"].dtype == np.float32
    f32 = small_spec("f32")
    model = TorchEncoder(f32, random_tensors(f32))
    frozen = {name for name in model.names() if not model.weight(name).requires_grad}
    assert frozen == {name for name in model.names() if name.startswith("embeddings.")}


def test_sample_losses() -> None:
    logits = np.array([[0.0, 0.0], [100.0, -100.0]], np.float32)
    np.testing.assert_allclose(sample_losses(logits, np.array([0, 1])), [np.log(2), 200])
    np.testing.assert_allclose(sample_losses(np.array([[2.0], [1.0]]), np.array([1.0, 1.0], np.float32)), [1, 0])
