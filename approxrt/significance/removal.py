"""What the loss says of an element: it is taken out alone, and the model is run on texts that it has not learnt from.

This is the significance of Nagarajan et al. 2020 (arXiv 2010.03688): an attention or FFN block, a head, or a group of
FFN neurons is insignificant if the loss without it is no larger. What is taken out leaves either its mean output as a
bias, as `approxrt.pruning.structure` builds it for real, or nothing at all (the paper's way). A block keeps its
residual path and its norm.

Nothing is copied: heads and neurons are gated off, a block's size is set to 0 for the time of a run, and a run starts
at the block that is changed, from inputs that are kept. `shrunk` builds the same model for real.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from approxrt.artifact.spec.encoder import DENSE_ATTENTION, ModelSpec
from approxrt.pruning.structure import Structure, mean_biases, remove
from approxrt.tasks.examples import Examples
from approxrt.tasks.metrics import compute_metrics, primary
from approxrt.tasks.registry import Task
from approxrt.torch_models.batches import BatchLimit, batches_by_length
from approxrt.torch_models.encoder import Batch, Keys, TorchEncoder, make_batch, sample_losses

GROUPS = 12  # of FFN neurons a layer, as in the paper
LIMIT = BatchLimit(64, 8192)

Progress = Callable[[int, int, str], None]
# E[x] of the inputs of "layers.i.attention.output" and "layers.i.ffn.down", f32[in_features]; None: remove to zero.
Means = Mapping[str, np.ndarray] | None


@dataclass(frozen=True)
class Element:
    """A block ("attention" or "ffn" of a layer), or with `part` one of its heads or groups of neurons."""

    layer: int
    kind: str
    part: int | None = None

    @property
    def stage(self) -> int:
        """Its block's place in the order of execution."""
        return 2 * self.layer + (self.kind == "ffn")

    @property
    def name(self) -> str:
        """As in "layers.3.ffn", "layers.3.attention.head.5", "layers.3.ffn.group.2"."""
        block = f"layers.{self.layer}.{self.kind}"
        part = "head" if self.kind == "attention" else "group"
        return block if self.part is None else f"{block}.{part}.{self.part}"


@dataclass(frozen=True)
class Removal:
    """The model without one element, on n texts.

    loss      mean
    change    of the mean loss against the whole model; `stderr` is its standard error over texts (paired)
    metric    the task's first; `metric_change` against the whole model
    improved  share of texts whose loss falls
    """

    element: Element
    loss: float
    change: float
    stderr: float
    metric: float
    metric_change: float
    improved: float


def neuron_groups(units: int) -> list[np.ndarray]:
    """FFN neurons in `GROUPS` runs of about one size (in as many runs as there are neurons, if they are fewer)."""
    return np.array_split(np.arange(units), min(GROUPS, units)) if units else []


def elements_of(spec: ModelSpec, parts: bool = True) -> list[Element]:
    """Blocks that are there, in the order of execution, each followed by its parts."""
    out: list[Element] = []
    for i, layer in enumerate(spec.layers):
        for kind, count in (("attention", layer.num_heads), ("ffn", len(neuron_groups(layer.intermediate_size)))):
            if count:
                out += [Element(i, kind)] + [Element(i, kind, part) for part in range(count) if parts]
    return out


