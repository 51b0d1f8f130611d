"""Least squares, layer by layer: what is left of a model learns the baseline's outputs on its own inputs.

For a linear with inputs x of the compressed model and outputs y of the baseline one on the same token,

    min over the kept weights and the bias of   E ||W x + b - y||^2 + lambda ||W - W0||^2

where W0 are the weights as they are: with few tokens, what the data do not decide stays as it was. With the centred
moments C = E[x x^T] - E[x] E[x]^T and R = E[y x^T] - E[y] E[x]^T - W0 C, a strip of 16 outputs that keeps S gets

    W_S = W0_S + R_S (C_SS + lambda I)^-1        b = E[y] - W E[x]

one Cholesky factor a strip (one for all that keep the same inputs). Linears go in the order of execution, so that each
sees inputs that are refitted already (as in AdaPrune and OBC, Frantar & Alistarh 2022, arXiv 2208.11580).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.formats import TILE_N
from approxrt.artifact.storage.bsr import expand_mask
from approxrt.memory import release_memory
from approxrt.progress import Progress
from approxrt.pruning.second_order import LinearStatistics
from approxrt.pruning.structure import QKV, Structure, head_rows, mean_biases, selections, shrunk_spec
from approxrt.tasks.examples import Examples
from approxrt.torch_models.batches import BatchLimit, batches_by_length
from approxrt.torch_models.encoder import Batch, Keys, TorchEncoder, make_batch

LIMIT = BatchLimit(64, 4096)
SMALLEST_RIDGE = 1e-6  # of the mean square of an input


class Moments:
    """Sums over tokens of x [tokens, K] and y [tokens, N], in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.x: Tensor | float = 0.0
        self.y: Tensor | float = 0.0
        self.xx: Tensor | float = 0.0
        self.yx: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """A batch's tokens."""
        self.count += len(x)
        self.x = self.x + x.sum(0, dtype=torch.float64)
        self.y = self.y + y.sum(0, dtype=torch.float64)
        # In place: of the widest linears these are as large as a layer.
        self.xx = (x.T @ x).double() if isinstance(self.xx, float) else self.xx.add_(x.T @ x)
        self.yx = (y.T @ x).double() if isinstance(self.yx, float) else self.yx.add_(y.T @ x)

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (E[x], E[y], covariance of x [K, K], of y with x [N, K])."""
        x, y = torch.as_tensor(self.x) / self.count, torch.as_tensor(self.y) / self.count
        xx, yx = torch.as_tensor(self.xx) / self.count, torch.as_tensor(self.yx) / self.count
        return x, y, xx.sub_(torch.outer(x, x)), yx.sub_(torch.outer(y, x))


def solve(
    weight: np.ndarray, mask: np.ndarray | None, moments: Moments, ridge: float, outputs: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Return (weight f32[N, K], bias f32[N]): the module's formula; `mask` is bool[strips, columns] over tiles or None.

    lambda is `ridge` times the mean variance of an input, at least what the rounding of sums in float32 asks for.
    `outputs` are the linear's among those of the moments.
    """
    mean_x, mean_y, xx, yx = moments.centred()
    mean_y, yx = mean_y[outputs], yx[outputs]
    n, k = weight.shape
    kept = np.ones((n, k), bool) if mask is None else expand_mask(mask, n, k)
    device = xx.device
    new = torch.from_numpy(weight.astype(np.float64) * kept).to(device)
    residual = yx - new @ xx
    energy = float((xx.diagonal() + mean_x.square()).mean())  # what float32 sums round is a share of this
    damp = max(ridge * float(xx.diagonal().mean()), SMALLEST_RIDGE * energy, 1e-30)
    groups: dict[bytes, list[int]] = {}
    for start in range(0, n, TILE_N):
        groups.setdefault(kept[start].tobytes(), []).append(start)
    for starts in groups.values():
        columns = torch.from_numpy(np.flatnonzero(kept[starts[0]])).to(device)
        if not len(columns):
            continue
        rows = torch.cat([torch.arange(start, min(start + TILE_N, n), device=device) for start in starts])
        system = xx[columns][:, columns]
        system.diagonal().add_(damp)
        right = residual[rows][:, columns]
        step = torch.cholesky_solve(right.T, torch.linalg.cholesky(system)).T
        new[rows[:, None], columns] += step
    rounded = new.to(torch.float32)
    return rounded.cpu().numpy(), (mean_y - rounded.double() @ mean_x).to("cpu", torch.float32).numpy()


