"""One pass over task data: what flows into every linear, and how much the loss cares about what comes out.

The loss is that of labels drawn from the model's own prediction, so that squares of its gradients are the Fisher
information and not an artefact of labels that the model already fits (Kunstner et al. 2019, arXiv 1905.12558). What is
summed of linears is in `approxrt.significance.linear_sums`.

Heads and FFN channels have the Fisher of a gate m = 1 on their output (Kwon et al. 2022, arXiv 2204.09656):
sum over examples of (dL/dm)^2, where dL/dm of an example is the sum over its tokens of x . dL/dx.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.memory import release_memory
from approxrt.progress import Progress
from approxrt.pruning.second_order import LinearStatistics
from approxrt.significance.linear_sums import LinearSums
from approxrt.tasks.examples import Examples
from approxrt.torch_models.batches import BatchLimit, batches_by_length
from approxrt.torch_models.encoder import Batch, Output, TorchEncoder, make_batch

LIMIT = BatchLimit(32, 2048)
# What is kept of a batch until its gradients come: about so many vectors of the hidden size a token and layer (330 kB a
# token of MiniLM, 1.3 MB of BERT-base), and how much of it at once on a CPU.
KEPT_VECTORS, KEPT_BYTES = 36, 340 << 20
RELEASE_EVERY = 64  # texts


@dataclass(frozen=True)
class Statistics:
    """Hold what a pass found. Linears under their artifact names; a removed block has none.

    linears   of each linear; the head's run once a text, there a mean is over texts
    tokens    of all texts
    examples  texts
    heads     by layer, f64[num_heads]: Fisher of gates, summed over texts
    channels  by layer, f64[intermediate_size]: the same
    rows      f64[vocab]: sum over a row's occurrences of (e . dL/de)^2
    counts    i64[vocab]: how often a row occurs

    Those from `heads` on are an encoder's.
    """

    linears: dict[str, LinearStatistics]
    tokens: int
    examples: int
    heads: dict[int, np.ndarray] = field(default_factory=dict)
    channels: dict[int, np.ndarray] = field(default_factory=dict)
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """A by linear, f32[in, in]; empty without moments."""
        return {name: found.moments for name, found in self.linears.items() if found.moments.size}

    @property
    def means(self) -> dict[str, np.ndarray]:
        """The constant that stands for a linear's inputs, f32[in]: E[x], or weighted as `LinearStatistics` says."""
        return {name: found.mean for name, found in self.linears.items()}

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        """G_rr by linear, f32[out]: a token's (of the head: a text's)."""
        return {name: found.gradients for name, found in self.linears.items()}


def collect(
    model: TorchEncoder,
    examples: Examples,
    seed: int = 0,
    with_moments: bool = True,
    progress: Progress | None = None,
) -> Statistics:
    """Statistics of the texts of `examples`, in eval mode; the model is left as it was.

    seed          of the labels that are drawn
    with_moments  also A, which takes 4 * in_features^2 bytes a linear
    """
    if not len(examples.ids):
        raise ValueError("statistics need at least one example")
    generator = torch.Generator().manual_seed(seed)
    pass_ = _Pass(model, with_moments)
    spec = model.spec
    kept = 4 * KEPT_VECTORS * spec.hidden_size * len(spec.layers)
    limit = LIMIT.within(KEPT_BYTES, kept).on(model.device, spec.hidden_size, len(spec.layers))
    done = 0
    with _observed(model, pass_), torch.enable_grad():
        for part in batches_by_length(examples.lengths, limit):
            batch = make_batch([examples.ids[i] for i in part], [examples.types[i] for i in part], model.device)
            pass_.begin(batch)
            loss = sampled_loss(spec, model(batch), generator)
            pass_.end(loss)
            done += len(part)
            if done // RELEASE_EVERY > (done - len(part)) // RELEASE_EVERY:
                release_memory()
            if progress:
                progress.count(done, len(examples.ids), "collecting statistics")
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
    """Sum over batches, as the hooks of a model."""

    def __init__(self, model: TorchEncoder, with_moments: bool) -> None:
        self.spec = model.spec
        self.sums = LinearSums(self._real, self._real, with_moments)
        self.gates: dict[str, Tensor] = {}
        self.rows = torch.zeros(self.spec.vocab_size, dtype=torch.float64, device=model.device)
        self.counts = torch.zeros(self.spec.vocab_size, dtype=torch.int64, device=model.device)
        self.tokens = self.examples = 0

    def begin(self, batch: Batch) -> None:
        """Before the forward pass of a batch."""
        self.batch, self.mask = batch, batch.mask

    def _real(self, name: str, x: Tensor) -> Tensor:
        """[tokens, k] without padding; the head's [texts, k] as it is."""
        return (x[self.mask] if x.ndim == 3 else x).float()

    def input(self, name: str, x: Tensor) -> Tensor:
        """The input hook."""
        self.sums.reads(name, x)
        if name.endswith(("attention.output", "ffn.down")):
            # The hook belongs to x: one that holds x itself would keep it, and the batch's graph, for good.
            values = x.detach()
            x.register_hook(lambda gradient: self._gate(name, values, gradient))
        return x

    def output(self, name: str, y: Tensor) -> Tensor:
        """The output hook."""
        if name == "embeddings.word":
            values = y.detach()
            y = y.detach().requires_grad_()
            y.register_hook(lambda gradient: self._word(values, gradient))
        else:
            self.sums.writes(name, y)
        return y

    def end(self, loss: Tensor) -> None:
        """Take the gradients of a batch."""
        loss.backward()
        self.tokens += int(self.mask.sum())
        self.examples += len(self.batch.ids)
        self.sums.forget()

    def _gate(self, name: str, x: Tensor, gradient: Tensor) -> None:
        gates = (x * gradient).sum(1, dtype=torch.float64)
        if name.endswith("attention.output"):
            heads = self.spec.layers[int(name.split(".")[1])].num_heads
            gates = gates.reshape(len(gates), heads, -1).sum(2)
        self.gates[name] = self.gates.get(name, 0) + gates.square().sum(0)

    def _word(self, y: Tensor, gradient: Tensor) -> None:
        worth = (y * gradient).sum(2, dtype=torch.float64).square()
        ids, size = self.batch.ids[self.mask], self.spec.vocab_size
        self.rows += torch.bincount(ids, worth[self.mask], size)
        self.counts += torch.bincount(ids, minlength=size)

    def result(self) -> Statistics:
        """Means of the sums."""
        heads, channels = (
            {int(n.split(".")[1]): g.cpu().numpy() for n, g in self.gates.items() if n.endswith(part)}
            for part in ("attention.output", "ffn.down")
        )
        rows, counts = self.rows.cpu().numpy(), self.counts.cpu().numpy()
        return Statistics(self.sums.statistics(), self.tokens, self.examples, heads, channels, rows, counts)
