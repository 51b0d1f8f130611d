"""The paper's algorithm on models whose elements are known to help, to harm or to do nothing; then as a compression."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models need torch")

from families import build_checkpoint  # noqa: E402
from small_encoder import random_examples, small_encoder  # noqa: E402

from approxrt.significance.encoder_removal import HeldOutLoss, shrunk  # noqa: E402
from approxrt.significance.paper import Found, Test, search  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, predict, sample_losses  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Additive:
    """Stands for held-out texts: each element that is gone adds its own f64[4] to the losses of four texts, all 1."""

    def __init__(self, effects: dict[str, Any]) -> None:
        self.model, self.effects = small_encoder(), {k: np.asarray(v, float) for k, v in effects.items()}
        self.calls = 0

    def __len__(self) -> int:
        return 4

    def move(self, stage: int) -> None:
        self.stage = stage

    def outputs(self) -> np.ndarray:
        self.calls += 1
        losses = np.ones(4)
        for i, layer in enumerate(self.model.spec.layers):
            for kind, part, count, size in (
                ("attention", "head", layer.num_heads, 3),
                ("ffn", "group", layer.intermediate_size, 12),
            ):
                block = f"layers.{i}.{kind}"
                gate = self.model.gates.get(block)
                gone = [] if gate is None else [j for j in range(size) if gate[j * len(gate) // size] == 0]
                names = [block] if count == 0 else [f"{block}.{part}.{j}" for j in gone]
                losses = losses + sum(self.effects.get(name, np.full(4, 1.0)) for name in names)
        return losses

    def losses(self, outputs: np.ndarray) -> np.ndarray:
        return outputs


def run(effects: dict[str, Any], test: Test | None = None) -> tuple[Found, list[str]]:
    found = search(Additive(effects), None, test)  # type: ignore[arg-type]
    return found, [trial.element.name for trial in found.trials]


def test_from_top_to_bottom_the_ffn_first() -> None:
    found, tried = run({})
    assert tried == ["layers.1.ffn", "layers.1.attention", "layers.0.ffn", "layers.0.attention"]
    assert not any(trial.accepted for trial in found.trials) and found.loss == found.baseline_loss == 1
    assert [len(x) for x in (*found.keep.heads, *found.keep.channels)] == [3, 3, 36, 36]


def test_a_harmful_block_goes_and_raises_the_bar() -> None:
    """After layer 1's FFN the best loss is 0.7: an attention that would leave 0.9 is no gain any more."""
    found, tried = run({"layers.1.ffn": [-0.3] * 4, "layers.1.attention": [0.2] * 4})
    assert [t.accepted for t in found.trials] == [True, False, False, False] and len(tried) == 4
    assert found.keep.channels[1].size == 0 and found.loss == pytest.approx(0.7)
    assert [t.best for t in found.trials] == pytest.approx([1.0, 0.7, 0.7, 0.7])


def test_half_of_the_texts_is_not_enough() -> None:
    """The mean falls both times, but only with three of four texts is it the majority."""
    found, _ = run({"layers.1.ffn": [-0.9, -0.9, 0.1, 0.1], "layers.0.ffn": [-0.9, -0.1, 0.0, 0.1]})
    accepted = [t.element.name for t in found.trials if t.accepted]
    assert accepted == ["layers.0.ffn"]
    assert next(t for t in found.trials if t.element.name == "layers.1.ffn").share == 0.5


def test_it_descends_where_a_block_nearly_passes() -> None:
    effects = {
        "layers.1.attention": [0.05] * 4,
        "layers.1.attention.head.1": [-0.1] * 4,
        "layers.0.ffn": [0.11] * 4,  # 1.01 is over 1.1 * 0.9: no descent
    }
    found, tried = run(effects)
    parts = [f"layers.1.attention.head.{i}" for i in range(3)]
    assert tried == ["layers.1.ffn", "layers.1.attention", *parts, "layers.0.ffn", "layers.0.attention"]
    assert found.keep.heads[1].tolist() == [0, 2] and found.loss == pytest.approx(0.9)