@dataclass(frozen=True)
class RefitOptions:
    """Say what a refit leads to.

    keep     which of the baseline's heads and FFN channels the model has, in the model's order; None: all
    ridge    lambda as a share of an input's mean variance
    follow   a block's output also makes up for what its residual input has drifted from the baseline's: the target
             of its last linear is y + (x_baseline - x). Otherwise it is the baseline's y alone
    """

    keep: Structure | None = None
    ridge: float = 1e-2
    follow: bool = True


def refit(
    model: TorchEncoder,
    baseline: TorchEncoder,
    examples: Examples,
    options: RefitOptions = RefitOptions(),
    progress: Progress | None = None,
) -> None:
    """Refit all linears of `model`'s layers in place; weights of pruned tiles stay zero.

    baseline   the model that it came from
    examples   hidden states of all their tokens are kept, twice
    """
    keep, depth, progress = options.keep or Structure.of(baseline.spec), len(model.spec.layers), progress or Progress()
    refitter = _Refitter(model, baseline, examples, options)
    for i in range(depth):
        progress.count(i, depth, f"refitting layer {i}")
        refitter.layer(i, keep.heads[i], keep.channels[i])


class _Refitter:
    """Hidden states of both models before the block at hand, by batch."""

    def __init__(self, model: TorchEncoder, baseline: TorchEncoder, examples: Examples, options: RefitOptions) -> None:
        self.model, self.baseline, self.options = model, baseline, options
        self.batches = list(_batches(examples, model))
        self.keys = [model.keys(batch) for batch in self.batches]
        with _plain(model), _plain(baseline), torch.inference_mode():
            self.states = [model.embed(batch) for batch in self.batches]
            self.baseline_states = [baseline.embed(batch) for batch in self.batches]

    def layer(self, i: int, heads: np.ndarray, channels: np.ndarray) -> None:
        """Refit layer `i` and go past it."""
        at, layer = f"layers.{i}", self.baseline.spec.layers[i]
        with _plain(self.model), _plain(self.baseline), torch.inference_mode():
            if layer.num_heads:
                rows = torch.from_numpy(head_rows(heads, layer.head_dim)).to(self.baseline.device)
                self._first({f"{at}.attention.{part}": rows for part in QKV})
            self._last(f"{at}.attention.output", len(heads), bool(layer.num_heads))
            if layer.intermediate_size:
                self._first({f"{at}.ffn.up": torch.from_numpy(np.asarray(channels)).to(self.baseline.device)})
            self._last(f"{at}.ffn.down", len(channels), bool(layer.intermediate_size))

    def _first(self, outputs: dict[str, Tensor]) -> None:
        """Refit the linears that read the hidden state: `outputs` has the baseline's rows by name."""
        if not len(next(iter(outputs.values()))):
            return
        moments = Moments()  # one for all: they read the same
        for batch, x, y in zip(self.batches, self.states, self.baseline_states, strict=True):
            real = y[batch.mask]
            wanted = [self.baseline.linear(name, real)[:, rows] for name, rows in outputs.items()]
            moments.add(x[batch.mask], torch.cat(wanted, dim=1))
        start = 0
        for name, rows in outputs.items():
            self._solve(name, moments, slice(start, start + len(rows)))
            start += len(rows)

    def _last(self, name: str, size: int, whole: bool) -> None:
        """Refit the linear that ends a block, or its bias if no more is left of the block; both models go past it."""
        moments = Moments()
        for j, (batch, keys) in enumerate(zip(self.batches, self.keys, strict=True)):
            mask, x, y = batch.mask, self.states[j], self.baseline_states[j]
            wanted, self.baseline_states[j] = _record(self.baseline, name, y, keys, "output_hook")
            if not whole:
                continue
            assert wanted is not None
            target = wanted[mask]
            if self.options.follow:
                target = target + (y - x)[mask]
            given = _record(self.model, name, x, keys, "input_hook")[0] if size else None
            # A removed block has no inputs: its bias becomes the target's mean.
            moments.add(target[:, :0] if given is None else given[mask], target)
        if size:
            self._solve(name, moments, slice(None))
        elif whole:
            mean = torch.as_tensor(moments.y) / moments.count
            self.model.weight(f"{name}.bias").copy_(mean)
        for j, keys in enumerate(self.keys):
            self.states[j] = _run(self.model, name, self.states[j], keys)

    def _solve(self, name: str, moments: Moments, outputs: slice) -> None:
        weight, bias = self.model.weight(f"{name}.weight"), self.model.weight(f"{name}.bias")
        mask = self.model.masks.get(name)
        new, new_bias = solve(weight.detach().cpu().numpy(), mask, moments, self.options.ridge, outputs)
        weight.copy_(torch.from_numpy(new))
        bias.copy_(torch.from_numpy(new_bias))
        release_memory()  # systems of equations differ in size, and the gaps that they leave are not filled


