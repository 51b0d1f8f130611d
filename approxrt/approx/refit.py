"""Least squares, layer by layer: what is left of a model learns the dense model's outputs on its own inputs.

For a linear with inputs x of the compressed model and outputs y of the dense one on the same token,

    min over the kept weights and the bias of   E ||W x + b - y||^2 + lambda ||W - W0||^2

where W0 are the weights as they are: with few tokens, what the data do not decide stays as it was. With the centred
moments C = E[x x^T] - E[x] E[x]^T and R = E[y x^T] - E[y] E[x]^T - W0 C, a strip of 16 outputs that keeps S gets

    W_S = W0_S + R_S (C_SS + lambda I)^-1        b = E[y] - W E[x]

one Cholesky factor a strip (one for all that keep the same inputs). Linears go in the order of execution, so that each
sees inputs that are refitted already (as in AdaPrune and OBC, Frantar & Alistarh 2022, arXiv 2208.11580).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from approxrt.approx.bsr import expand_mask
from approxrt.approx.recover import Examples
from approxrt.approx.structure import Structure, head_rows
from approxrt.approx.student import Batch, Student, attention_bias, make_batch
from approxrt.artifact.spec import TILE_N

BATCH = 64
BATCH_TOKENS = 4096
SMALLEST_RIDGE = 1e-6  # of the mean square of an input

Progress = Callable[[int, int, str], None]


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
        self.xx = self.xx + (x.T @ x).double()
        self.yx = self.yx + (y.T @ x).double()

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(E[x], E[y], covariance of x [K, K], of y with x [N, K])."""
        x, y = torch.as_tensor(self.x) / self.count, torch.as_tensor(self.y) / self.count
        xx, yx = torch.as_tensor(self.xx) / self.count, torch.as_tensor(self.yx) / self.count
        return x, y, xx - torch.outer(x, x), yx - torch.outer(y, x)