def test_groups_of_neurons_go_alone() -> None:
    effects = {"layers.0.ffn": [0.0] * 4, "layers.0.ffn.group.3": [-0.1] * 4, "layers.0.ffn.group.7": [-0.1] * 4}
    found, _ = run(effects)
    assert found.keep.channels[0].tolist() == [i for i in range(36) if i // 3 not in (3, 7)]
    assert found.loss == pytest.approx(0.8)


def test_a_larger_threshold_allows_a_loss_but_only_once() -> None:
    effects = {f"layers.{i}.{kind}": [0.04] * 4 for i in range(2) for kind in ("attention", "ffn")}
    assert run(effects)[0].loss == 1
    found, _ = run(effects, Test(threshold=1.1, share=None))
    # 1.04, 1.08, then 1.12 is over 1.1 times the best, which never rose
    assert [len(x) for x in (*found.keep.heads, *found.keep.channels)] == [3, 0, 36, 0]
    assert found.loss == pytest.approx(1.08)


# -- a real model --------------------------------------------------------------


def spoiled() -> tuple[TorchEncoder, Any, np.ndarray]:
    """(model, texts, logits without its last FFN): labels are the model's own without that FFN, which disturbs them.

    Chance makes it help some texts: of those only some are taken.
    """
    model = small_encoder()
    down = model.weight("layers.1.ffn.down.weight").data
    model.weight("layers.1.ffn.down.bias").data.zero_()
    down.copy_(3 * torch.randn(down.shape, generator=torch.Generator().manual_seed(3)))
    examples = random_examples(90)
    good, bad = predict_without(model, examples), predict(model, examples.ids, examples.types)
    labels = good.argmax(1)
    harmed = sample_losses(bad, labels) > sample_losses(good, labels)
    rows = np.sort(np.concatenate([np.flatnonzero(harmed), np.flatnonzero(~harmed)[: harmed.sum() // 3]]))
    chosen = type(examples)([examples.ids[i] for i in rows], [examples.types[i] for i in rows], labels[rows])
    return model, chosen, good[rows]


def predict_without(model: TorchEncoder, examples: Any) -> np.ndarray:
    down = model.weight("layers.1.ffn.down.weight")
    kept = down.data
    down.data = torch.zeros_like(kept)
    try:
        return predict(model, examples.ids, examples.types)
    finally:
        down.data = kept


def test_a_harmful_ffn_is_found_and_built_out() -> None:
    model, examples, good = spoiled()
    found = search(HeldOutLoss(model, examples))
    first = found.trials[0]
    assert first.element.name == "layers.1.ffn" and first.accepted
    assert found.keep.channels[1].size == 0
    assert first.loss == pytest.approx(sample_losses(good, examples.labels).mean(), rel=1e-4)
    small = shrunk(model, found.keep, None)
    outputs = predict(small, examples.ids, examples.types)
    assert sample_losses(outputs, examples.labels).mean() == pytest.approx(found.loss, rel=1e-4)
    assert found.loss < found.baseline_loss and small.spec.layers[1].intermediate_size == 0


def test_a_harmless_ffn_stays_unless_speed_is_asked_for() -> None:
    """Without an effect the loss is the same, which is no gain; a threshold over 1 takes it out."""
    model = small_encoder()
    model.weight("layers.1.ffn.down.weight").data.zero_()
    model.weight("layers.1.ffn.down.bias").data.zero_()
    examples = random_examples(40)
    examples = dataclasses.replace(examples, labels=predict(model, examples.ids, examples.types).argmax(1))
    strict = search(HeldOutLoss(model, examples))
    assert not strict.trials[0].accepted and strict.trials[0].share == 1.0
    loose = search(HeldOutLoss(model, examples), None, Test(threshold=1.1, share=None))
    assert loose.trials[0].accepted and loose.keep.channels[1].size == 0


# -- as a compression ----------------------------------------------------------


@pytest.mark.parametrize("objective", ["accuracy", "size"])
def test_compression_builds_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str) -> None:
    from approxrt.artifact.reader import read_artifact
    from approxrt.compression import driver
    from approxrt.compression.families import encoder as families_encoder
    from approxrt.compression.families.opening import Request, open_family
    from approxrt.compression.options import CompressOptions

    monkeypatch.setattr(families_encoder, "peer_runs", lambda *args: {})
    quick = functools.partial(families_encoder.take_turns, seconds=0.1)
    monkeypatch.setattr(families_encoder, "take_turns", quick)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint = build_checkpoint("bert", tmp_path / "c", hidden=32, heads=2, layers=2, ffn=48, num_labels=2)
    rng = np.random.default_rng(0)
    words = ["good", "bad", "film", "rain", "town", "story", "price"]
    rows = [f"{' '.join(rng.choice(words, 5))},{i % 2}" for i in range(120)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    shrink = 1.5 if objective == "size" else None
    options = CompressOptions(
        objective=(objective,), recipe="one-shot", method="paper", val_fraction=0.4, shrink=shrink, threads=1
    )
    options.check()
    family = open_family(Request(checkpoint, "csv", tmp_path / "data", tmp_path / "out"), options)
    (candidate,) = driver.run(family)
    about = candidate.provenance.facts
    spec = read_artifact(candidate.path).spec
    assert [layer.num_heads for layer in spec.layers] == about["heads"]
    assert [layer.intermediate_size for layer in spec.layers] == about["units"]
    assert about["texts"] == 48 and about["method"] == "paper"
    assert {"element", "loss", "best", "share", "accepted"} == set(about["trials"][0])
    assert any(layer.query == "s8" for layer in spec.layers) or not sum(about["heads"])
    published = {"threshold": 1.0, "share": 0.5}
    assert about["test"] == (published if objective == "accuracy" else {"threshold": 1.1, "share": None})
    # A finished run is not run again.
    assert driver.run(family) == [candidate]
