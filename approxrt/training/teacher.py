"""Compute once what a model is taught with: the baseline's logits and hidden states on the training texts.

Several teachers of one task may be averaged: their logits as an ensemble, hidden states from the first. States are
kept as float16 in memory, of as many layers as `budget_bytes` allows, the last layer always among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from approxrt.progress import Progress
from approxrt.tasks.examples import Examples
from approxrt.torch_models.batches import BatchLimit, batches_by_length
from approxrt.torch_models.encoder import TorchEncoder, make_batch

HIDDEN_BYTES = 2 << 30


@dataclass
class Teacher:
    """Targets by training example.

    logits   f32[n, outputs]; None for a model without labels
    pooled   f32[n, hidden]
    layers   the layers whose states are kept (indices into the model's `hidden`)
    states   f16[layers, tokens of all examples, hidden]
    offsets  i64[n + 1]: example i has the tokens offsets[i] .. offsets[i + 1] - 1
    """

    logits: np.ndarray | None
    pooled: np.ndarray
    layers: tuple[int, ...]
    states: np.ndarray
    offsets: np.ndarray

    def hidden(self, rows: np.ndarray, longest: int) -> list[Tensor]:
        """f32[b, longest, hidden] of the examples `rows`, one for each kept layer; zeros past a text's end."""
        out = [np.zeros((len(rows), longest, self.states.shape[2]), np.float32) for _ in self.layers]
        for i, row in enumerate(rows):
            begin, end = self.offsets[row], self.offsets[row + 1]
            for j in range(len(self.layers)):
                out[j][i, : end - begin] = self.states[j, begin:end]
        return [torch.from_numpy(array) for array in out]


def teach(
    models: Sequence[TorchEncoder],
    examples: Examples,
    budget_bytes: int = HIDDEN_BYTES,
    with_hidden: bool = True,
    progress: Progress | None = None,
) -> Teacher:
    """Run the teachers over all examples. The mean of their logits teaches; see the module's text."""
    first, ids, types = models[0], examples.ids, examples.types
    lengths = np.array([len(row) for row in ids])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    depth, hidden = len(first.spec.layers), first.spec.hidden_size
    layers = _layers(depth, budget_bytes // max(1, 2 * hidden * int(offsets[-1]))) if with_hidden else ()
    states = np.zeros((len(layers), int(offsets[-1]) if layers else 0, hidden), np.float16)
    logits = np.zeros((len(ids), first.spec.num_outputs), np.float32) if first.spec.labels else None
    pooled = np.zeros((len(ids), hidden), np.float32)
    device, done = first.device, 0
    for model in models:
        model.eval()
    with torch.inference_mode():
        # Hidden states of all layers are there at once.
        for rows in batches_by_length(lengths, BatchLimit(64).on(device, hidden, depth)):
            batch = make_batch([ids[i] for i in rows], [types[i] for i in rows], device)
            for place, model in enumerate(models):
                out = model(batch)
                if logits is not None:
                    logits[rows] += out.logits.float().cpu().numpy() / len(models)
                if place == 0:
                    pooled[rows] = out.pooled.float().cpu().numpy()
                    for j, layer in enumerate(layers):
                        values = out.hidden[layer].cpu().numpy()
                        for i, row in enumerate(rows):
                            states[j, offsets[row] : offsets[row + 1]] = values[i, : lengths[row]]
            done += len(rows)
            if progress:
                progress.count(done, len(ids), "asking the teacher")
    return Teacher(logits, pooled, layers, states, offsets)


def _layers(depth: int, affordable: int) -> tuple[int, ...]:
    """Return as many layers as can be kept, evenly spread, the last always; none if not even one can."""
    count = min(depth, affordable)
    return tuple(sorted({depth - 1 - round(i * depth / count) for i in range(count)})) if count else ()
