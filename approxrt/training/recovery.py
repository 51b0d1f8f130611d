"""Recovery: a student learns from the dense model while more and more of it is taken away.

Loss: (1 - a) CE + a T^2 KL(teacher || student) + b sum over layers of the mean squared error of hidden states (Hinton
et al. 2015, arXiv 1503.02531; Kurtic et al. 2022, arXiv 2203.07259). For scores: squared errors to labels and teacher;
for embedders: one minus cosine to the teacher's vector. AdamW, warm-up, linear decay, gradients clipped to norm 1.

A cut in between follows scores that are taken of the student as it then is (`scores`, `means`, from
`approxrt.significance.scoring`): a student that matches its teacher has no gradients of its own that could tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from approxrt.artifact.storage.bsr import expand_mask
from approxrt.errors import TrainingError
from approxrt.pruning.structure import Structure, mean_biases, selections, shrink_masks, shrunk_spec
from approxrt.quantization.fake_quantize import FakeQuantizer
from approxrt.random import Stream, generator
from approxrt.tasks.examples import Examples
from approxrt.torch_models.device import autocast, random_state, set_random_state
from approxrt.torch_models.encoder import Student, make_batch
from approxrt.training.optimizer import decay_groups, fused
from approxrt.training.run import bucketed_batches
from approxrt.training.teacher import Teacher

RESPLIT_SHARE = 0.3  # of a batch's texts that are split into smaller pieces, where there is a split


@dataclass(frozen=True)
class RecoveryOptions:
    """How a student is trained. `lr` is the highest; the last is `lr * final_lr`."""

    lr: float = 1e-4
    final_lr: float = 0.02
    batch_size: int = 32
    warmup: float = 0.05
    weight_decay: float = 0.01
    temperature: float = 2.0
    teacher_share: float = 0.8
    hidden_weight: float = 1.0
    dropout: float = 0.0
    seed: int = 0
    bf16: bool = False


class Recovery:
    """A student in training; see the module's text. Steps are taken one at a time, cuts in between by `cut`."""

    def __init__(
        self, student: Student, examples: Examples, teacher: Teacher, steps: int, options: RecoveryOptions
    ) -> None:
        self.student, self.examples, self.teacher = student, examples, teacher
        self.steps, self.options = max(1, steps), options
        self.step = 0
        self.lengths = examples.lengths
        self.steps_per_epoch = max(1, -(-len(examples.ids) // options.batch_size))
        # Of each linear: scores of its weights f32[out, in], and means of its inputs f32[in]. Cuts take them along.
        self.scores: dict[str, Tensor] = {}
        self.means: dict[str, Tensor] = {}
        self.quantizer: FakeQuantizer | None = None
        student.dropout = options.dropout
        torch.manual_seed(options.seed)
        self._batches: tuple[int, list[np.ndarray]] = (-1, [])
        self.optimizer = self._optimizer({})
        self.loss = math.nan

    # -- steps ------------------------------------------------------------------

    def advance(self) -> float:
        """One optimiser step; returns its loss. Raises TrainingError when it is not a number."""
        options, student = self.options, self.student
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self._batches[0] != epoch:
            self._batches = (epoch, bucketed_batches(self.lengths, options.batch_size, options.seed, epoch))
        rows = self._batches[1][place]
        student.train()
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * self._schedule()
        with autocast(student.device, options.bf16):
            loss = self._loss(rows)
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise TrainingError(
                f"the loss is {self.loss} at step {self.step + 1} of {self.steps} with lr {options.lr}: "
                "training has diverged; use a smaller --lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained(), 1.0)
        self.optimizer.step()
        student.apply_masks()
        if self.quantizer is not None:
            self.quantizer.advance()
        self.step += 1
        return self.loss

    def _schedule(self) -> float:
        warm = max(1, round(self.options.warmup * self.steps))
        if self.step < warm:
            return (self.step + 1) / warm
        left = (self.steps - self.step) / max(1, self.steps - warm)
        return self.options.final_lr + (1 - self.options.final_lr) * max(0.0, left)

    def _pieces(self, rows: np.ndarray) -> tuple[list[Sequence[int]], list[Sequence[int]], np.ndarray]:
        """(ids, types, bool[b]: as the teacher read it) of a batch; some texts are split into smaller pieces."""
        examples, resplit = self.examples, self.examples.resplit
        whole = np.ones(len(rows), bool)
        if resplit is not None:
            rng = generator(self.options.seed, Stream.RESPLIT, self.step)
            whole = rng.random(len(rows)) >= RESPLIT_SHARE
        sources = [(examples.ids, examples.types) if w or resplit is None else resplit for w in whole]
        ids = [source[0][i] for source, i in zip(sources, rows, strict=True)]
        types = [source[1][i] for source, i in zip(sources, rows, strict=True)]
        return ids, types, whole

    def _loss(self, rows: np.ndarray) -> Tensor:
        options, teacher = self.options, self.teacher
        pieces, kinds, whole = self._pieces(rows)
        device = self.student.device
        batch = make_batch(pieces, kinds, device)
        out = self.student(batch)
        labels = None if self.examples.labels is None else torch.from_numpy(self.examples.labels[rows]).to(device)
        if out.logits is None:
            loss = (
                1 - F.cosine_similarity(out.pooled.float(), torch.from_numpy(teacher.pooled[rows]).to(device), dim=1)
            ).mean()
        else:
            assert teacher.logits is not None and labels is not None
            taught, t = torch.from_numpy(teacher.logits[rows]).to(device), options.temperature
            if labels.is_floating_point():
                own = (out.logits[:, 0] - labels).square()
                theirs = (out.logits - taught).square().mean(1)
            else:
                own = F.cross_entropy(out.logits, labels, reduction="none")
                student, dense = (F.log_softmax(logits / t, 1) for logits in (out.logits, taught))
                theirs = t * t * F.kl_div(student, dense, log_target=True, reduction="none").sum(1)
            share = torch.full((len(rows),), options.teacher_share, device=device)
            if self.examples.labelled is not None:
                share[torch.from_numpy(rows >= self.examples.labelled).to(device)] = 1.0
            loss = ((1 - share) * own + share * theirs).mean()
        if options.hidden_weight and teacher.layers:
            # Tokens of a text that is split anew are not the teacher's: its states say nothing of them.
            chosen = torch.from_numpy(whole).to(device)
            mask = batch.mask[chosen][:, :, None].float()
            count = mask.sum().clamp(min=1) * self.student.spec.hidden_size
            for layer, target in zip(teacher.layers, teacher.hidden(rows[whole], batch.ids.shape[1]), strict=True):
                error = (out.hidden[layer][chosen].float() - target.to(device)) * mask
                loss = loss + options.hidden_weight * error.square().sum() / count
        return loss

    def element_scores(self) -> dict[str, np.ndarray]:
        """What each weight is worth, f32[out, in] by linear, as it was last told."""
        return {name: score.cpu().numpy() for name, score in self.scores.items()}

    # -- cuts -------------------------------------------------------------------

    def cut(self, keep: Structure, masks: Mapping[str, np.ndarray]) -> None:
        """Take structure out for real, then set masks (over the tiles of what remains).

        Optimiser moments, scores and means follow; biases take over what the cut put out on average.
        """
        student = self.student
        tensors = {name: student.weight(name).detach().cpu().numpy() for name in student.names()}
        means = {name: mean.cpu().numpy() for name, mean in self.means.items()}
        biases = mean_biases(student.spec, tensors, keep, means)
        chosen = selections(student.spec, keep)
        old_masks = shrink_masks(student.spec, student.masks, chosen, tensors)
        state = {name: self.optimizer.state.get(student.weight(name), {}) for name in student.names()}
        with torch.no_grad():
            for name, value in biases.items():
                student.weight(name).copy_(torch.from_numpy(value))
        for name, selection in chosen.items():
            parameter = student.weight(name)
            if selection.indices is None:
                del student.weights[name.replace(".", "__")]
                state.pop(name)
                self.scores.pop(name.removesuffix(".weight"), None)
                self.means.pop(name.removesuffix(".weight"), None)
                continue
            index = torch.from_numpy(np.asarray(selection.indices)).to(student.device)
            taken = torch.index_select(parameter.detach(), selection.axis, index).clone()
            student.weights[name.replace(".", "__")] = torch.nn.Parameter(taken)
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state[name]:
                    state[name][key] = torch.index_select(state[name][key], selection.axis, index).clone()
            linear = name.removesuffix(".weight")
            if name.endswith(".weight") and linear in self.scores:
                self.scores[linear] = torch.index_select(self.scores[linear], selection.axis, index).clone()
            if selection.axis == 1 and linear in self.means:
                self.means[linear] = self.means[linear][index].clone()
        student.spec = shrunk_spec(student.spec, keep)
        student.masks = old_masks
        # What is pruned stays pruned: a density that is rounded up does not bring zeros back.
        masks = {name: mask & old_masks[name] if name in old_masks else mask for name, mask in masks.items()}
        self._absorb_means(masks)
        student.set_masks(masks)
        if self.quantizer is not None:
            self.quantizer.steps = {}
        self.optimizer = self._optimizer(state)

    def _absorb_means(self, masks: Mapping[str, np.ndarray]) -> None:
        """Biases take over W[pruned] E[x] of the tiles that go now."""
        with torch.no_grad():
            for name, mask in masks.items():
                weight = self.student.weight(f"{name}.weight")
                if name in self.means:
                    gone = torch.from_numpy(~expand_mask(mask, *weight.shape)).to(weight.device)
                    self.student.weight(f"{name}.bias").add_((weight * gone) @ self.means[name])

    def quantize(self, bits: Mapping[str, int]) -> None:
        """From now on linears compute as the artifact's will."""
        self.quantizer = FakeQuantizer(self.student, bits)

    # -- optimiser and state ----------------------------------------------------

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.student.weights.values() if p.requires_grad]

    def _optimizer(self, state: Mapping[str, dict[str, Any]]) -> torch.optim.AdamW:
        trained = [(name, self.student.weight(name)) for name in self.student.names()]
        trained = [(name, p) for name, p in trained if p.requires_grad]
        groups = decay_groups((p for _, p in trained), self.options.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.options.lr, betas=(0.9, 0.98), fused=fused(self.student.device))
        for name, p in trained:
            if state.get(name):
                optimizer.state[p] = state[name]
        return optimizer

    def state(self) -> dict[str, Any]:
        """All that decides the next step, for torch.save."""
        named = {name: self.optimizer.state.get(self.student.weight(name), {}) for name in self.student.names()}
        return {
            "step": self.step,
            "steps": self.steps,
            "weights": {name: self.student.weight(name).detach() for name in self.student.names()},
            "layers": [[l.num_heads, l.intermediate_size] for l in self.student.spec.layers],
            "masks": {name: torch.from_numpy(mask) for name, mask in self.student.masks.items()},
            "optimizer": named,
            "bits": {} if self.quantizer is None else self.quantizer.bits,
            "age": 0 if self.quantizer is None else self.quantizer.age,
            "rng": random_state(self.student.device),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()` of a run with the same options."""
        student = self.student
        whole = Structure.of(student.spec)
        keep = Structure(
            tuple(h[:n] for h, (n, _) in zip(whole.heads, state["layers"], strict=True)),
            tuple(u[:n] for u, (_, n) in zip(whole.units, state["layers"], strict=True)),
        )
        student.spec = shrunk_spec(student.spec, keep)
        frozen = {name for name in student.names() if not student.weight(name).requires_grad}
        student.weights = torch.nn.ParameterDict(
            {
                name.replace(".", "__"): torch.nn.Parameter(
                    value.to(student.device, copy=True), requires_grad=name not in frozen
                )
                for name, value in state["weights"].items()
            }
        )
        student.masks = {}
        student.set_masks({name: mask.numpy() for name, mask in state["masks"].items()})
        self.step, self.steps = state["step"], state["steps"]
        self.optimizer = self._optimizer({name: dict(value) for name, value in state["optimizer"].items()})
        if state["bits"]:
            self.quantize(state["bits"])
            assert self.quantizer is not None
            self.quantizer.age = state["age"]
        set_random_state(state["rng"], student.device)


def encoder_linears(student: Student) -> list[str]:
    """The linears of the layers: what can be pruned."""
    return [name for name, _ in student.spec.linears() if name.startswith("layers.")]
