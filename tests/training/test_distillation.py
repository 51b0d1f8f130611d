"""Distillation: a model learns, is cut without losing what it knows, and goes on exactly after an interrupt."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from specs import random_tensors, small_spec

torch = pytest.importorskip("torch", reason="recovery trains in torch")

from approxrt.artifact.spec.encoder import LayerSpec, ModelSpec  # noqa: E402
from approxrt.artifact.storage.bsr import grid  # noqa: E402
from approxrt.errors import TrainingError  # noqa: E402
from approxrt.pruning.structure import Structure  # noqa: E402
from approxrt.tasks.examples import Examples  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, predict  # noqa: E402
from approxrt.training.distillation import Distillation, DistillationOptions, encoder_linears  # noqa: E402
from approxrt.training.teacher import teach  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def spec() -> ModelSpec:
    return dataclasses.replace(small_spec("f32", hidden=48), layers=(LayerSpec(3, 16, 64), LayerSpec(3, 16, 64)))


@pytest.fixture
def examples() -> Examples:
    rng = np.random.default_rng(1)
    ids = [rng.integers(3, 30, n).tolist() for n in rng.integers(2, 9, 64)]
    return Examples(ids, [[0] * len(row) for row in ids], rng.integers(0, 2, 64))


def recovery(spec: ModelSpec, examples: Examples, steps: int = 40, **options: Any) -> Distillation:
    dense = TorchEncoder(spec, random_tensors(spec))
    teacher = teach([dense], examples)
    settings = {"lr": 3e-3, "batch_size": 16, "teacher_share": 1.0} | options
    return Distillation(
        TorchEncoder(spec, random_tensors(spec)), examples, teacher, steps, DistillationOptions(**settings)
    )


def test_teacher_remembers_every_token(spec: ModelSpec, examples: Examples) -> None:
    dense = TorchEncoder(spec, random_tensors(spec))
    teacher = teach([dense], examples)
    np.testing.assert_allclose(teacher.logits, predict(dense, examples.ids, examples.types), atol=1e-5)
    assert teacher.layers == (0, 1)
    rows = np.array([3, 40])
    longest = max(len(examples.ids[i]) for i in rows)
    from approxrt.torch_models.encoder import make_batch

    want = dense(make_batch([examples.ids[i] for i in rows])).hidden
    for got, full in zip(teacher.hidden(rows, longest), want, strict=True):
        for i, row in enumerate(rows):
            n = len(examples.ids[row])
            np.testing.assert_allclose(got[i, :n], full[i, :n].detach(), atol=2e-3)  # kept as float16
            assert not got[i, n:].any()
    little = teach([dense], examples, budget_bytes=2 * 48 * int(teacher.offsets[-1]))
    assert little.layers == (1,)


def test_ensemble_is_the_mean(spec: ModelSpec, examples: Examples) -> None:
    models = [TorchEncoder(spec, random_tensors(spec, seed)) for seed in (0, 1)]
    both = [predict(model, examples.ids, examples.types) for model in models]
    np.testing.assert_allclose(teach(models, examples, with_hidden=False).logits, (both[0] + both[1]) / 2, atol=1e-5)


def test_learns_back_what_a_cut_lost(spec: ModelSpec, examples: Examples) -> None:
    run = recovery(spec, examples, steps=120)
    for _ in range(4):
        run.advance()
    rng = np.random.default_rng(0)
    names = encoder_linears(run.model)
    masks = {name: rng.random(grid(*run.model.weight(f"{name}.weight").shape)) < 0.5 for name in names}
    run.prune(Structure.of(spec), masks)
    first = run.advance()
    while run.step < run.steps:
        last = run.advance()
    assert last < 0.6 * first
    for name, mask in masks.items():
        elements = np.kron(mask, np.ones((16, 4)))
        weight = run.model.weight(f"{name}.weight").detach().numpy()
        assert not weight[elements[: weight.shape[0], : weight.shape[1]] == 0].any()


def test_what_is_pruned_stays_pruned(spec: ModelSpec, examples: Examples) -> None:
    run = recovery(spec, examples)
    name, whole = "layers.0.ffn.up", Structure.of(spec)
    first = np.ones(grid(64, 48), bool)
    first[:, :5] = False
    run.prune(whole, {name: first})
    run.prune(whole, {name: np.ones(grid(64, 48), bool)})
    np.testing.assert_array_equal(run.model.masks[name], first)


def test_cut_keeps_moments_scores_and_means(spec: ModelSpec, examples: Examples) -> None:
    run = recovery(spec, examples)
    for _ in range(6):
        run.advance()
    name = "layers.0.ffn.down"
    for linear in encoder_linears(run.model):
        weight = run.model.weight(f"{linear}.weight")
        run.scores[linear], run.means[linear] = weight.detach().abs().clone(), torch.randn(weight.shape[1])
    moments = run.optimizer.state[run.model.weight(f"{name}.weight")]["exp_avg"].clone()
    scores, mean = run.scores[name].clone(), run.means[name].clone()
    whole = Structure.of(spec)
    run.prune(Structure((whole.heads[0], np.arange(0)), (np.arange(16, 64), whole.channels[1])), {})
    weight = run.model.weight(f"{name}.weight")
    assert weight.shape == (48, 48)
    assert torch.equal(run.optimizer.state[weight]["exp_avg"], moments[:, 16:])
    assert torch.equal(run.scores[name], scores[:, 16:]) and torch.equal(run.means[name], mean[16:])
    assert "layers.1.attention.query" not in run.scores and run.model.spec.layers[1].num_heads == 0
    assert np.isfinite(run.advance())


@pytest.mark.parametrize("quantised", [False, True])
def test_goes_on_exactly(spec: ModelSpec, examples: Examples, quantised: bool) -> None:
    def cut(run: Distillation) -> None:
        mask = np.ones(grid(48, 48), bool)
        mask[0, :6] = False
        for linear in encoder_linears(run.model):
            run.means[linear] = torch.ones(run.model.weight(f"{linear}.weight").shape[1])
        whole = Structure.of(run.model.spec)
        run.prune(Structure((np.array([0, 2]), whole.heads[1]), whole.channels), {"layers.1.attention.query": mask})
        if quantised:
            run.quantize(dict.fromkeys(encoder_linears(run.model), "s8"))

    whole, first, second = (recovery(spec, examples, dropout=0.1) for _ in range(3))
    torch.manual_seed(4)
    for _ in range(5):
        whole.advance()
    cut(whole)
    torch.manual_seed(5)
    for _ in range(7):
        whole.advance()

    torch.manual_seed(4)
    for _ in range(5):
        first.advance()
    cut(first)
    torch.manual_seed(5)
    for _ in range(3):
        first.advance()
    saved = first.state()
    second.restore(saved)
    for _ in range(4):
        second.advance()
    for name in whole.model.names():
        assert torch.equal(whole.model.weight(name), second.model.weight(name)), name


def test_some_texts_come_in_smaller_token_ids(spec: ModelSpec, examples: Examples) -> None:
    run = recovery(spec, examples, hidden_weight=1.0)
    pieces = [[*row, 3] for row in examples.ids]
    run.examples.resplit = (pieces, [[0] * len(row) for row in pieces])
    rows = np.arange(64)
    ids, types, whole = run._token_ids(rows)
    assert 5 < (~whole).sum() < 40
    for i in rows:
        assert ids[i] == (examples.ids[i] if whole[i] else pieces[i]) and len(types[i]) == len(ids[i])
    assert run._token_ids(rows)[2].tolist() == whole.tolist()  # the step decides, so a resumed run does the same
    assert np.isfinite(run.advance()) and run._token_ids(rows)[2].tolist() != whole.tolist()


def test_divergence_is_an_error(spec: ModelSpec, examples: Examples) -> None:
    run = recovery(spec, examples)
    with torch.no_grad():
        run.model.weight("head.out.bias").fill_(float("nan"))
    with pytest.raises(TrainingError, match="smaller --lr"):
        run.advance()


def test_scores_and_embedders(examples: Examples) -> None:
    """Regression and vectors have losses of their own, and fall."""
    base = dataclasses.replace(small_spec("f32", hidden=48), layers=(LayerSpec(3, 16, 64),))
    for spec, labels in (
        (dataclasses.replace(base, labels=("score",), task_type="regression"), np.ones(64, np.float32)),
        (
            dataclasses.replace(
                base, labels=(), task_type="embedding", head=dataclasses.replace(base.head, dense_features=None)
            ),
            None,
        ),
    ):
        data = Examples(examples.ids, examples.types, labels)
        teacher = teach([TorchEncoder(spec, random_tensors(spec))], data)
        model = TorchEncoder(spec, random_tensors(spec, 1))
        run = Distillation(model, data, teacher, 60, DistillationOptions(lr=3e-3, batch_size=16))
        losses = [run.advance() for _ in range(60)]
        assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
