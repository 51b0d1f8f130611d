"""Statistics of a pass: moments without padding, gradients and gates against autograd text by text."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from small_encoder import random_examples, small_encoder

from approxrt.artifact.spec.encoder import HeadSpec
from approxrt.quantization.gptq import dequantized_linear
from approxrt.quantization.rtn import quantize_linear
from approxrt.significance import statistics
from approxrt.significance.scoring import element_scores, rounding_errors
from approxrt.significance.statistics import collect
from approxrt.torch_models.encoder import make_batch
from approxrt.training.distillation import encoder_linears


@pytest.fixture
def fixed_labels(monkeypatch):
    """Labels that depend on the text alone (its first token): batches of one must draw the same as batches of many."""

    def loss(spec, out, generator):
        return (out.logits * torch.tensor([1.0, -2.0])).tanh().sum()

    monkeypatch.setattr(statistics, "sampled_loss", loss)
    return loss


def test_moments_are_those_of_real_tokens():
    model, examples = small_encoder(), random_examples()
    rows = np.arange(5, 20)
    found = collect(model, examples.subset(rows))
    inputs: dict[str, list[np.ndarray]] = {}
    model.input_hook = lambda name, x: (inputs.setdefault(name, []).append(x.detach().reshape(-1, x.shape[-1])), x)[1]
    for row in rows:  # one by one: nothing is padded
        model(make_batch([examples.ids[row]]))
    assert set(found.inputs) == set(inputs) == {name for name, _ in model.spec.linears()}
    for name, parts in inputs.items():
        x = np.concatenate(parts).astype(np.float64)
        scale = np.abs(x).max() ** 2
        np.testing.assert_allclose(found.inputs[name], x.T @ x / len(x), atol=1e-5 * scale)
        np.testing.assert_allclose(found.means[name], x.mean(0), atol=1e-5 * np.abs(x).max())
    assert found.inputs["layers.0.attention.query"] is found.inputs["layers.0.attention.value"]
    assert found.tokens == sum(len(examples.ids[i]) for i in rows)
    assert found.examples == 15


def test_nothing_of_a_pass_is_kept():
    """A hook that held its own tensor would keep every batch's activations, out of the garbage collector's reach."""
    model, examples = small_encoder(), random_examples()
    seen: list[weakref.ref] = []
    model.input_hook = lambda name, x: (seen.append(weakref.ref(x)), x)[1]
    collect(model, examples.subset(np.arange(20)))
    gc.collect()
    assert seen and not [ref for ref in seen if ref() is not None]


def test_gradients_gates_and_rows_are_those_of_each_text(fixed_labels):
    model, examples = small_encoder(), random_examples()
    rows = np.arange(12)
    found = collect(model, examples.subset(rows), with_moments=False)
    assert not found.inputs
    spec, squares = model.spec, {}
    heads, units = {0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}
    worth, tokens = np.zeros(spec.vocab_size), 0
    for row in rows:
        kept = {}

        def keep(name, y, kept=kept):
            y = y.detach().requires_grad_() if name == "embeddings.word" else y
            kept[name] = y
            return y

        model.output_hook = keep
        model.gates = {f"layers.{i}.attention": torch.ones(3, requires_grad=True) for i in range(2)}
        model.gates |= {f"layers.{i}.ffn": torch.ones(36, requires_grad=True) for i in range(2)}
        batch = make_batch([examples.ids[row]])
        loss = fixed_labels(spec, model(batch), None)
        gradients = torch.autograd.grad(loss, [*kept.values(), *model.gates.values()])
        for name, g in zip(kept, gradients, strict=False):
            squares[name] = squares.get(name, 0) + g.reshape(-1, g.shape[-1]).double().square().sum(0).numpy()
        for name, g in zip(model.gates, gradients[len(kept) :], strict=True):
            kind = heads if name.endswith("attention") else units
            kind[int(name[7])] += g.double().square().numpy()
        e = (kept["embeddings.word"].detach() * gradients[0])[0].sum(1).double().square().numpy()
        np.add.at(worth, examples.ids[row], e)
        tokens += len(examples.ids[row])
    for name, _ in spec.linears():
        count = len(rows) if name.startswith("head.") else tokens
        np.testing.assert_allclose(found.gradients[name], squares[name] / count, rtol=1e-3, atol=1e-9)
    for layer in range(2):
        np.testing.assert_allclose(found.heads[layer], heads[layer], rtol=1e-3, atol=1e-9)
        np.testing.assert_allclose(found.channels[layer], units[layer], rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(found.rows, worth, rtol=1e-3, atol=1e-9)
    assert found.counts.sum() == tokens


def test_labels_are_drawn_from_the_prediction():
    """The mean square of (p - onehot) at the logits is p (1 - p); labels that a text has would give another."""
    model, examples = small_encoder(layers=1), random_examples(400)
    found = collect(model, examples.subset(np.arange(400)), with_moments=False)
    with torch.no_grad():
        p = torch.cat([model(make_batch([ids])).logits.softmax(1) for ids in examples.ids]).numpy()
    np.testing.assert_allclose(found.gradients["head.out"], (p * (1 - p)).mean(0), rtol=0.25)


@pytest.mark.parametrize("task_type, labels", [("regression", ("score",)), ("embedding", ())])
def test_scores_and_embedders_have_statistics_too(task_type, labels):
    head = HeadSpec("mean")
    model, examples = small_encoder(task_type=task_type, labels=labels, head=head), random_examples()
    found = collect(model, examples.subset(np.arange(24)))
    assert set(found.gradients) == {name for name, _ in model.spec.linears()}
    assert all(np.isfinite(g).all() and g.sum() > 0 for g in found.gradients.values())
    again = collect(model, examples.subset(np.arange(24)))
    other = collect(model, examples.subset(np.arange(24)), seed=1)
    name = "layers.0.ffn.up"
    assert np.array_equal(found.gradients[name], again.gradients[name])
    assert not np.array_equal(found.gradients[name], other.gradients[name])


def test_the_model_is_left_as_it_was():
    model, examples = small_encoder(), random_examples()
    model.train()
    trained = {name: model.weight(name).requires_grad for name in model.names()}
    collect(model, examples.subset(np.arange(4)))
    assert model.training
    assert model.input_hook is None
    assert model.output_hook is None
    assert {name: model.weight(name).requires_grad for name in model.names()} == trained
    assert not model.weight("embeddings.word.weight").requires_grad


@pytest.mark.parametrize("kind", ["s4", "s8"])
def test_rounding_errors_are_the_quadratic_form_of_what_rounding_changes(kind):
    model, examples = small_encoder(), random_examples()
    rows = np.arange(len(examples.ids))
    found = collect(model, examples.subset(rows))
    errors = rounding_errors(model, found, encoder_linears(model), ("s4", "s8"))
    assert set(errors) == {(name, other) for name in encoder_linears(model) for other in ("s4", "s8")}
    for name in encoder_linears(model):
        weight = model.weight(f"{name}.weight").detach().numpy()
        change = dequantized_linear(quantize_linear(weight, kind)[1], *weight.shape).astype(np.float64) - weight
        moments, gradients = found.inputs[name].astype(np.float64), found.gradients[name].astype(np.float64)
        tokens = sum(len(examples.ids[i]) for i in rows) / len(rows)
        expected = tokens / 2 * sum(g * d @ moments @ d for g, d in zip(gradients, change, strict=True))
        assert errors[name, kind] == pytest.approx(expected, rel=1e-3)
        # What removing everything costs is more.
        assert errors[name, kind] < element_scores(model, found, [name])[name].sum()
