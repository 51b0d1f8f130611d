"""Distillation: a model learns from the baseline while more and more of it is taken away.

Loss: (1 - a) CE + a T^2 KL(teacher || model) + b sum over layers of the mean squared error of hidden states (Hinton
et al. 2015, arXiv 1503.02531; Kurtic et al. 2022, arXiv 2203.07259). For scores: squared errors to labels and teacher;
for embedders: one minus cosine to the teacher's vector. AdamW, warm-up, linear decay, gradients clipped to norm 1.

A cut in between follows scores that are taken of the model as it then is (`scores`, `means`, from
`approxrt.significance.scoring`): a model that matches its teacher has no gradients of its own that could tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from approxrt.artifact.spec.formats import LinearKind
from approxrt.artifact.storage.bsr import expand_mask
from approxrt.pruning.structure import Structure, mean_biases, selections, shrink_masks, shrunk_spec
from approxrt.quantization.fake_quantize import FakeQuantizer
from approxrt.random import Stream, generator
from approxrt.tasks.examples import Examples
from approxrt.torch_models.device import random_state, set_random_state
from approxrt.torch_models.encoder import TorchEncoder, make_batch
from approxrt.training.objectives import label_errors, state_error, teacher_errors, vector_error
from approxrt.training.optimizer import decay_groups
from approxrt.training.teacher import Teacher
from approxrt.training.trainer import Epochs, Schedule, StepOptions, Trainer

RESPLIT_SHARE = 0.3  # of a batch's texts that are split into smaller pieces, where there is a split


@dataclass(frozen=True)
class DistillationOptions:
    """Say how a model is trained. `lr` is the highest; the last is `lr * final_lr`."""

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

    def step_options(self) -> StepOptions:
        """Return what of this every trainer has."""
        schedule = Schedule(self.warmup, self.final_lr)
        return StepOptions(self.lr, schedule, betas=(0.9, 0.98), bf16=self.bf16)


class Distillation(Trainer):
    """A model in training; see the module's text. Steps are taken one at a time, cuts in between by `cut`."""

    def __init__(
        self, model: TorchEncoder, examples: Examples, teacher: Teacher, steps: int, options: DistillationOptions
    ) -> None:
        super().__init__(model.device, options.step_options())
        self.model, self.examples, self.teacher = model, examples, teacher
        self.steps, self.options = max(1, steps), options
        self.epochs = Epochs(examples.lengths, options.batch_size, options.seed)
        # Of each linear: scores of its weights f32[out, in], and means of its inputs f32[in]. Cuts take them along.
        self.scores: dict[str, Tensor] = {}
        self.means: dict[str, Tensor] = {}
        self.quantizer: FakeQuantizer | None = None
        model.dropout = options.dropout
        torch.manual_seed(options.seed)
        self._restart_optimizer({})

    # -- steps ------------------------------------------------------------------

    def advance(self) -> float:
        """Take one optimiser step and return its loss. Raises TrainingError when it is not a number."""
        self.model.train()
        return self.take_step()

    @property
    def steps_per_epoch(self) -> int:
        return self.epochs.steps

    @property
    def about(self) -> str:
        return f" of {self.steps}"

    def rate_share(self) -> float:
        return self.step_options.schedule.at_step(self.step, self.steps)

    def next_loss(self) -> Tensor:
        return self._loss(self.epochs.rows(self.step))

    def after_step(self) -> None:
        self.model.apply_masks()
        if self.quantizer is not None:
            self.quantizer.advance()

    def _token_ids(self, rows: np.ndarray) -> tuple[list[Sequence[int]], list[Sequence[int]], np.ndarray]:
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
        options, teacher, device = self.options, self.teacher, self.device
        ids, types, whole = self._token_ids(rows)
        batch = make_batch(ids, types, device)
        out = self.model(batch)
        labels = None if self.examples.labels is None else torch.from_numpy(self.examples.labels[rows]).to(device)
        if out.logits is None:
            loss = vector_error(out.pooled, torch.from_numpy(teacher.pooled[rows]).to(device))
        else:
            assert teacher.logits is not None and labels is not None
            taught = torch.from_numpy(teacher.logits[rows]).to(device)
            own = label_errors(out.logits, labels)
            theirs = teacher_errors(out.logits, taught, options.temperature, not labels.is_floating_point())
            share = torch.full((len(rows),), options.teacher_share)
            if self.examples.labelled is not None:
                share[torch.from_numpy(rows >= self.examples.labelled)] = 1.0
            share = share.to(device)
            loss = ((1 - share) * own + share * theirs).mean()
        if options.hidden_weight and teacher.layers:
            # Tokens of a text that is split anew are not the teacher's: its states say nothing of them.
            chosen = torch.from_numpy(whole).to(device)
            mask = batch.mask[chosen][:, :, None].float()
            for layer, target in zip(teacher.layers, teacher.hidden(rows[whole], batch.ids.shape[1]), strict=True):
                error = state_error(out.hidden[layer][chosen], target.to(device), mask)
                loss = loss + options.hidden_weight * error
        return loss

    def element_scores(self) -> dict[str, np.ndarray]:
        """Return what each weight is worth, f32[out, in] by linear, as it was last told."""
        return {name: score.cpu().numpy() for name, score in self.scores.items()}

    # -- cuts -------------------------------------------------------------------

    def prune(self, keep: Structure, masks: Mapping[str, np.ndarray]) -> None:
        """Take structure out for real, then set masks (over the tiles of what remains).

        Optimiser moments, scores and means follow; biases take over what the cut put out on average.
        """
        model = self.model
        tensors = {name: model.weight(name).detach().cpu().numpy() for name in model.names()}
        means = {name: mean.cpu().numpy() for name, mean in self.means.items()}
        biases = mean_biases(model.spec, tensors, keep, means)
        chosen = selections(model.spec, keep)
        old_masks = shrink_masks(model.spec, model.masks, chosen, tensors)
        state = {name: self.optimizer.state.get(model.weight(name), {}) for name in model.names()}
        with torch.no_grad():
            for name, value in biases.items():
                model.weight(name).copy_(torch.from_numpy(value))
        for name, selection in chosen.items():
            parameter = model.weight(name)
            if selection.indices is None:
                del model.weights[name.replace(".", "__")]
                state.pop(name)
                self.scores.pop(name.removesuffix(".weight"), None)
                self.means.pop(name.removesuffix(".weight"), None)
                continue
            index = torch.from_numpy(np.asarray(selection.indices)).to(model.device)
            taken = torch.index_select(parameter.detach(), selection.axis, index).clone()
            model.weights[name.replace(".", "__")] = torch.nn.Parameter(taken)
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state[name]:
                    state[name][key] = torch.index_select(state[name][key], selection.axis, index).clone()
            linear = name.removesuffix(".weight")
            if name.endswith(".weight") and linear in self.scores:
                self.scores[linear] = torch.index_select(self.scores[linear], selection.axis, index).clone()
            if selection.axis == 1 and linear in self.means:
                self.means[linear] = self.means[linear][index].clone()
        model.spec = shrunk_spec(model.spec, keep)
        model.masks = old_masks
        # What is pruned stays pruned: a density that is rounded up does not bring zeros back.
        masks = {name: mask & old_masks[name] if name in old_masks else mask for name, mask in masks.items()}
        self._absorb_means(masks)
        model.set_masks(masks)
        if self.quantizer is not None:
            self.quantizer.steps = {}
        self._restart_optimizer(state)

    def _absorb_means(self, masks: Mapping[str, np.ndarray]) -> None:
        """Biases take over W[pruned] E[x] of the tiles that go now."""
        with torch.no_grad():
            for name, mask in masks.items():
                weight = self.model.weight(f"{name}.weight")
                if name in self.means:
                    gone = torch.from_numpy(~expand_mask(mask, *weight.shape)).to(weight.device)
                    self.model.weight(f"{name}.bias").add_((weight * gone) @ self.means[name])

    def quantize(self, kinds: Mapping[str, LinearKind]) -> None:
        """Let linears compute as the artifact's will from now on."""
        self.quantizer = FakeQuantizer(self.model, kinds)

    # -- optimiser and state ----------------------------------------------------

    def trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.weights.values() if p.requires_grad]

    def _restart_optimizer(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Take a new optimiser for the parameters as they are, with the moments of `state` by parameter name."""
        self.start_optimizer(decay_groups(self.trained(), self.options.weight_decay))
        for name in self.model.names():
            parameter = self.model.weight(name)
            if parameter.requires_grad and state.get(name):
                self.optimizer.state[parameter] = state[name]

    def state(self) -> dict[str, Any]:
        """All that decides the next step, for torch.save."""
        named = {name: self.optimizer.state.get(self.model.weight(name), {}) for name in self.model.names()}
        return {
            "step": self.step,
            "steps": self.steps,
            "weights": {name: self.model.weight(name).detach() for name in self.model.names()},
            "layers": [[l.num_heads, l.intermediate_size] for l in self.model.spec.layers],
            "masks": {name: torch.from_numpy(mask) for name, mask in self.model.masks.items()},
            "optimizer": named,
            "kinds": {} if self.quantizer is None else self.quantizer.kinds,
            "age": 0 if self.quantizer is None else self.quantizer.age,
            "rng": random_state(self.model.device),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()` of a run with the same options."""
        model = self.model
        whole = Structure.of(model.spec)
        keep = Structure(
            tuple(h[:n] for h, (n, _) in zip(whole.heads, state["layers"], strict=True)),
            tuple(u[:n] for u, (_, n) in zip(whole.channels, state["layers"], strict=True)),
        )
        model.spec = shrunk_spec(model.spec, keep)
        frozen = {name for name in model.names() if not model.weight(name).requires_grad}
        model.weights = torch.nn.ParameterDict(
            {
                name.replace(".", "__"): torch.nn.Parameter(
                    value.to(model.device, copy=True), requires_grad=name not in frozen
                )
                for name, value in state["weights"].items()
            }
        )
        model.masks = {}
        model.set_masks({name: mask.numpy() for name, mask in state["masks"].items()})
        self.step, self.steps = state["step"], state["steps"]
        moments = {
            name: {key: value.to(self.device) if key.startswith("exp_avg") else value for key, value in found.items()}
            for name, found in state["optimizer"].items()
        }
        self._restart_optimizer(moments)
        if state["kinds"]:
            self.quantize(state["kinds"])
            assert self.quantizer is not None
            self.quantizer.age = state["age"]
        set_random_state(state["rng"], model.device)


def encoder_linears(model: TorchEncoder) -> list[str]:
    """The linears of the layers: what can be pruned."""
    return [name for name, _ in model.spec.linears() if name.startswith("layers.")]
