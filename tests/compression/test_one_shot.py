"""The recipe without training, end to end on a tiny random BERT and a small task, and its parts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from families import CORPUS, build_checkpoint
from small_encoder import random_examples, small_encoder

import approxrt
from approxrt.artifact.reader import read_artifact
from approxrt.compression import driver
from approxrt.compression.families import encoder as families_encoder
from approxrt.compression.families.encoder import EncoderFamily
from approxrt.compression.families.opening import Request, open_family
from approxrt.compression.families.pruned_encoder import PrunedEncoder
from approxrt.compression.options import CompressOptions
from approxrt.compression.records import Baseline
from approxrt.errors import CompressionError
from approxrt.pruning.structure import Structure
from approxrt.significance import workload
from approxrt.significance.scoring import spread
from approxrt.torch_models.encoder import predict

TEXTS = 120


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> tuple[Path, Path]:
    """(checkpoint, data): a BERT of two layers; random words with random labels, which every model is as good at."""
    root = tmp_path_factory.mktemp("oneshot")
    build_checkpoint("bert", root / "model", hidden=64, heads=4, ffn=128, num_labels=2)
    words = sorted({word for line in CORPUS for word in line.split()})
    rng = np.random.default_rng(0)
    (root / "data").mkdir()
    with open(root / "data" / "train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(TEXTS):
            writer.writerow([" ".join(rng.choice(words, rng.integers(4, 20))), f"LABEL_{i % 2}"])
    return root / "model", root / "data"


@pytest.fixture
def compression(task, tmp_path, monkeypatch):
    """A compression without measured things that vary: what a block costs is its stored tiles."""
    monkeypatch.setattr(families_encoder, "peer_runs", lambda *args: {})
    monkeypatch.setattr(families_encoder, "take_turns", lambda runs, **options: workload.take_turns(runs, 0.0, 1))

    def make(**options) -> EncoderFamily:
        out = tmp_path / options.pop("out", "out")
        chosen = CompressOptions(**{"recipe": "one-shot", "threads": 1, **options})
        made = open_family(Request(task[0], "csv", task[1], out), chosen)
        assert isinstance(made, EncoderFamily)
        known = Baseline({"accuracy": 0.5}, {}, "approxrt-f32", 100.0, 4 * made.parameters, True)
        made.baseline = lambda: known  # type: ignore[method-assign]
        made.job.work.save("baseline", known)
        made.job.work.save_array("baseline_outputs", outputs_of(made))
        made.timer = lambda model, bits: 100 * stored_share(model) + 1  # type: ignore[method-assign]
        made.latency_table = lambda: _Table(made.model())  # type: ignore[method-assign]
        return made

    return make


def outputs_of(made: EncoderFamily) -> np.ndarray:
    return predict(made.model(), made.inputs.validation.ids, made.inputs.validation.types)


def stored_share(model) -> float:
    """Kept tiles as a share of the dense model's (2 layers of 4 x 64 x 64 and 2 x 64 x 128 weights)."""
    kept = 0
    for name, linear in model.spec.linears():
        if name.startswith("layers."):
            mask = model.masks.get(name)
            kept += linear.in_features * linear.out_features // 64 if mask is None else int(mask.sum())
    return kept / (2 * (4 * 64 * 64 + 2 * 64 * 128) // 64)


class _Table:
    """Milliseconds in proportion to tiles, as `stored_share` counts them, but 20 % too few: rounds must correct."""

    base_ms = 1.0

    def __init__(self, model) -> None:
        self.spec = model.spec

    def ms(self, block: str, size: int, density: float, kind: str) -> float:
        width = 16 * size * 4 if block == "attention" else 2 * size
        return 80 * density * width * 64 / (2 * (4 * 64 * 64 + 2 * 64 * 128))


def test_one_shot_meets_the_target_and_stays_near_the_dense_model(compression):
    made = compression(speedup=2.0)
    (candidate,) = driver.run(made)
    assert made.job.work.candidates() == [candidate]
    history = candidate.provenance.facts["cuts"]
    assert history[-1]["measured_ms"] <= 50 * 1.011
    assert history[0]["measured_ms"] > history[-1]["measured_ms"]
    model = approxrt.load(candidate.path, threads=1)
    kinds = {linear.kind for name, linear in model.spec.linears() if name.startswith("layers.")}
    assert kinds <= {"s8", "bsr_s8"}
    dense, validation = outputs_of(made), made.inputs.validation

    def distance(path: str) -> float:
        logits = approxrt.load(path, threads=1).forward(validation.ids, validation.types)
        return float(np.square(logits - logits.mean(0) - dense + dense.mean(0)).mean())

    one_shot = distance(candidate.path)
    # The same time by magnitude, without refits, is a model that is further away.
    other = compression(speedup=2.0, method="magnitude", out="other")
    (baseline,) = driver.run(other)
    assert baseline.provenance.facts["density"] < 0.5
    assert one_shot < distance(baseline.path)


def test_a_size_is_met_with_int4(compression):
    made = compression(objective=("size",), shrink=4.5, vocabulary="full")
    (candidate,) = driver.run(made)
    assert candidate.shrink > 4.5
    kinds = {linear.kind for name, linear in read_artifact(candidate.path).spec.linears() if name.startswith("layers.")}
    assert kinds & {"s4", "bsr_s4"}


def test_magnitude_meets_the_target_with_one_density(compression):
    made = compression(speedup=3.0, method="magnitude")
    (candidate,) = driver.run(made)
    assert candidate.provenance.facts["density"] == pytest.approx((100 / 3 - 1) / 100, abs=0.02)
    tensors = read_artifact(candidate.path).tensors
    densities = {
        name: tensors[f"{name}.indices"].size / (-(-linear.out_features // 16) * linear.in_features / 4)
        for name, linear in read_artifact(candidate.path).spec.linears()
        if name.startswith("layers.")
    }
    assert max(densities.values()) - min(densities.values()) < 0.03
    # A second run finds what is done.
    assert driver.run(made) == [candidate]


def test_what_cannot_be_met_is_said(compression):
    made = compression(speedup=4.0, method="magnitude")
    made.timer = lambda model, bits: 40.0
    with pytest.raises(CompressionError, match="does not meet the target"):
        driver.run(made)


def test_a_cut_follows_to_scores_and_to_the_dense_models_indices():
    dense, examples = small_encoder(), random_examples(60)
    subject = PrunedEncoder(small_encoder(), dense, examples.subset(np.arange(60)))
    before = predict(dense, examples.ids, examples.types)
    subject.score(reorder=True)
    np.testing.assert_allclose(predict(subject.model, examples.ids, examples.types), before, atol=1e-5)
    order = subject.kept.channels[0]
    assert sorted(order) == list(range(36))
    again = PrunedEncoder(subject.model, dense, examples.subset(np.arange(60)))
    again.score()  # on the reordered model: what was found before has been reordered rightly
    for name, score in again.scores.items():
        np.testing.assert_allclose(subject.scores[name], score, rtol=1e-3, atol=1e-6 * score.max())
        np.testing.assert_allclose(subject.means[name], again.means[name], rtol=1e-4, atol=1e-5)
    scores = {name: score.copy() for name, score in subject.scores.items()}
    keep = Structure((np.array([2, 0]), np.arange(0)), (np.arange(16, 36), np.arange(36)))
    subject.prune(keep, {})
    assert list(subject.kept.heads[0]) == [2, 0]
    assert np.array_equal(subject.kept.channels[0], order[16:])
    assert np.array_equal(subject.scores["layers.0.ffn.up"], scores["layers.0.ffn.up"][16:])
    assert np.array_equal(
        subject.scores["layers.0.attention.output"][:, :8], scores["layers.0.attention.output"][:, 16:]
    )
    assert not [name for name in subject.scores if name.startswith("layers.1.attention")]
    unit = subject.kept.channels[0][3]
    up = "layers.0.ffn.up.weight"
    np.testing.assert_array_equal(subject.model.weight(up).detach()[3], dense.weight(up).detach()[unit])


def test_scores_of_tiles_are_spread_over_their_weights():
    curve = np.arange(6.0).reshape(2, 3)
    spread_ = spread(curve, (17, 10))
    assert spread_.shape == (17, 10)
    np.testing.assert_allclose(spread_[:16, :4].sum(), curve[0, 0])
    np.testing.assert_allclose(spread_[16, 8:].sum(), curve[1, 2])
    np.testing.assert_allclose(spread_.sum(), curve.sum())
