"""Removing an element without building a model is removing it for real; the loss of it is what the model says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models need torch")

from small_encoder import random_examples, small_encoder  # noqa: E402

from approxrt.progress import Progress  # noqa: E402
from approxrt.pruning.structure import Structure, remove  # noqa: E402
from approxrt.significance.elements import Element, channel_parts, elements_of, without  # noqa: E402
from approxrt.significance.encoder_removal import HeldOutLoss, removed, shrunk  # noqa: E402
from approxrt.significance.removal import measure_removals  # noqa: E402
from approxrt.significance.statistics import collect  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, predict, sample_losses  # noqa: E402

# Logits of a few layers in float32 whose sums run in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> TorchEncoder:
    return small_encoder(layers=3)


def means_of(model: TorchEncoder) -> dict[str, np.ndarray]:
    examples = random_examples()
    return collect(model, examples, with_moments=False).means


def logits(model: TorchEncoder) -> np.ndarray:
    examples = random_examples()
    return predict(model, examples.ids, examples.types)


def test_every_element_is_listed_once(model: TorchEncoder) -> None:
    elements = elements_of(model.spec)
    assert len(elements) == len({e.name for e in elements}) == 3 * (1 + 3 + 1 + 12)
    assert [e.stage for e in elements] == sorted(e.stage for e in elements)
    assert elements_of(model.spec, parts=False) == [Element(i, k) for i in range(3) for k in ("attention", "ffn")]
    assert np.array_equal(np.concatenate(channel_parts(model.spec, 36)), np.arange(36))
    assert len(channel_parts(model.spec, 5)) == 5 and channel_parts(model.spec, 0) == []


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "zero"])
@pytest.mark.parametrize(
    "element",
    [Element(0, "attention"), Element(1, "ffn"), Element(2, "attention", "head", 1), Element(1, "ffn", "group", 11)],
    ids=lambda e: e.name,
)
def test_it_equals_a_model_built_without_it(model: TorchEncoder, element: Element, mean: bool) -> None:
    means = means_of(model) if mean else None
    keep = without(model.spec, Structure.of(model.spec), element)
    before = {name: array.copy() for name, array in model.tensors().items()}
    whole = logits(model)
    with removed(model, keep, means):
        gated = logits(model)
    built = logits(shrunk(model, keep, means))
    np.testing.assert_allclose(gated, built, **CLOSE)
    assert np.abs(gated - whole).max() > 1e-3
    # and nothing is left behind
    assert np.array_equal(logits(model), whole) and not model.gates
    assert all(np.array_equal(before[name], array) for name, array in model.tensors().items())


def test_the_mean_is_the_one_that_structure_removes_with(model: TorchEncoder) -> None:
    means = means_of(model)
    keep = Structure.of(model.spec)
    for element in (
        Element(0, "ffn"),
        Element(1, "attention", "head", 0),
        Element(1, "attention", "head", 2),
        Element(2, "ffn", "group", 3),
    ):
        keep = without(model.spec, keep, element)
    spec, tensors, _ = remove(model.spec, model.tensors(), keep, means)
    other = shrunk(model, keep, means)
    assert other.spec == spec
    assert all(np.array_equal(tensors[name], array) for name, array in other.tensors().items())
    assert spec.layers[0].intermediate_size == 0 and spec.layers[1].num_heads == 1


def test_zero_leaves_the_residual_path_and_the_norm(model: TorchEncoder) -> None:
    keep = without(model.spec, Structure.of(model.spec), Element(1, "ffn"))
    with removed(model, keep, None):
        x = torch.randn(2, 3, 24)
        y = model.ffn_block(1, x)
    weight, bias = model.weight("layers.1.ffn.norm.weight"), model.weight("layers.1.ffn.norm.bias")
    assert torch.allclose(y, torch.nn.functional.layer_norm(x, (24,), weight, bias, model.spec.layer_norm_eps))


def test_masks_of_tiles_shrink_along() -> None:
    model = small_encoder()
    mask = np.ones((3, 6), bool)
    mask[1] = False  # units 16 to 31
    model.set_masks({"layers.0.ffn.up": mask})
    keep = without(model.spec, Structure.of(model.spec), Element(0, "ffn", "group", 0))
    assert shrunk(model, keep, None).masks["layers.0.ffn.up"].shape == (3, 6)  # 33 units are left


def test_measured_losses_are_those_of_the_built_models(model: TorchEncoder) -> None:
    examples, means = random_examples(), means_of(model)
    held = HeldOutLoss(model, examples, task="csv")
    chosen = [
        Element(2, "ffn"),
        Element(0, "attention"),
        Element(1, "attention", "head", 2),
        Element(0, "ffn", "group", 4),
    ]
    seen: list[float] = []
    found = measure_removals(held, means, chosen, Progress(lambda share, text: seen.append(share))).removals
    assert [r.element.stage for r in found] == sorted(e.stage for e in chosen)
    assert seen == [(i + 1) / 4 for i in range(4)]
    dense = sample_losses(logits(model), examples.labels)
    for removal in found:
        keep = without(model.spec, Structure.of(model.spec), removal.element)
        outputs = logits(shrunk(model, keep, means))
        losses = sample_losses(outputs, examples.labels)
        assert removal.loss == pytest.approx(losses.mean(), rel=1e-4)
        assert removal.change == pytest.approx((losses - dense).mean(), rel=1e-3, abs=1e-5)
        assert removal.stderr == pytest.approx(np.std(losses - dense, ddof=1) / np.sqrt(len(losses)), rel=1e-3)
        assert removal.improved == np.mean(losses < dense)
        assert removal.metric == np.mean(outputs.argmax(1) == examples.labels)


def test_scores_have_squared_errors() -> None:
    model = small_encoder(task_type="regression", labels=("score",))
    examples = random_examples()
    examples = dataclasses.replace(examples, labels=np.linspace(0, 5, len(examples.ids)).astype(np.float32))
    found = measure_removals(
        HeldOutLoss(model, examples, task="stsb"), None, elements_of(model.spec, parts=False)
    ).removals
    dense = np.square(logits(model)[:, 0] - examples.labels).mean()
    assert all(r.loss - r.change == pytest.approx(dense, rel=1e-5) for r in found)
    assert all(-1 <= r.metric <= 1 for r in found)


def test_a_removed_block_has_no_elements() -> None:
    whole = small_encoder()
    keep = Structure((np.arange(0), np.arange(3)), (np.arange(36), np.arange(0)))
    model = shrunk(whole, keep, means_of(whole))
    assert {(e.layer, e.kind) for e in elements_of(model.spec)} == {(0, "ffn"), (1, "attention")}
    found = measure_removals(HeldOutLoss(model, random_examples()), means_of(model)).removals
    assert len(found) == 13 + 4


def test_long_texts_make_small_batches() -> None:
    model = small_encoder(max_positions=16)
    held = HeldOutLoss(model, random_examples(200), np.arange(150))
    assert len(held) == 150 and sum(len(rows) for rows, _, _ in held.batches) == 150
    held.move(3)
    late = held.outputs()
    held.move(0)
    np.testing.assert_allclose(held.outputs(), late, **CLOSE)
