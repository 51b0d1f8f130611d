"""An encoder on held-out texts, without one element at a time or without several.

Nothing is copied: heads and channels are gated off, or a block's size is set to 0, for the time of a run. `shrunk`
builds the same model for real.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from approxrt.artifact.spec.decoder import AnySpec
from approxrt.artifact.spec.encoder import DENSE_ATTENTION
from approxrt.pruning.structure import Structure, mean_biases, remove
from approxrt.significance.elements import Element
from approxrt.significance.removal import Means
from approxrt.tasks.examples import Examples
from approxrt.tasks.metrics import compute_metrics, metric_names, primary
from approxrt.tasks.registry import Task
from approxrt.torch_models.batches import BatchLimit, batches_by_length
from approxrt.torch_models.device import autocast
from approxrt.torch_models.encoder import Batch, Keys, TorchEncoder, make_batch, sample_losses

LIMIT = BatchLimit(64, 8192)


# -- models without something -------------------------------------------------


def left_biases(model: TorchEncoder, keep: Structure, means: Means) -> dict[str, np.ndarray]:
    """Output biases of blocks that lose something; a block that goes to zero has a bias of zero."""
    spec = model.spec
    if means is not None:
        keys = [key for key in model.names() if ".attention.output." in key or ".ffn.down." in key]
        return mean_biases(spec, {key: model.weight(key).detach().cpu().numpy() for key in keys}, keep, means)
    out = {}
    for i, layer in enumerate(spec.layers):
        for name, kept, count in (
            (f"layers.{i}.attention.output.bias", keep.heads[i], layer.num_heads),
            (f"layers.{i}.ffn.down.bias", keep.channels[i], layer.intermediate_size),
        ):
            if count and not len(kept):
                out[name] = np.zeros(spec.hidden_size, np.float32)
    return out


@contextmanager
def removed(model: TorchEncoder, keep: Structure, means: Means) -> Iterator[None]:
    """Within it the model computes what `shrunk` would; afterwards it is as before."""
    spec, gates, biases = model.spec, model.gates, model.biases
    new = {name: torch.from_numpy(bias).to(model.device) for name, bias in left_biases(model, keep, means).items()}
    layers, model.gates = [], dict(gates)
    for i, (layer, heads, channels) in enumerate(zip(spec.layers, keep.heads, keep.channels, strict=True)):
        sizes = {"num_heads": layer.num_heads, "intermediate_size": layer.intermediate_size}
        for field, kept, at in (("num_heads", heads, "attention"), ("intermediate_size", channels, "ffn")):
            if not len(kept):
                sizes |= {field: 0} | (DENSE_ATTENTION if at == "attention" else {})
            elif len(kept) < sizes[field]:
                gate = np.zeros(sizes[field], np.float32)
                gate[kept] = 1.0
                model.gates[f"layers.{i}.{at}"] = torch.from_numpy(gate).to(model.device)
        layers.append(dataclasses.replace(layer, **sizes))  # type: ignore[arg-type]
    try:
        model.biases = biases | new
        model.spec = dataclasses.replace(spec, layers=tuple(layers))
        yield
    finally:
        model.spec, model.gates, model.biases = spec, gates, biases


def shrunk(model: TorchEncoder, keep: Structure, means: Means) -> TorchEncoder:
    """A new model without what `keep` leaves out: matrices shrink as in `approxrt.pruning.structure.remove`."""
    tensors, spec = model.tensors(), model.spec
    biases = left_biases(model, keep, means)
    zero = {
        name: np.zeros(width, np.float32)
        for i, layer in enumerate(spec.layers)
        for name, width in (
            (f"layers.{i}.attention.output", layer.num_heads * layer.head_dim),
            (f"layers.{i}.ffn.down", layer.intermediate_size),
        )
    }
    new_spec, out, masks = remove(spec, tensors, keep, zero, model.masks)
    model = TorchEncoder(new_spec, out | biases, model.dropout, model.device)
    model.set_masks(masks)
    return model


# -- losses -------------------------------------------------------------------


class HeldOutLoss:
    """Held-out texts with the inputs of one block, so that runs of a model that changes above it start there.

    Where the head reads the first token alone, no other token is computed in the last layer.

    rows  which of the examples; None: all
    task  decides the metric; without one it is not a number
    bf16  products in bfloat16: ranks of removals stay, while losses move in their third digit

    Memory: 4 * hidden_size bytes a token (padded to like lengths), for one block at a time.
    """

    def __init__(
        self,
        model: TorchEncoder,
        examples: Examples,
        rows: np.ndarray | None = None,
        task: str | Task | None = None,
        bf16: bool = False,
    ) -> None:
        chosen = np.arange(len(examples.ids)) if rows is None else np.asarray(rows)
        assert examples.labels is not None and len(chosen)
        self.model, self.labels, self.task, self.bf16 = model, examples.labels[chosen], task, bf16
        self.batches: list[tuple[np.ndarray, Batch, Keys]] = []
        limit = LIMIT.on(model.device, model.spec.hidden_size)
        for part in batches_by_length(examples.lengths[chosen], limit):
            some = chosen[part]
            ids, types = ([source[i] for i in some] for source in (examples.ids, examples.types))
            batch = make_batch(ids, types, model.device)
            self.batches.append((part, batch, model.keys(batch)))
        self.stage = -1
        self.inputs: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def any_spec(self) -> AnySpec:
        return self.model.spec

    @property
    def metric_name(self) -> str:
        return "" if self.task is None else metric_names(self.task, self.labels)[0]

    def move(self, stage: int) -> None:
        """Keep the inputs of the block at `stage`, by the model as it is now below that."""
        with self._running():
            if stage < self.stage or not self.inputs:
                self.inputs, self.stage = [self.model.embed(batch) for _, batch, _ in self.batches], 0
            for place, (_, _, keys) in enumerate(self.batches):
                self.inputs[place] = self._blocks(range(self.stage, stage), self.inputs[place], keys)
        self.stage = stage

    def outputs(self) -> np.ndarray:
        """Return logits f32[n, outputs] of the model as it is now from the kept inputs on."""
        with self._running():
            found = [
                self._finish(self.stage, x, batch, keys)
                for x, (_, batch, keys) in zip(self.inputs, self.batches, strict=True)
            ]
        return self._in_order(found)

    def outputs_without(self, elements: Sequence[Element], means: Means) -> list[np.ndarray]:
        """Return the same without each of `elements`, which are of the block whose inputs are kept."""
        device, name = self.model.device, elements[0].linear
        gone = [torch.from_numpy(element.inputs(self.model.spec)).to(device) for element in elements]
        mean = None if means is None else torch.from_numpy(np.asarray(means[name], np.float32)).to(device)
        found: list[list[Tensor]] = [[] for _ in elements]
        with self._running():
            for x, (_, batch, keys) in zip(self.inputs, self.batches, strict=True):
                read = None
                for element, its, out in zip(elements, gone, found, strict=True):
                    if element.part is None:
                        y = torch.zeros(x.shape[-1], device=device) if mean is None else self.model.linear(name, mean)
                    else:
                        if read is None:
                            read = self._read(element, x, keys)
                        y = self.model.linear(name, torch.where(its, 0.0 if mean is None else mean, read))
                    changed = self.model.end_block(element.layer, element.kind, x[:, : self._queries(self.stage)], y)
                    out.append(self._finish(self.stage + 1, changed, batch, keys))
        return [self._in_order(outputs) for outputs in found]

    def losses(self, outputs: np.ndarray) -> np.ndarray:
        """Return f64[n]: cross entropy, or squared error of scores."""
        return sample_losses(outputs, self.labels).astype(np.float64)

    def metric(self, outputs: np.ndarray) -> float:
        """Return the task's first metric."""
        return math.nan if self.task is None else primary(compute_metrics(self.task, outputs, self.labels))

    def _read(self, element: Element, x: Tensor, keys: Keys) -> Tensor:
        """Return what the last linear of the element's block reads."""
        if element.kind == "ffn":
            return self.model.channels(element.layer, x)
        return self.model.context(element.layer, x, keys, self._queries(element.stage))

    def _queries(self, stage: int) -> int | None:
        """Return how many of a text's first tokens are computed from a block on; None: all."""
        spec = self.model.spec
        last = len(spec.layers) - 1
        first_only = spec.head.pooling == "cls" and not spec.layers[last].attention_keep
        return 1 if first_only and stage // 2 == last else None

    def _blocks(self, stages: Sequence[int], x: Tensor, keys: Keys) -> Tensor:
        model = self.model
        for stage in stages:
            (layer, second), queries = divmod(stage, 2), self._queries(stage)
            if second:
                x = model.ffn_block(layer, x)
            elif queries is None or not model.spec.layers[layer].num_heads:
                x = model.attention_block(layer, x, keys)[:, :queries]
            else:
                y = model.linear(f"layers.{layer}.attention.output", model.context(layer, x, keys, queries))
                x = model.end_block(layer, "attention", x[:, :queries], y)
        return x

    def _finish(self, stage: int, x: Tensor, batch: Batch, keys: Keys) -> Tensor:
        hidden = self._blocks(range(stage, 2 * len(self.model.spec.layers)), x, keys)
        return self.model.head(self.model.pool(hidden, batch))

    def _in_order(self, found: list[Tensor]) -> np.ndarray:
        values = torch.cat(found).cpu().numpy()
        out = np.zeros_like(values)
        out[np.concatenate([rows for rows, _, _ in self.batches])] = values
        return out

    @contextmanager
    def _running(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), autocast(self.model.device, self.bf16):
                yield
        finally:
            self.model.train(training)
