"""Refitting: least squares on the model's own inputs, and a model that is nearer to the dense model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_encoder import random_examples, small_encoder

from approxrt.artifact.storage.bsr import expand_mask, grid
from approxrt.pruning.reconstruct import Moments, RefitOptions, refit, solve
from approxrt.pruning.structure import Structure, remove
from approxrt.torch_models.encoder import TorchEncoder, make_batch


def random_masks(model: TorchEncoder, density: float, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = {}
    for name, linear in model.spec.linears():
        if name.startswith("layers."):
            masks[name] = rng.random(grid(linear.out_features, linear.in_features)) < density
    return masks


def tokens_of(model: TorchEncoder, examples, hook: str, name: str) -> np.ndarray:
    """Return what goes into or comes out of a linear, text by text."""
    kept = []

    def keep(at, value):
        if at == name:
            kept.append(value.detach().reshape(-1, value.shape[-1]).double().numpy())
        return value

    setattr(model, hook, keep)
    for ids in examples.ids:
        model(make_batch([ids]))
    setattr(model, hook, None)
    return np.concatenate(kept)


def hidden_error(model: TorchEncoder, dense: TorchEncoder, examples, layer: int = -1) -> float:
    """Mean squared error of a layer's hidden state, over real tokens."""
    total = count = 0
    with torch.no_grad():
        for ids in examples.ids:
            batch = make_batch([ids])
            total += float((model(batch).hidden[layer] - dense(batch).hidden[layer]).square().sum())
            count += len(ids)
    return total / count


@pytest.mark.parametrize("n, k", [(16, 12), (33, 22)])
def test_solve_is_least_squares_of_every_row(n, k):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(300, k)) + 0.5, rng.normal(size=(300, n)) - 1
    mask = rng.random(grid(n, k)) < 0.6
    mask[0] = False  # a strip without tiles has its bias
    moments = Moments()
    for part in (slice(0, 100), slice(100, 300)):
        moments.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    weight, bias = solve(rng.normal(size=(n, k)).astype(np.float32), mask, moments, ridge=0.0)
    kept = expand_mask(mask, n, k)
    assert not weight[~kept].any()
    for row in range(n):
        system = np.concatenate([x[:, kept[row]], np.ones((len(x), 1))], axis=1)
        best = np.linalg.lstsq(system, y[:, row], rcond=None)[0]
        np.testing.assert_allclose(weight[row, kept[row]], best[:-1], atol=1e-5)
        np.testing.assert_allclose(bias[row], best[-1], atol=1e-5)


def test_a_ridge_keeps_what_the_data_do_not_decide():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 8))
    x[:, 7] = 0
    weight = rng.normal(size=(16, 8)).astype(np.float32)
    moments = Moments()
    moments.add(torch.from_numpy(x), torch.from_numpy(x @ np.ones((8, 16))))
    new, _ = solve(weight, None, moments, ridge=1e-4)
    np.testing.assert_array_equal(new[:, 7], weight[:, 7])
    np.testing.assert_allclose(new[:, :7], 1, atol=1e-2)


@pytest.mark.parametrize("follow", [False, True])
def test_refitting_brings_the_model_nearer(follow):
    dense, model = small_encoder(), small_encoder()
    examples, unseen = random_examples(200, seed=1), random_examples(40, seed=2)
    model.set_masks(random_masks(model, 0.6))
    before = hidden_error(model, dense, unseen)
    refit(model, dense, examples.subset(np.arange(200)), RefitOptions(follow=follow))
    assert hidden_error(model, dense, unseen) < 0.6 * before
    for name, mask in model.masks.items():
        weight = model.weight(f"{name}.weight").detach().numpy()
        assert not weight[~expand_mask(mask, *weight.shape)].any()


def test_a_linear_is_optimal_for_the_inputs_of_the_finished_model():
    """Layer 1's `up` reads what the refitted layers before it put out: no other weights of its tiles do better."""
    dense, model, examples = small_encoder(), small_encoder(), random_examples(120)
    model.set_masks(random_masks(model, 0.6))
    refit(model, dense, examples.subset(np.arange(120)), RefitOptions(ridge=0.0))
    name = "layers.1.ffn.up"
    x, y = tokens_of(model, examples, "input_hook", name), tokens_of(dense, examples, "output_hook", name)
    weight = model.weight(f"{name}.weight").detach().numpy()
    kept = expand_mask(model.masks[name], *weight.shape)
    bias = model.weight(f"{name}.bias").detach().numpy()
    for row in (0, 20, 35):
        system = np.concatenate([x[:, kept[row]], np.ones((len(x), 1))], axis=1)
        best = np.linalg.lstsq(system, y[:, row], rcond=None)[0]
        least = np.square(system @ best - y[:, row]).mean()
        mine = np.square(x @ weight[row] + bias[row] - y[:, row]).mean()
        assert least > 1e-4
        assert mine <= least * (1 + 1e-4)


def test_structure_that_went_is_made_up_for():
    dense, examples = small_encoder(), random_examples(200)
    keep = Structure((np.array([2, 0]), np.array([], int)), (np.arange(35, 3, -1), np.array([], int)))
    tensors = dense.tensors()
    means = {
        f"layers.{i}.{part}": tokens_of(dense, examples, "input_hook", f"layers.{i}.{part}").mean(0)
        for i in range(2)
        for part in ("attention.output", "ffn.down")
    }
    spec, smaller, _ = remove(dense.spec, tensors, keep, means)
    model = TorchEncoder(spec, smaller)
    before = hidden_error(model, dense, examples, 0)
    refit(model, dense, examples.subset(np.arange(200)), RefitOptions(keep, follow=False))
    assert hidden_error(model, dense, examples, 0) < 0.9 * before
    wanted = tokens_of(dense, examples, "output_hook", "layers.1.attention.output").mean(0)
    bias = model.weight("layers.1.attention.output.bias").detach().numpy()
    np.testing.assert_allclose(bias, wanted, atol=1e-5)
    # Head 0 of the model is head 2 of the dense model: its query follows that one's.
    x, y = (tokens_of(model, examples, "output_hook", "layers.0.attention.query") for model in (model, dense))
    np.testing.assert_allclose(x[:, :8], y[:, 16:], atol=1e-3 * np.abs(y).max())
