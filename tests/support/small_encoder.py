"""A tiny random BERT as a model, with random texts: for tests of what is computed on models."""

from __future__ import annotations

import dataclasses

import numpy as np
from specs import random_tensors, small_spec

from approxrt.artifact.spec.encoder import HeadSpec, LayerSpec
from approxrt.tasks.examples import Examples
from approxrt.torch_models.encoder import TorchEncoder, predict


def small_encoder(seed: int = 0, layers: int = 2, **changes) -> TorchEncoder:
    """Hidden 24 (not a multiple of 16), 3 heads of 8, FFN 36, CLS head; weights wide enough to be no identity."""
    fields = {"layers": (LayerSpec(3, 8, 36),) * layers, "head": HeadSpec(dense_features=24)}
    spec = small_spec("f32", hidden=24, **{**fields, **changes})
    tensors = random_tensors(spec, seed)
    for name, value in tensors.items():
        if value.ndim == 2:
            value *= 3
        if name.endswith("norm.weight"):
            value += 1
    return TorchEncoder(spec, tensors)


def random_examples(count: int = 24, seed: int = 1, vocab: int = 30) -> Examples:
    """Texts of 3 to 12 tokens with labels 0 and 1."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, vocab, rng.integers(3, 13)).tolist() for _ in range(count)]
    return Examples(ids, [[0] * len(row) for row in ids], rng.integers(0, 2, count))


def labelled_by(model: TorchEncoder, count: int = 240) -> Examples:
    """Random texts whose labels are what `model` answers."""
    examples = random_examples(count)
    logits = predict(model, examples.ids, examples.types)
    # The median splits them, so that both classes are there.
    margin = logits[:, 1] - logits[:, 0]
    return dataclasses.replace(examples, labels=(margin > np.median(margin)).astype(np.int64))
