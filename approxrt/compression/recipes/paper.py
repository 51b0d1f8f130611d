"""The paper's algorithm as a compression: what it finds insignificant is built out, the rest becomes int8.

Thresholds by objective: for accuracy those that were published. For speed and size an element may also go if the loss
stays under 1.1 times the best, whatever the number of texts that gain: nearly every removal hurts most texts a little.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.compression.state import Candidate
from approxrt.errors import UnsupportedTaskError
from approxrt.quantization import build
from approxrt.random import Stream, generator
from approxrt.significance.paper import Found, Test, search
from approxrt.significance.removal import Held, shrunk
from approxrt.significance.statistics import collect

if TYPE_CHECKING:
    from approxrt.compression.pipeline import Compression

TESTS = {"accuracy": Test(), "speed": Test(1.1, None), "size": Test(1.1, None)}
HELD = 1024  # validation texts that decide, at most
STATISTICS = 1024  # training texts that give mean outputs, at most


def paper(compression: Compression) -> list[Candidate]:
    """Run the algorithm on validation data, build the artifact, check it; the one candidate of a finished run."""
    work, options = compression.work, compression.options
    if compression.data.embeds:
        raise UnsupportedTaskError("method paper needs labels, which an embedder's texts do not have: use method ours")
    if work.candidates():
        return work.candidates()
    compression.baseline()
    student, test = compression.dense(), thresholds(options.objective)
    rows = _drawn(len(compression.train.ids), STATISTICS, options.seed)
    compression.progress(0.05, "collecting mean outputs")
    means = collect(student, compression.train, rows, options.seed, with_moments=False).means
    held = Held(student, compression.validation, _drawn(len(compression.validation.ids), HELD, options.seed))
    found = search(
        held, means, test, lambda done, most, text: compression.progress(0.1 + 0.8 * min(1.0, done / most), text)
    )
    small = shrunk(student, found.keep, means)
    compression.progress(0.9, "building and checking the artifact")
    bits = {name: 8 for name, _ in small.spec.linears() if name.startswith("layers.")} | compression.head_bits()
    path = work.candidate_path(0)
    card = {"approxrt": "candidate"}
    tokenizer, inputs = compression.tokenizer_json, compression.checkpoint.spec.inputs
    build.write(path, small, bits, compression.embeddings, tokenizer, card, inputs)
    work.add(compression.check(path, {"method": "paper", "test": asdict(test), **log_of(found, len(held))}))
    return work.candidates()


def thresholds(objective: tuple[str, ...]) -> Test:
    """The strictest of what the objectives ask for."""
    return min((TESTS[name] for name in objective), key=lambda test: test.threshold)


def log_of(found: Found, texts: int) -> dict[str, Any]:
    """The search as JSON: sizes that are left, losses, every trial."""
    return {
        "texts": texts,
        "dense_loss": found.dense_loss,
        "loss": found.loss,
        "heads": [len(heads) for heads in found.keep.heads],
        "units": [len(units) for units in found.keep.units],
        "trials": [
            {"element": t.element.name, "loss": t.loss, "best": t.best, "share": t.share, "accepted": t.accepted}
            for t in found.trials
        ],
    }


def _drawn(count: int, most: int, seed: int) -> np.ndarray:
    return np.sort(generator(seed, Stream.STATISTICS).permutation(count)[:most])