def without(spec: ModelSpec, keep: Structure, element: Element) -> Structure:
    """`keep` less one element; parts are numbered in the model of `spec`, whatever of it is gone already."""
    heads, units, i = list(keep.heads), list(keep.units), element.layer
    if element.kind == "attention":
        gone = np.arange(spec.layers[i].num_heads) if element.part is None else np.array([element.part])
        heads[i] = np.setdiff1d(heads[i], gone)
    else:
        groups = neuron_groups(spec.layers[i].intermediate_size)
        units[i] = np.setdiff1d(units[i], np.concatenate(groups) if element.part is None else groups[element.part])
    return Structure(tuple(heads), tuple(units))


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
            (f"layers.{i}.ffn.down.bias", keep.units[i], layer.intermediate_size),
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
    for i, (layer, heads, units) in enumerate(zip(spec.layers, keep.heads, keep.units, strict=True)):
        sizes = {"num_heads": layer.num_heads, "intermediate_size": layer.intermediate_size}
        for field, kept, at in (("num_heads", heads, "attention"), ("intermediate_size", units, "ffn")):
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

    Memory: 4 * hidden_size bytes a token (padded to like lengths), for one block at a time.
    """

    def __init__(self, model: TorchEncoder, examples: Examples, rows: np.ndarray | None = None) -> None:
        chosen = np.arange(len(examples.ids)) if rows is None else np.asarray(rows)
        assert examples.labels is not None and len(chosen)
        self.model, self.labels = model, examples.labels[chosen]
        lengths = examples.lengths[chosen]
        self.batches: list[tuple[np.ndarray, Batch, Keys]] = []
        for part in batches_by_length(lengths, LIMIT.on(model.device, model.spec.hidden_size)):
            rows_ = chosen[part]
            ids, types = ([source[i] for i in rows_] for source in (examples.ids, examples.types))
            batch = make_batch(ids, types, model.device)
            self.batches.append((part, batch, model.keys(batch)))
        self.stage = -1
        self.inputs: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.labels)

    def move(self, stage: int) -> None:
        """Keep the inputs of the block at `stage`, by the model as it is now below that."""
        with torch.inference_mode(), _evaluation(self.model):
            if stage < self.stage or not self.inputs:
                self.inputs, self.stage = [self.model.embed(batch) for _, batch, _ in self.batches], 0
            for place, (_, _, keys) in enumerate(self.batches):
                self.inputs[place] = self._blocks(range(self.stage, stage), self.inputs[place], keys)
        self.stage = stage

    def outputs(self) -> np.ndarray:
        """Logits f32[n, outputs] of the model as it is now from the kept inputs on."""
        model = self.model
        found, last = [], 2 * len(model.spec.layers)
        with torch.inference_mode(), _evaluation(model):
            for x, (_, batch, keys) in zip(self.inputs, self.batches, strict=True):
                hidden = self._blocks(range(self.stage, last), x, keys)
                found.append(model.head(model.pool(hidden, batch)))
        values = torch.cat(found).cpu().numpy()
        out = np.zeros_like(values)
        out[np.concatenate([rows for rows, _, _ in self.batches])] = values
        return out

    def _blocks(self, stages: Sequence[int], x: Tensor, keys: Keys) -> Tensor:
        for stage in stages:
            layer, second = divmod(stage, 2)
            x = self.model.ffn_block(layer, x) if second else self.model.attention_block(layer, x, keys)
        return x

    def losses(self, outputs: np.ndarray) -> np.ndarray:
        """f64[n]: cross entropy, or squared error of scores."""
        return sample_losses(outputs, self.labels).astype(np.float64)


@contextmanager
def _evaluation(model: TorchEncoder) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def measure_removals(
    held: HeldOutLoss,
    task: str | Task,
    means: Means,
    elements: Sequence[Element] | None = None,
    progress: Progress | None = None,
) -> list[Removal]:
    """Each of `elements` (default: all) taken out alone, in the order of execution.

    means      E[x] of the inputs of the second linears (`approxrt.significance.statistics`), or None to remove to zero
    progress   called with (elements done, elements, what is going on)
    """
    model = held.model
    spec, whole = model.spec, Structure.of(model.spec)
    ordered = sorted(elements_of(spec) if elements is None else elements, key=lambda element: element.stage)
    held.move(0)
    baseline = held.outputs()
    losses, metric = held.losses(baseline), primary(compute_metrics(task, baseline, held.labels))
    out = []
    for done, element in enumerate(ordered):
        held.move(element.stage)
        with removed(model, without(spec, whole, element), means):
            outputs = held.outputs()
        trial = held.losses(outputs)
        difference = trial - losses
        other = primary(compute_metrics(task, outputs, held.labels))
        out.append(
            Removal(
                element,
                loss=float(trial.mean()),
                change=float(difference.mean()),
                stderr=standard_error(difference),
                metric=other,
                metric_change=other - metric,
                improved=float((difference < 0).mean()),
            )
        )
        if progress:
            progress(done + 1, len(ordered), f"removing {element.name}")
    return out


def standard_error(values: np.ndarray) -> float:
    """Of the mean of `values`."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
