"""A compressed decoder learns from the dense one, on plain text: distillation through the structure, tiles and grids
that the artifact will have.

The student starts from the plan's weights. Its linears compute on the artifact's int8 and int4 grids, activations and
weights, with straight-through gradients (`approxrt.approx.fake_quantize`); pruned tiles stay zero. Norms, and weights
and biases of the layers' linears, are trained (AdamW); the word table and the head are not.

The loss is KL(teacher || student) a token, over the teacher's `TOP` likeliest next tokens and all others as one. The
text's own next tokens are not used: with a text of one kind the student would learn that kind of text, and its
perplexity there would say nothing of what was lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from approxrt.approx.bsr import expand_mask
from approxrt.approx.fake_quantize import REFRESH, int4_steps, quantize_activations, quantize_weight4, quantize_weight8
from approxrt.approx.groups import quantize_groups4
from approxrt.approx.quantize import dequantize, quantize_linear, quantize_rows
from approxrt.approx.torch_decoder import TorchDecoder
from approxrt.artifact.decoder_spec import DecoderSpec
from approxrt.artifact.spec import GROUP_WEIGHTS, LinearKind
from approxrt.errors import TrainingError

TOP = 64

# ids -> logits f32[tokens, vocab] of the dense model
Teacher = Callable[[list[int]], np.ndarray]


@dataclass(frozen=True)
class DecoderRecoveryOptions:
    """`lr` is the highest; it rises over the first `warmup` of the time and falls to `final_lr` of it."""

    lr: float = 5e-5
    final_lr: float = 0.05
    warmup: float = 0.05
    sequences: int = 2  # a step
    weight_decay: float = 0.0
    seed: int = 0
    bf16: bool = False


@dataclass(frozen=True)
class Taught:
    """What the teacher says of one sequence: its likeliest next tokens i32[tokens, TOP] and their log probabilities."""

    ids: Tensor
    log_probabilities: Tensor


class DecoderRecovery:
    """A student in training. Sequences of the text come in a shuffled order, each once an epoch.

    spec, tensors  all-f32 decoder as the plan cuts and refits it
    masks          of tiles, by linear
    bits           8, 5 or 4 by linear; what it does not name computes in float
    pieces         i64[sequences, tokens] to learn from
    """

    def __init__(
        self,
        spec: DecoderSpec,
        tensors: Mapping[str, np.ndarray],
        masks: Mapping[str, np.ndarray],
        bits: Mapping[str, int],
        pieces: Tensor,
        teacher: Teacher,
        options: DecoderRecoveryOptions,
    ) -> None:
        self.spec, self.bits, self.pieces = spec, dict(bits), pieces
        self.teacher, self.options = teacher, options
        self.masks = dict(masks)
        self.step, self.loss = 0, math.nan
        self._taught: dict[int, Taught] = {}
        self._steps: dict[str, Tensor] = {}
        self._lines: dict[str, tuple[Tensor, Tensor]] = {}
        self.model = TorchDecoder(spec, tensors)
        weights = self.model.weights
        q, scale = quantize_rows(weights["embeddings.word.weight"].numpy())
        weights["embeddings.word.weight"] = torch.from_numpy(dequantize(q, scale))
        if spec.tied_embeddings:
            weights["head.out.weight"] = weights["embeddings.word.weight"]
        elif "head.out" in bits:
            from approxrt.approx.gptq import dequantized_linear

            head = weights["head.out.weight"].numpy()
            _, parts = quantize_linear(head, bits["head.out"])
            weights["head.out.weight"] = torch.from_numpy(dequantized_linear(parts, *head.shape))
        self._elements = {
            name: torch.from_numpy(expand_mask(mask, *tensors[f"{name}.weight"].shape)) for name, mask in masks.items()
        }
        self.trained = {name: weights[name].requires_grad_() for name in weights if name.startswith("layers.")}
        self._mask_weights()
        matrices = [p for p in self.trained.values() if p.ndim > 1]
        vectors = [p for p in self.trained.values() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.95))

    # -- steps ------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.pieces) // self.options.sequences)

    def advance(self, done: float) -> float:
        """One optimiser step; `done` is the share of the training that lies behind. Returns the loss, nats a token.

        Raises TrainingError when it is not a number.
        """
        options = self.options
        epoch, place = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng([options.seed, epoch]).permutation(len(self.pieces))
        rows = order[place * options.sequences : (place + 1) * options.sequences]
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * self._schedule(done)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for row in rows:
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                loss = self._loss(int(row)) / len(rows)
            loss.backward()
            total += float(loss.detach())
        self.loss = total
        if not math.isfinite(total):
            raise TrainingError(
                f"the loss is {total} at step {self.step + 1} with lr {options.lr}: training has diverged; "
                "use a smaller --lr"
            )
        torch.nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0)
        self.optimizer.step()
        self._mask_weights()
        self.step += 1
        if self.step % REFRESH == 0:
            self._steps, self._lines = {}, {}
        return total

    def _schedule(self, done: float) -> float:
        warmup, final = self.options.warmup, self.options.final_lr
        if done < warmup:
            return max(0.05, done / warmup)
        return final + (1 - final) * max(0.0, (1 - done) / (1 - warmup))

    def _loss(self, row: int) -> Tensor:
        taught = self._teach(row)
        logits = self.logits(self.pieces[row][None])[0].float()
        ours = logits.log_softmax(-1)
        p = taught.log_probabilities
        top = ours.gather(1, taught.ids.long())
        rest, theirs = (torch.log1p(-x.exp().sum(1).clamp(max=1 - 1e-6)) for x in (top, p))
        return ((p.exp() * (p - top)).sum(1) + theirs.exp() * (theirs - rest)).mean()

    def _teach(self, row: int) -> Taught:
        if row not in self._taught:
            logits = torch.from_numpy(np.array(self.teacher(self.pieces[row].tolist()), np.float32))
            top = logits.topk(min(TOP, logits.shape[1]), dim=1)
            probabilities = top.values - logits.logsumexp(1, keepdim=True)
            self._taught[row] = Taught(top.indices.int(), probabilities)
        return self._taught[row]

    # -- the student -------------------------------------------------------------

    def logits(self, ids: Tensor) -> Tensor:
        """[batch, tokens, vocab] of i64[batch, tokens], on the artifact's grids."""
        x = self.model.embed(ids)
        for layer in range(len(self.spec.layers)):
            x = self.model.layer(layer, x, self._linear)
        return self.model.head(x, self._linear)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weights, width = self.model.weights, self.bits.get(name)
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if name == "head.out" and (width or self.spec.tied_embeddings):
            x = quantize_activations(x)  # its weights are on their grid already
        elif width == 8:
            x, weight = quantize_activations(x), quantize_weight8(weight)
        elif width == 4:
            if name not in self._steps:
                steps = int4_steps(weight.detach().numpy(), self.masks.get(name))
                self._steps[name] = torch.from_numpy(steps)
            x, weight = quantize_activations(x), quantize_weight4(weight, self._steps[name])
        elif width == 5:
            if name not in self._lines:
                self._lines[name] = group_lines(weight.detach().numpy())
            x, weight = quantize_activations(x), _on_lines(weight, *self._lines[name])
        return functional.linear(x, weight, bias)

    def _mask_weights(self) -> None:
        with torch.no_grad():
            for name, kept in self._elements.items():
                self.trained[f"{name}.weight"].mul_(kept)

    # -- what is kept --------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of what is trained."""
        return {name: p.detach().numpy().copy() for name, p in self.trained.items()}

    def state(self) -> dict[str, Any]:
        """All that decides the next step, for torch.save."""
        return {
            "step": self.step,
            "weights": {name: p.detach() for name, p in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()` of a run with the same plan and options."""
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.trained[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self._steps, self._lines = state["step"], {}, {}


def group_lines(weight: np.ndarray) -> tuple[Tensor, Tensor]:
    """(scale, offset) f32[n, k] of each weight of f32[n, k] in kind g4 (`approxrt.approx.groups`)."""
    parts = quantize_groups4(weight)
    scale, offset = (
        np.repeat(parts[part].astype(np.float32), GROUP_WEIGHTS, axis=1)[:, : weight.shape[1]]
        for part in ("group_scale", "group_offset")
    )
    return torch.from_numpy(np.ascontiguousarray(scale)), torch.from_numpy(np.ascontiguousarray(offset))


def _on_lines(weight: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """f32[n, k] at the nearest of the sixteen points of its group's line; the gradient passes as if it were not."""
    with torch.no_grad():
        q = torch.round((weight - offset) / torch.where(scale == 0, 1.0, scale)).clamp_(0, 15)
        change = q * scale + offset - weight
    return weight + change


def on_grid(
    spec: DecoderSpec, tensors: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], bits: Mapping[str, int]
) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """(spec, tensors) of the artifact that computes what the student did: plain rounding on the grids it trained on."""
    out, kinds = dict(tensors), dict[str, LinearKind]()
    for name, width in bits.items():
        ratios = (1.0,) if name != "head.out" else None
        weight, mask = out.pop(f"{name}.weight"), masks.get(name)
        kinds[name], parts = (
            quantize_linear(weight, width, mask) if ratios is None else quantize_linear(weight, width, mask, ratios)
        )
        out |= {f"{name}.{part}": array for part, array in parts.items()}
    return spec.with_linear_kinds(kinds), out