def _batches(examples: Examples, model: TorchEncoder) -> Iterator[Batch]:
    for part in batches_by_length(examples.lengths, LIMIT.on(model.device, model.spec.hidden_size)):
        yield make_batch([examples.ids[i] for i in part], [examples.types[i] for i in part], model.device)


def _run(model: TorchEncoder, name: str, x: Tensor, keys: Keys) -> Tensor:
    """The block that ends with the linear `name`."""
    layer = int(name.split(".")[1])
    return model.attention_block(layer, x, keys) if name.endswith("attention.output") else model.ffn_block(layer, x)


def _record(model: TorchEncoder, name: str, x: Tensor, keys: Keys, hook: str) -> tuple[Tensor | None, Tensor]:
    """Return (what goes into (`input_hook`) or comes out of (`output_hook`) the linear `name`, the block's output)."""
    found: list[Tensor] = []

    def keep(at: str, value: Tensor) -> Tensor:
        if at == name:
            found.append(value)
        return value

    setattr(model, hook, keep)
    y = _run(model, name, x, keys)
    setattr(model, hook, None)
    return (found[0] if found else None), y


class _plain:
    """Eval mode without hooks; afterwards all is as before."""

    def __init__(self, model: TorchEncoder) -> None:
        self.model = model

    def __enter__(self) -> None:
        model = self.model
        self.before = (model.training, model.input_hook, model.output_hook, model.weight_hook)
        model.eval()
        model.input_hook = model.output_hook = model.weight_hook = None

    def __exit__(self, *error: object) -> None:
        model = self.model
        training, model.input_hook, model.output_hook, model.weight_hook = self.before
        model.train(training)


RIDGE = 1e-2


def refit_kept(
    weight: np.ndarray, kept: np.ndarray, stats: LinearStatistics, ridge: float = RIDGE
) -> tuple[np.ndarray, np.ndarray]:
    """Return (weight f32[N, K], what its bias gains f32[N]) of a linear that keeps some of its weights; the others are
    0.

    What is made least is the predicted loss: without the gradients' weights, the few tokens with activations far over
    all others would decide, and the loss hardly depends on them.

    kept   bool[strips, columns] of tiles, or bool[K] of inputs
    """
    n, k = weight.shape
    found = Moments()
    whole, x = torch.from_numpy(np.asarray(weight, np.float64)), torch.from_numpy(np.asarray(stats.mean, np.float64))
    found.count, found.x, found.y = 1, x, whole @ x
    found.xx = torch.from_numpy(np.asarray(stats.weighted, np.float64) / max(stats.weight, 1e-300))
    found.yx = whole @ found.xx
    if kept.ndim == 2:
        return solve(weight, kept, found, ridge)
    chosen = torch.from_numpy(np.flatnonzero(kept))
    inner = Moments()
    inner.count, inner.x, inner.y = 1, x[chosen], found.y
    inner.xx, inner.yx = found.xx[chosen][:, chosen], found.yx[:, chosen]
    out = np.zeros((n, k), np.float32)
    out[:, kept], bias = solve(np.ascontiguousarray(weight[:, kept]), None, inner, ridge)
    return out, bias


def remove_and_refit(
    spec: DecoderSpec, tensors: Mapping[str, np.ndarray], keep: Structure, stats: Mapping[str, LinearStatistics]
) -> tuple[DecoderSpec, dict[str, np.ndarray], dict[str, LinearStatistics]]:
    """Return (spec, tensors, statistics) of an all-f32 decoder without what `keep` leaves out.

    stats   of at least the output projections and `down` of layers that lose something
    """
    out = dict(tensors)
    chosen = selections(spec, keep)
    second = [name.removesuffix(".weight") for name, selection in chosen.items() if selection.axis == 1]
    means = {name: stats[name].mean for name in second}
    biases = mean_biases(spec, tensors, keep, means)
    left = dict(stats)
    for name in second:
        indices = chosen[f"{name}.weight"].indices
        if indices is None:
            out[f"{name}.bias"] = biases[f"{name}.bias"]
            continue
        found = stats[name]
        kept = np.zeros(len(found.mean), bool)
        kept[indices] = True
        out[f"{name}.weight"], more = refit_kept(tensors[f"{name}.weight"], kept, found)
        out[f"{name}.bias"] = tensors[f"{name}.bias"] + more
        left[name] = found.select(indices)
    for name, selection in chosen.items():
        value = selection.apply(out[name])
        if value is None:
            del out[name]
            left.pop(name.removesuffix(".weight"), None)
        else:
            out[name] = np.ascontiguousarray(value)
    return shrunk_spec(spec, keep), out, left
