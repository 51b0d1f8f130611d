"""Teach a compressed decoder what the original says of plain text: distillation through the structure, tiles and grids
that the artifact will have.

The model starts from the plan's weights. Its linears compute on the artifact's int8 and int4 grids, activations and
weights, with straight-through gradients (`approxrt.quantization.fake_quantize`); pruned tiles stay zero. Norms, and
weights and biases of the layers' linears, are trained (AdamW); the embedding table and the head are not.

Linears that come with a grid (float16 scales and offsets of groups, or int4 with its steps) start on it, to the bit.
Scales and offsets of groups are trained as shares of what they were (as in PEQA, Kim et al. 2023, arXiv 2305.14152),
while integers change where a weight moves over half a step: a few of them, at these learning rates. A head that comes
with a grid is trained, too, where `trains_head` says so.

The loss is KL(teacher || model) a token, over the teacher's `TOP` likeliest next tokens and all others as one. The
text's own next tokens are not used: with a text of one kind the model would learn that kind of text, and its
perplexity there would say nothing of what was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.formats import FORMATS, LinearKind
from approxrt.artifact.storage.bsr import expand_mask
from approxrt.quantization.fake_quantize import (
    REFRESH,
    int4_steps,
    quantize_activations,
    quantize_activations_in_groups,
    quantize_weight4,
    quantize_weight8,
)
from approxrt.quantization.gptq import dequantized_linear, steps_of
from approxrt.quantization.grids import nearest
from approxrt.quantization.rtn import dequantize, quantize_linear, quantize_rows
from approxrt.quantization.trained_grids import CHANGE, GroupGrid, group_lines, on_lines
from approxrt.torch_models.decoder import TorchDecoder
from approxrt.training.objectives import LikelyTokens, likely_token_divergence
from approxrt.training.optimizer import decay_groups
from approxrt.training.trainer import Schedule, StepOptions, Trainer, shuffled_rows

TOP = 64
# How fast a grid is trained: a scale changes by a thousandth where a weight changes by a tenth of one.
CHANGE_LR = 8.0

# ids -> logits f32[tokens, vocab] of the baseline
Teacher = Callable[[list[int]], np.ndarray]


@dataclass(frozen=True)
class DecoderDistillationOptions:
    """`lr` is the highest; it rises over the first `warmup` of the time and falls to `final_lr` of it."""

    lr: float = 5e-5
    final_lr: float = 0.05
    warmup: float = 0.05
    sequences: int = 2  # a step
    weight_decay: float = 0.0
    seed: int = 0
    bf16: bool = False
    trains_head: bool = False
    device: str | torch.device = "cpu"

    def step_options(self) -> StepOptions:
        """Return what of this every trainer has."""
        schedule = Schedule(self.warmup, self.final_lr)
        return StepOptions(self.lr, schedule, betas=(0.9, 0.95), fused=False, bf16=self.bf16)


@dataclass(frozen=True)
class StoredLinears:
    """Say how the artifact will hold linears.

    kinds   by linear, as of `approxrt.quantization.gptq.round_weights`; what it does not name computes in float
    masks   of tiles, by linear
    grids   tensors of linears that start on a grid, for all of `kinds` or for none; the embedding table then is what it
            is, and not rounded to int8
    """

    kinds: Mapping[str, LinearKind]
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    grids: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherText:
    """Hold what is learnt from: token ids i64[sequences, tokens], and who says what comes next in them."""

    token_ids: Tensor
    teacher: Teacher


class DecoderDistillation(Trainer):
    """Train a model on sequences of text, which come in a shuffled order, each once an epoch.

    spec, tensors  all-f32 decoder as the plan prunes and refits it
    """

    def __init__(
        self,
        spec: DecoderSpec,
        tensors: Mapping[str, np.ndarray],
        stored: StoredLinears,
        text: TeacherText,
        options: DecoderDistillationOptions,
    ) -> None:
        self.model = TorchDecoder(spec, tensors, options.device)
        super().__init__(self.model.device, options.step_options())
        device, kinds, masks = self.device, stored.kinds, stored.masks
        self.spec, self.kinds, self.masks = spec, dict(kinds), dict(masks)
        self._grids = {name: dict(parts) for name, parts in stored.grids.items()}
        self.teacher, self.options = text.teacher, options
        self.done = 0.0  # share of the training that lies behind
        self._taught: dict[int, LikelyTokens] = {}
        self._steps: dict[str, Tensor] = {}
        self._lines: dict[str, tuple[Tensor, Tensor]] = {}
        self.token_ids = text.token_ids.to(device)
        weights = self.model.weights
        if not self._grids:
            q, scale = quantize_rows(weights["embeddings.word.weight"].cpu().numpy())
            weights["embeddings.word.weight"] = torch.from_numpy(dequantize(q, scale)).to(device)
        if self._grids:
            pass  # all of them are on their grids
        elif spec.tied_embeddings:
            weights["head.out.weight"] = weights["embeddings.word.weight"]
        elif "head.out" in kinds:
            head = weights["head.out.weight"].cpu().numpy()
            _, parts = quantize_linear(head, kinds["head.out"])
            weights["head.out.weight"] = torch.from_numpy(dequantized_linear(parts, *head.shape)).to(device)
        self._elements = {
            name: torch.from_numpy(expand_mask(mask, *tensors[f"{name}.weight"].shape)).to(device)
            for name, mask in masks.items()
        }
        places = ("layers.", "head.") if options.trains_head else ("layers.",)
        self.learnt = {name: weights[name].requires_grad_() for name in weights if name.startswith(places)}
        self._mask_weights()
        whole = list(self.learnt.values())
        self._group_grids = {}
        for name, grid in self._grids.items():
            if FORMATS[kinds[name]].grouped and f"{name}.weight" in self.learnt:
                self._group_grids[name] = GroupGrid(grid, FORMATS[kinds[name]].limits, device)
                self.learnt |= {f"{name}.{part}": p for part, p in self._group_grids[name].changes.items()}
            elif kinds[name] == "s4":
                steps = steps_of(grid, *weights[f"{name}.weight"].shape)
                self._steps[name] = torch.from_numpy(steps.astype(np.float32)).to(device)
        changes = [p for name, p in self.learnt.items() if name.endswith(CHANGE)]
        groups = [group | {"factor": 1.0} for group in decay_groups(whole, options.weight_decay)]
        if changes:
            groups.append({"params": changes, "weight_decay": 0.0, "factor": CHANGE_LR})
        self.start_optimizer(groups)

    # -- steps ------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.token_ids) // self.options.sequences)

    def advance(self, done: float) -> float:
        """Take one optimiser step and return its loss in nats a token; `done` is the share of the training behind it.

        Raises TrainingError when it is not a number.
        """
        self.done = done
        return self.take_step()

    def trained(self) -> list[Tensor]:
        return list(self.learnt.values())

    def rate_share(self) -> float:
        return self.step_options.schedule.at_share(self.done)

    def next_loss(self) -> Tensor:
        rows = shuffled_rows(len(self.token_ids), self.options.sequences, self.options.seed, self.step)
        taught = [self._teach(int(row)) for row in rows]
        # In one pass: weights are put on their grids once.
        return likely_token_divergence(self.logits(self.token_ids[torch.from_numpy(rows).to(self.device)]), taught)

    def after_step(self) -> None:
        self._mask_weights()
        if (self.step + 1) % REFRESH == 0 and not self._grids:
            self._steps, self._lines = {}, {}

    def _teach(self, row: int) -> LikelyTokens:
        if row not in self._taught:
            logits = np.array(self.teacher(self.token_ids[row].cpu().tolist()), np.float32)
            self._taught[row] = LikelyTokens.of(torch.from_numpy(logits).to(self.device), TOP)
        return self._taught[row]

    # -- the model -------------------------------------------------------------

    def logits(self, ids: Tensor) -> Tensor:
        """[batch, tokens, vocab] of i64[batch, tokens], on the artifact's grids."""
        x = self.model.embed(ids)
        for layer in range(len(self.spec.layers)):
            x = self.model.layer(layer, x, self._linear)
        return self.model.head(x, self._linear)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weights, kind = self.model.weights, self.kinds.get(name)
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if name in self._grids:
            if FORMATS[self.kinds[name]].grouped:
                x = quantize_activations_in_groups(x)
                if name in self._group_grids:
                    weight = self._group_grids[name](weight)
            else:
                x, weight = quantize_activations(x), quantize_weight4(weight, self._steps[name])
        elif name == "head.out" and (kind or self.spec.tied_embeddings):
            x = quantize_activations(x)  # its weights are on their grid already
        elif kind == "s8":
            x, weight = quantize_activations(x), quantize_weight8(weight)
        elif kind == "s4":
            if name not in self._steps:
                steps = int4_steps(weight.detach().cpu().numpy(), self.masks.get(name))
                self._steps[name] = torch.from_numpy(steps).to(self.device)
            x, weight = quantize_activations(x), quantize_weight4(weight, self._steps[name])
        elif kind == "g4":
            if name not in self._lines:
                scale, offset = group_lines(weight.detach().cpu().numpy())
                self._lines[name] = scale.to(self.device), offset.to(self.device)
            x, weight = quantize_activations_in_groups(x), on_lines(weight, *self._lines[name])
        return functional.linear(x, weight, bias)

    def _mask_weights(self) -> None:
        with torch.no_grad():
            for name, kept in self._elements.items():
                self.learnt[f"{name}.weight"].mul_(kept)

    # -- what is kept --------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of what is trained, but for scales and offsets of grids."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.learnt.items() if not name.endswith(CHANGE)}

    def grids(self) -> dict[str, dict[str, np.ndarray]]:
        """The tensors of linears that started on grids, where they are now."""
        out = {}
        for name, grid in self._grids.items():
            if f"{name}.weight" in self.learnt:
                grid = self._group_grids[name].parts() if name in self._group_grids else grid
                grid = nearest(
                    self.learnt[f"{name}.weight"].detach().cpu().numpy(), grid, FORMATS[self.kinds[name]].limits
                )
            out[name] = grid
        return out

    def state(self) -> dict[str, Any]:
        """All that decides the next step, for torch.save."""
        return {
            "step": self.step,
            "weights": {name: p.detach() for name, p in self.learnt.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()` of a run with the same plan and options."""
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.learnt[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        if not self._grids:
            self._steps, self._lines = {}, {}


def on_grid(
    spec: DecoderSpec, tensors: Mapping[str, np.ndarray], stored: StoredLinears
) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """Return (spec, tensors) of the artifact that computes what the model did: plain rounding on its grids.

    stored  with the grids that linears have by now (`DecoderDistillation.grids`)
    """
    out, kinds = dict(tensors), dict[str, LinearKind]()
    for name, parts in stored.grids.items():
        del out[f"{name}.weight"]
        kinds[name] = stored.kinds[name]
        out |= {f"{name}.{part}": array for part, array in parts.items()}
    for name, kind in stored.kinds.items():
        if name in kinds:
            continue
        ratios = (1.0,) if name != "head.out" else None
        weight, mask = out.pop(f"{name}.weight"), stored.masks.get(name)
        kinds[name], parts = (
            quantize_linear(weight, kind, mask) if ratios is None else quantize_linear(weight, kind, mask, ratios)
        )
        out |= {f"{name}.{part}": array for part, array in parts.items()}
    return spec.with_linear_kinds(kinds), out
