"""One pass over task data: what flows into every linear, and how much the loss cares about what comes out.

The loss is that of labels drawn from the model's own prediction, so that squares of its gradients are the Fisher
information and not an artefact of labels that the model already fits (Kunstner et al. 2019, arXiv 1905.12558). For a
linear y = W x the loss then grows by about 1/2 sum_r G_rr dw_r A dw_r^T a token when W changes by dW (K-FAC, Martens &
Grosse 2015, arXiv 1503.05671, with the diagonal of its second factor), with

    A = E[x x^T]        G_rr = E[(dL/dy_r)^2]        over tokens that are no padding.

Heads and FFN units have the Fisher of a gate m = 1 on their output (Kwon et al. 2022, arXiv 2204.09656):
sum over examples of (dL/dm)^2, where dL/dm of an example is the sum over its tokens of x . dL/dx.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.tasks.examples import Examples
from approxrt.torch_models.batches import BatchLimit, batches_by_length
from approxrt.torch_models.encoder import Batch, Output, TorchEncoder, make_batch

# What is kept of a batch until its gradients come: about 40 kB a token of MiniLM, 400 of BERT-base.
LIMIT = BatchLimit(32, 2048)

Progress = Callable[[int, int, str], None]


@dataclass
class Statistics:
    """See the module's text. Linears under their artifact names; a removed block has none.

    inputs     A by linear, f32[in, in]; query, key and value share one array; empty without moments
    means      E[x] by linear, f32[in]
    gradients  G_rr by linear, f32[out]: a token's; the head's linears run once a text, there it is a text's
    heads      by layer, f64[num_heads]: Fisher of gates, summed over texts
    units      by layer, f64[intermediate_size]: the same
    rows       f64[vocab]: sum over a row's occurrences of (e . dL/de)^2
    counts     i64[vocab]: how often a row occurs
    tokens     of all texts
    examples   texts
    """

    inputs: dict[str, np.ndarray]
    means: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    heads: dict[int, np.ndarray]
    units: dict[int, np.ndarray]
    rows: np.ndarray
    counts: np.ndarray
    tokens: int
    examples: int


def collect(
    model: TorchEncoder,
    examples: Examples,
    rows: np.ndarray,
    seed: int = 0,
    with_moments: bool = True,
    progress: Progress | None = None,
) -> Statistics:
    """Statistics of the texts `rows` i64[n] of `examples`, in eval mode; the model is left as it was.

    seed          of the labels that are drawn
    with_moments  also A, which takes 4 * in_features^2 bytes a linear
    progress      called with (texts done, texts, what is going on)
    """
    if not len(rows):
        raise ValueError("statistics need at least one example")
    generator = torch.Generator().manual_seed(seed)
    pass_ = _Pass(model, with_moments)
    chosen, spec = np.asarray(rows), model.spec
    limit = LIMIT.on(model.device, spec.hidden_size, len(spec.layers))
    done = 0
    with _observed(model, pass_), torch.enable_grad():
        for places in batches_by_length(examples.lengths[chosen], limit):
            part = chosen[places]
            batch = make_batch([examples.ids[i] for i in part], [examples.types[i] for i in part], model.device)
            pass_.begin(batch)
            loss = sampled_loss(spec, model(batch), generator)
            pass_.end(loss)
            done += len(part)
            if progress:
                progress(done, len(chosen), "collecting statistics")
    return pass_.result()


def sampled_loss(spec: ModelSpec, out: Output, generator: torch.Generator) -> Tensor:
    """Sum over texts of the loss of labels drawn from the model's own prediction.

    Classes from their probabilities, scores from N(prediction, 1). An embedder has no labels: its unit vector's
    target is the vector itself, moved by a random direction of length 1. `generator` is a CPU's: a seed draws the same
    numbers for every device.
    """
    if out.logits is None:
        unit = F.normalize(out.pooled.float(), dim=1)
        step = F.normalize(torch.randn(unit.shape, generator=generator).to(unit.device), dim=1)
        return 0.5 * (unit - (unit.detach() + step)).square().sum()
    logits, known = out.logits, out.logits.detach().cpu()
    if spec.task_type == "regression":
        target = (known + torch.randn(known.shape, generator=generator)).to(logits.device)
        return 0.5 * (logits - target).square().sum()
    if spec.task_type == "multi_label":
        chosen = torch.bernoulli(known.sigmoid(), generator=generator).to(logits.device)
        return F.binary_cross_entropy_with_logits(logits, chosen, reduction="sum")
    label = torch.multinomial(known.softmax(1), 1, generator=generator)[:, 0]
    return F.cross_entropy(logits, label.to(logits.device), reduction="sum")


class _observed:
    """Hooks a model for a pass: eval mode, no gradients of weights; afterwards all is as before."""

    def __init__(self, model: TorchEncoder, pass_: _Pass) -> None:
        self.model, self.pass_ = model, pass_

    def __enter__(self) -> None:
        model, pass_ = self.model, self.pass_
        self.before = (model.training, model.input_hook, model.output_hook)
        self.trained = [p for p in model.weights.values() if p.requires_grad]
        for parameter in self.trained:
            parameter.requires_grad_(False)
        inner = model.input_hook
        model.eval()
        model.input_hook = lambda name, x: pass_.input(name, x if inner is None else inner(name, x))
        model.output_hook = pass_.output

    def __exit__(self, *error: object) -> None:
        model = self.model
        training, model.input_hook, model.output_hook = self.before
        model.train(training)
        for parameter in self.trained:
            parameter.requires_grad_(True)


class _Pass:
    """Sums over batches, and what is kept of the batch at hand until its gradients come."""

    def __init__(self, model: TorchEncoder, with_moments: bool) -> None:
        spec = self.spec = model.spec
        self.with_moments = with_moments
        self.moments: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.gates: dict[str, Tensor] = {}
        self.rows = torch.zeros(spec.vocab_size, dtype=torch.float64, device=model.device)
        self.counts = torch.zeros(spec.vocab_size, dtype=torch.int64, device=model.device)
        self.seen: dict[str, int] = {}
        self.tokens = self.examples = 0

    def begin(self, batch: Batch) -> None:
        """Before the forward pass of a batch."""
        self.batch, self.mask = batch, batch.mask
        self.kept: list[tuple[str, str, Tensor]] = []  # (what, linear, tensor)
        self.last: tuple[Tensor | None, str] = (None, "")

    def _real(self, x: Tensor) -> Tensor:
        """[tokens, k] without padding; the head's [texts, k] as it is."""
        return (x.detach()[self.mask] if x.ndim == 3 else x.detach()).float()

    def input(self, name: str, x: Tensor) -> Tensor:
        """The input hook."""
        previous, owner = self.last
        real = self._real(x)
        self.seen[name] = self.seen.get(name, 0) + len(real)
        if previous is x:
            # query, key and value read the same: one array stands for all.
            self.sums[name] = self.sums[owner]
            if self.with_moments:
                self.moments[name] = self.moments[owner]
        else:
            self.last = (x, name)
            self.sums[name] = self.sums.get(name, 0) + real.sum(0, dtype=torch.float64)
            if self.with_moments:
                if name not in self.moments:
                    self.moments[name] = torch.zeros(x.shape[-1], x.shape[-1], device=x.device)
                self.moments[name].addmm_(real.T, real)
        if name.endswith(("attention.output", "ffn.down")):
            self.kept.append(("gate", name, x))
        return x

    def output(self, name: str, y: Tensor) -> Tensor:
        """The output hook."""
        if name == "embeddings.word":
            y = y.detach().requires_grad_()
            self.kept.append(("word", name, y))
        else:
            self.kept.append(("linear", name, y))
        return y

    def end(self, loss: Tensor) -> None:
        """Take the gradients of a batch."""
        gradients = torch.autograd.grad(loss, [tensor for _, _, tensor in self.kept])
        for (what, name, tensor), gradient in zip(self.kept, gradients, strict=True):
            if what == "linear":
                square = self._real(gradient).square().sum(0, dtype=torch.float64)
                self.squares[name] = self.squares.get(name, 0) + square
            elif what == "gate":
                gates = (tensor.detach() * gradient).sum(1, dtype=torch.float64)
                if name.endswith("attention.output"):
                    heads = self.spec.layers[int(name.split(".")[1])].num_heads
                    gates = gates.reshape(len(gates), heads, -1).sum(2)
                self.gates[name] = self.gates.get(name, 0) + gates.square().sum(0)
            else:
                worth = (tensor.detach() * gradient).sum(2, dtype=torch.float64).square()
                ids, size = self.batch.ids[self.mask], self.spec.vocab_size
                self.rows += torch.bincount(ids, worth[self.mask], size)
                self.counts += torch.bincount(ids, minlength=size)
        self.tokens += int(self.mask.sum())
        self.examples += len(self.batch.ids)
        self.kept = []
        self.last = (None, "")

    def result(self) -> Statistics:
        """Means of the sums."""
        # One array for each sum, so that what is shared stays shared.
        own = {id(moment): (moment, self.seen[name]) for name, moment in self.moments.items()}
        arrays = {key: moment.div_(count).cpu().numpy() for key, (moment, count) in own.items()}
        by_layer = {
            part: {int(n.split(".")[1]): g.cpu().numpy() for n, g in self.gates.items() if n.endswith(part)}
            for part in ("attention.output", "ffn.down")
        }
        return Statistics(
            inputs={name: arrays[id(moment)] for name, moment in self.moments.items()},
            means={name: (x / self.seen[name]).to("cpu", torch.float32).numpy() for name, x in self.sums.items()},
            gradients={
                name: (x / self.seen[name]).to("cpu", torch.float32).numpy() for name, x in self.squares.items()
            },
            heads=by_layer["attention.output"],
            units=by_layer["ffn.down"],
            rows=self.rows.cpu().numpy(),
            counts=self.counts.cpu().numpy(),
            tokens=self.tokens,
            examples=self.examples,
        )