def solve(weight: np.ndarray, mask: np.ndarray | None, moments: Moments, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """(weight f32[N, K], bias f32[N]): the module's formula; `mask` is bool[strips, columns] over tiles or None.

    lambda is `ridge` times the mean variance of an input, at least what the rounding of sums in float32 asks for.
    """
    mean_x, mean_y, xx, yx = moments.centred()
    n, k = weight.shape
    kept = np.ones((n, k), bool) if mask is None else expand_mask(mask, n, k)
    new = torch.from_numpy(weight.astype(np.float64) * kept)
    residual = yx - new @ xx
    energy = float((xx.diagonal() + mean_x.square()).mean())  # what float32 sums round is a share of this
    damp = max(ridge * float(xx.diagonal().mean()), SMALLEST_RIDGE * energy, 1e-30)
    groups: dict[bytes, list[int]] = {}
    for start in range(0, n, TILE_N):
        groups.setdefault(kept[start].tobytes(), []).append(start)
    for starts in groups.values():
        columns = torch.from_numpy(np.flatnonzero(kept[starts[0]]))
        if not len(columns):
            continue
        rows = torch.cat([torch.arange(start, min(start + TILE_N, n)) for start in starts])
        system = xx[columns][:, columns] + damp * torch.eye(len(columns), dtype=torch.float64)
        right = residual[rows][:, columns]
        step = torch.cholesky_solve(right.T, torch.linalg.cholesky(system)).T
        new[rows[:, None], columns] += step
    rounded = new.to(torch.float32)
    return rounded.numpy(), (mean_y - rounded.double() @ mean_x).to(torch.float32).numpy()


def refit(
    student: Student,
    dense: Student,
    examples: Examples,
    rows: np.ndarray,
    keep: Structure | None = None,
    ridge: float = 1e-2,
    follow: bool = True,
    progress: Progress | None = None,
) -> None:
    """Refit all linears of `student`'s layers in place; weights of pruned tiles stay zero.

    dense    the model that it came from
    rows     i64[n]: the examples that are used; hidden states of all their tokens are kept, twice
    keep     which of the dense model's heads and units the student has, in the student's order; None: all
    follow   a block's output also makes up for what its residual input has drifted from the dense model's: the target
             of its last linear is y + (x_dense - x). Otherwise it is the dense model's y alone
    """
    keep = keep or Structure.of(dense.spec)
    refitter = _Refitter(student, dense, examples, np.asarray(rows), ridge, follow)
    depth = len(student.spec.layers)
    for i in range(depth):
        refitter.layer(i, keep.heads[i], keep.units[i])
        if progress:
            progress(i + 1, depth, "refitting")


class _Refitter:
    """Hidden states of both models before the block at hand, by batch."""

    def __init__(
        self, student: Student, dense: Student, examples: Examples, rows: np.ndarray, ridge: float, follow: bool
    ) -> None:
        self.student, self.dense, self.ridge, self.follow = student, dense, ridge, follow
        self.batches = list(_batches(examples, rows))
        self.biases = [attention_bias(batch) for batch in self.batches]
        with _plain(student), _plain(dense), torch.inference_mode():
            self.states = [student.embed(batch) for batch in self.batches]
            self.dense_states = [dense.embed(batch) for batch in self.batches]

    def layer(self, i: int, heads: np.ndarray, units: np.ndarray) -> None:
        """Refit layer `i` and go past it."""
        at, head_dim = f"layers.{i}.attention", self.dense.spec.layers[i].head_dim
        inner = head_rows(heads, head_dim)
        first = [(f"{at}.{part}", inner) for part in ("query", "key", "value")]
        self._block(i, first, f"{at}.output", len(heads), self.dense.spec.layers[i].num_heads)
        at = f"layers.{i}.ffn"
        self._block(
            i, [(f"{at}.up", np.asarray(units))], f"{at}.down", len(units), self.dense.spec.layers[i].intermediate_size
        )

    def _block(self, i: int, first: Sequence[tuple[str, np.ndarray]], last: str, size: int, whole: int) -> None:
        if size:
            self._stage(i, dict(first), last)
        if whole:
            self._stage(i, {last: np.arange(self.dense.spec.hidden_size)}, last)
        attention = last.endswith("attention.output")
        with _plain(self.student), _plain(self.dense), torch.inference_mode():
            for states, model in ((self.states, self.student), (self.dense_states, self.dense)):
                for j, bias in enumerate(self.biases):
                    states[j] = _run(model, i, attention, states[j], bias)

    def _stage(self, i: int, outputs: dict[str, np.ndarray], last: str) -> None:
        """Refit the linears `outputs` (name -> rows of the dense model's) of the block that ends with `last`."""
        attention = last.endswith("attention.output")
        removed = f"{last}.weight" not in set(self.student.names())
        moments = {name: Moments() for name in outputs}
        for j, (batch, bias) in enumerate(zip(self.batches, self.biases, strict=True)):
            mask = batch.mask
            x, y = self.states[j], self.dense_states[j]
            with torch.inference_mode():
                wanted = _record(self.dense, i, attention, y, bias, outputs, "output_hook")
                inputs = {} if removed else _record(self.student, i, attention, x, bias, outputs, "input_hook")
                drift = (y - x)[mask] if self.follow else None
                for name, rows in outputs.items():
                    target = wanted[name][mask][:, torch.from_numpy(rows)]
                    if name == last and drift is not None:
                        target = target + drift
                    # A removed block has no inputs: its bias becomes the target's mean.
                    given = target[:, :0] if removed else inputs[name][mask]
                    moments[name].add(given.float(), target.float())
        for name in outputs:
            if removed:
                value = torch.as_tensor(moments[name].y) / moments[name].count
                _set(self.student, f"{name}.bias", value.to(torch.float32).numpy())
                continue
            weight = self.student.weight(f"{name}.weight").detach().numpy()
            new, new_bias = solve(weight, self.student.masks.get(name), moments[name], self.ridge)
            _set(self.student, f"{name}.weight", new)
            _set(self.student, f"{name}.bias", new_bias)


def _batches(examples: Examples, rows: np.ndarray) -> Sequence[Batch]:
    order = rows[np.argsort(examples.lengths[rows], kind="stable")]
    out, start = [], 0
    while start < len(order):
        longest = int(examples.lengths[order[min(start + BATCH, len(order)) - 1]])
        part = order[start : start + max(1, min(BATCH, BATCH_TOKENS // longest))]
        out.append(make_batch([examples.ids[i] for i in part], [examples.types[i] for i in part]))
        start += len(part)
    return out


def _run(model: Student, i: int, attention: bool, x: Tensor, bias: Tensor | None) -> Tensor:
    return model.attention_block(i, x, bias) if attention else model.ffn_block(i, x)


def _record(
    model: Student, i: int, attention: bool, x: Tensor, bias: Tensor | None, names: dict[str, np.ndarray], hook: str
) -> dict[str, Tensor]:
    """What goes into (`input_hook`) or comes out of (`output_hook`) the named linears of a block."""
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        if name in names:
            found[name] = value
        return value

    with _plain(model):
        setattr(model, hook, keep)
        _run(model, i, attention, x, bias)
    return found


def _set(student: Student, name: str, value: np.ndarray) -> None:
    with torch.no_grad():
        student.weight(name).copy_(torch.from_numpy(value))


class _plain:
    """Eval mode without hooks; afterwards all is as before."""

    def __init__(self, model: Student) -> None:
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
