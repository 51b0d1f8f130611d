"""Do what every training does alike: put examples in order, set the learning rate, take a step.

A step computes the loss of a batch, in bfloat16 where that is asked for, and stops the training if it is not a number;
gradients are clipped to norm 1 and AdamW moves the weights. The rate rises in a line over the warm-up and falls in a
line afterwards (Devlin et al. 2018; Mosbach et al. 2020, arXiv 2006.04884).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from approxrt.errors import TrainingError
from approxrt.random import epoch_generator
from approxrt.torch_models.device import autocast
from approxrt.training.optimizer import adamw

CLIP_NORM = 1.0
LEAST_SHARE = 0.05  # of the learning rate, at the start of a warm-up that is counted in time
POOL_BATCHES = 50  # whose examples are sorted together: enough that batches have little padding, and stay random


@dataclass(frozen=True)
class Schedule:
    """The share of the highest learning rate: up over the share `warmup` of a training, then down to `final`."""

    warmup: float
    final: float = 0.0

    def at_step(self, step: int, steps: int) -> float:
        """Return the share for step number `step`, from 0, of `steps`."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return (step + 1) / warm
        return self._falling((steps - step) / max(1, steps - warm))

    def at_share(self, done: float) -> float:
        """Return it for a training that is measured in time, of which the share `done` is over."""
        if done < self.warmup:
            return max(LEAST_SHARE, done / self.warmup)
        return self._falling((1 - done) / (1 - self.warmup))

    def _falling(self, left: float) -> float:
        return self.final + (1 - self.final) * max(0.0, left)


@dataclass(frozen=True)
class StepOptions:
    """Say how every step is taken; `schedule` says which share of `lr`, the highest rate, it takes."""

    lr: float
    schedule: Schedule
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    fused: bool = True
    bf16: bool = False


class Trainer(ABC):
    """A training whose steps are taken one at a time by `advance`; a subclass knows the model and its loss.

    optimizer   AdamW; `start_optimizer` makes it. A group's own `factor` multiplies its learning rate
    step        how many steps are over
    loss        of the last step
    """

    optimizer: torch.optim.AdamW

    def __init__(self, device: torch.device, step_options: StepOptions) -> None:
        self.device, self.step_options = device, step_options
        self.step, self.loss = 0, math.nan

    @abstractmethod
    def trained(self) -> Sequence[Tensor]:
        """Return the parameters that are trained."""

    @abstractmethod
    def rate_share(self) -> float:
        """Return the share of the highest learning rate that the next step takes."""

    @abstractmethod
    def next_loss(self) -> Tensor:
        """Return the loss of the next step's batch, a scalar with gradients."""

    @property
    def about(self) -> str:
        """Say which training a step is of, for the error of one that diverges."""
        return ""

    def after_step(self) -> None:
        """Do what belongs to a step and follows the optimiser: hold pruned weights at zero."""
        return

    def start_optimizer(self, groups: list[dict[str, Any]]) -> None:
        """Begin with an optimiser that has seen no gradient yet."""
        self.optimizer = adamw(groups, self.step_options.lr, self.step_options.betas, self.step_options.fused)

    def take_step(self) -> float:
        """Take one step and return its loss. Raises TrainingError when it is not a number."""
        options = self.step_options
        share = self.rate_share()
        for group in self.optimizer.param_groups:
            group["lr"] = options.lr * group.get("factor", 1.0) * share
        with autocast(self.device, options.bf16):
            loss = self.next_loss()
        value = self.loss = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.step + 1}{self.about} with lr {options.lr}: "
                "training has diverged; use a smaller --lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.trained()), CLIP_NORM)
        self.optimizer.step()
        self.after_step()
        self.step += 1
        return value


def bucketed_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the rows of each batch of one epoch: random, yet of like length, so that little padding is computed.

    Examples are shuffled, sorted by length within pools of 50 batches, split, and the
    batches shuffled. Depends on (seed, epoch) alone: a resumed run needs no state for it.
    """
    rng = epoch_generator(seed, epoch)
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    pool_size = POOL_BATCHES * batch_size
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


class Epochs:
    """The batches of like length of one epoch after another; which one a step has depends on its number alone."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.steps = max(1, -(-len(lengths) // batch_size))
        self._known: tuple[int, list[np.ndarray]] = (-1, [])

    def rows(self, step: int) -> np.ndarray:
        """Return the examples of step number `step`, counted over all epochs."""
        epoch, place = divmod(step, self.steps)
        if self._known[0] != epoch:
            self._known = (epoch, bucketed_batches(self.lengths, self.batch_size, self.seed, epoch))
        return self._known[1][place]


def shuffled_rows(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return the rows of a step where all of `count` examples are equally long; each comes once an epoch at most."""
    epoch, place = divmod(step, max(1, count // batch_size))
    order = epoch_generator(seed, epoch).permutation(count)
    return order[place * batch_size : (place + 1) * batch_size]
