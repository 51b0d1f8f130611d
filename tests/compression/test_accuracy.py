"""Objective accuracy, step by step: what it begins with, what it may take, and how it plans its time."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models need torch")

from small_encoder import labelled_by, random_examples, small_encoder  # noqa: E402

from approxrt.compression.recipes import accuracy, ensemble  # noqa: E402
from approxrt.compression.records import EnsemblePlan  # noqa: E402
from approxrt.compression.state import Work  # noqa: E402
from approxrt.sign_attention.calibrate import SignKind, with_sign_attention  # noqa: E402
from approxrt.tasks.metrics import compute_metrics  # noqa: E402
from approxrt.tasks.registry import get_task  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, predict  # noqa: E402
from approxrt.training.budget import Budget  # noqa: E402
from approxrt.training.distillation import DistillationOptions  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def disturbed(model: TorchEncoder, noise: float, seed: int) -> TorchEncoder:
    """A copy whose weights are off by a share of their spread."""
    copy = small_encoder()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in copy.names():
            weight = model.weight(name)
            spread = weight.std() if weight.numel() > 1 else 0.0
            copy.weight(name).copy_(weight + noise * spread * torch.randn(weight.shape, generator=generator))
    return copy


def fake(validation: Any, train: Any = None, data: Any = None, **job: Any) -> Any:
    """Stand in for a family, with all that the steps under test ask of it."""
    options = SimpleNamespace(seed=0, budget=1e6, batch_size=32, epochs=None)
    fields = {
        "options": options,
        "seed": 0,
        "progress": lambda share, text: None,
        "recipe_progress": lambda share, text: None,
        "budget": Budget(options.budget),
    }
    tokens = SimpleNamespace(train=train)
    return SimpleNamespace(
        job=SimpleNamespace(**{**fields, **job}),
        inputs=SimpleNamespace(validation=validation, pruned=tokens, own=tokens, data=data, tokenizer_json=b""),
        model=small_encoder,
        training_options=DistillationOptions,
    )


# -- where it begins -------------------------------------------------------------


def test_checkpoint_stays_only_where_it_is_surely_better() -> None:
    right = small_encoder()
    held = labelled_by(right)
    wrong = np.random.default_rng(0).random(len(held.labels)) < 0.2  # as real labels are
    held = dataclasses.replace(held, labels=held.labels ^ wrong)
    near, far = disturbed(right, 0.02, 1), disturbed(right, 1.0, 2)
    family = fake(held)
    # The checkpoint is a little nearer to what is right, which proves nothing.
    model, chosen = accuracy._weight_average(family, [disturbed(right, 0.01, 3), near])
    assert chosen == [1] and all(torch.equal(model.weight(n), near.weight(n)) for n in near.names())
    # Here the only member has lost what the checkpoint knows.
    model, chosen = accuracy._weight_average(family, [right, far])
    assert chosen == [0] and all(torch.equal(model.weight(n), right.weight(n)) for n in right.names())


def test_a_mean_of_members_that_is_better_than_each() -> None:
    """Two members that are off in opposite directions: their mean is right. One that is lost is left out."""
    right = small_encoder()
    held = labelled_by(right)
    offs = disturbed(right, 0.3, 4)
    opposite = small_encoder()
    with torch.no_grad():
        for name in right.names():
            opposite.weight(name).copy_(2 * right.weight(name) - offs.weight(name))
    lost = disturbed(right, 1.5, 5)
    model, chosen = accuracy._weight_average(fake(held), [disturbed(right, 1.0, 6), offs, lost, opposite])
    assert chosen == [1, 3]
    assert all(torch.allclose(model.weight(n), right.weight(n), atol=1e-5) for n in right.names())
    # The checkpoint, at the first place, is never among the members that teach.
    assert accuracy._ensemble(fake(held), [right, offs, lost, opposite]) in ([1, 3], [1], [3])


# -- the plan --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "count", "steps"),
    [
        (10_000, 4, 400),  # all members, all epochs of 100 steps
        (1000, 2, 350),  # 800 s less the 100 that are gone: 7 epochs of 100 s
        (300, 1, 140),  # less than the least number of epochs is better than no member
        (100, 1, 1),
    ],
)
def test_members_are_planned(
    budget: float, count: int, steps: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(ensemble, "_pace", lambda family: 1.0)
    options = SimpleNamespace(budget=budget, batch_size=32)
    work = Work(tmp_path / "a", {})
    train = SimpleNamespace(ids=[[1]] * 3200)
    family = fake(None, train, options=options, budget=Budget(budget, spent=100.0), work=work)
    plan = ensemble._planned(family, EnsemblePlan(10, 100.0))
    assert (plan.members, plan.member_steps) == (count, steps) and work.load("ensemble", EnsemblePlan) == plan
    # A run that goes on does as it was planned, whatever the time is now.
    family.job.budget.resume(1e6)
    assert ensemble._planned(family, plan) == plan


def test_one_model_is_no_ensemble(tmp_path: Any) -> None:
    model = small_encoder()
    notes: list[str] = []
    work = Work(tmp_path / "a", {})
    work.save("ensemble", EnsemblePlan(10, 0.0, 1, 10, pace_s=1.0))
    data = SimpleNamespace(task=get_task("sst2"))
    adding = SimpleNamespace(add=notes.append)
    family = fake(labelled_by(model), random_examples(64), data, work=work, notes=adding)
    family.teachers = lambda: [model]
    before = model.tensors()
    history = accuracy._learn(family, model, [model])
    assert len(history) == 1 and "no ensemble" in notes[0]
    assert all(np.array_equal(before[n], model.weight(n).detach().numpy()) for n in before)
    family.job.options.budget = 3.0  # an epoch has two steps, and two teachers answer
    accuracy._learn(family, model, [model, model])
    assert "no room for an epoch" in notes[1]


# -- what it may take ------------------------------------------------------------


def test_hard_attention_is_taken_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are the answers of the model whose first layer attends hard: there it is taken."""
    monkeypatch.setattr(accuracy, "HARD_KEEP", 3)
    model, separators = small_encoder(), (1,)
    with_sign_attention(model, {0: SignKind(3, 4, rest=False)}, separators)
    held = labelled_by(model)
    with_sign_attention(model, {}, ())
    monkeypatch.setattr(accuracy, "separators", lambda tokenizer: separators)
    family = fake(held)
    taken = accuracy._hard_attention(family, model)
    assert 0 in taken
    keeps = [i for i, layer in enumerate(model.spec.layers) if layer.attention_keep == 3]
    assert keeps == taken and model.spec.always_kept == separators
    monkeypatch.setattr(accuracy, "HARD_KEEP", 12)
    assert accuracy._hard_attention(family, model) == []


def test_a_border_that_lies_wrong_moves_in_the_last_bias() -> None:
    """Labels are the answers of a model; its twin with a shifted bias takes the shift back."""
    model = small_encoder()
    held = labelled_by(model)
    logits = predict(model, held.ids, held.types)
    with torch.no_grad():  # the labels split at the median; far from it nearly all answers are of one class
        spread = float(np.std(logits[:, 1] - logits[:, 0]))
        model.weight("head.out.bias")[1] += 2 * spread - float(np.median(logits[:, 1] - logits[:, 0]))
    data = SimpleNamespace(task=get_task("cola"))
    family = fake(held, data=data)
    before = compute_metrics("cola", predict(model, held.ids, held.types), held.labels)["matthews"]
    offsets = accuracy._offsets(family, model)
    assert offsets is not None and offsets[1] - offsets[0] == pytest.approx(-2 * spread, rel=0.2)
    after = compute_metrics("cola", predict(model, held.ids, held.types), held.labels)["matthews"]
    assert before < 0.4 and after > 0.9
    assert accuracy._offsets(family, model) is None
