"""Prune in rounds, each the best under the time and bytes that are still allowed, with training in between.

The time allowed falls from the dense model's to the target along a cubic (Zhu & Gupta 2017, arXiv 1710.01878). Every
round allocates anew over all blocks (`approxrt.planning.allocate`) with scores that are taken anew: that is worth more
than better scores taken once. The table only predicts; after each round the model is timed in
the engine and the prediction corrected, and the last round is repeated until the measured time fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from approxrt.artifact.spec.formats import LinearKind
from approxrt.compression.families.encoder import EncoderFamily, EncoderLimits
from approxrt.errors import CompressionError
from approxrt.planning.allocate import allocate
from approxrt.planning.encoder_options import DENSITIES, Block, BlockPart, BlockScores, LatencyTable, blocks_of
from approxrt.planning.plan import Limits, Option, Plan
from approxrt.pruning.structure import Structure, dead_structure
from approxrt.significance.latency import MeasuredTable, block_share
from approxrt.torch_models.encoder import TorchEncoder

TOLERANCE = 0.03
CORRECTIONS = 4
DOUBTFUL = 0.1  # over the target: as likely a busy machine as a wrong prediction

# What a whole model takes, in milliseconds on the workload, measured.
Timer = Callable[[TorchEncoder, Mapping[str, LinearKind]], float]


class Subject(Protocol):
    """Hold what is pruned: a model in training (`approxrt.training.distillation.Distillation`), or one that is
    refitted."""

    model: TorchEncoder

    def element_scores(self) -> dict[str, np.ndarray]:
        """Return, by linear, f32[out, in] what each weight is worth."""
        ...

    def prune(self, keep: Structure, masks: Mapping[str, np.ndarray]) -> None:
        """Take structure out, then set masks over the tiles of what remains; scores follow."""
        ...


@dataclass
class Rounds:
    """See the module's text.

    start_ms, target_ms   of the whole model on the workload
    max_bytes             of all blocks together in the artifact, or None
    lengths               tokens of the workload's sequences
    base_ms               what the table's blocks do not cover: embeddings, norms, head
    formats               to choose from; `kinds` has the last choice by linear
    densities             of tiles, to choose from
    noise                 what each format costs a block whose tiles all stay; None: nothing
    """

    recovery: Subject
    table: LatencyTable
    timer: Timer
    start_ms: float
    target_ms: float | None
    base_ms: float
    lengths: Sequence[int]
    max_bytes: int | None = None
    formats: tuple[LinearKind, ...] = ("s8",)
    densities: tuple[float, ...] = DENSITIES
    kinds: dict[str, LinearKind] = field(default_factory=dict)
    correction: float = 1.0
    noise: Callable[[Block], Mapping[LinearKind, float]] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def allowed_ms(self, progress: float) -> float | None:
        """Milliseconds of the whole model at `progress` in [0, 1] of the way."""
        if self.target_ms is None:
            return None
        return self.target_ms + max(0.0, self.start_ms - self.target_ms) * (1 - progress) ** 3

    def allowed_bytes(self, progress: float) -> int | None:
        """Bytes of all blocks at `progress` of the way."""
        if self.max_bytes is None:
            return None
        start = sum(option.bytes for option in self._dense_options())
        return round(self.max_bytes + max(0.0, start - self.max_bytes) * (1 - progress) ** 3)

    @property
    def needed(self) -> bool:
        """Tell whether something must be pruned: the model as it is exceeds a limit."""
        too_slow = self.target_ms is not None and self.start_ms > self.target_ms
        return too_slow or self.max_bytes is not None

    def prune(self, progress: float) -> Plan:
        """Prune once; at progress 1 again and again until the measured time fits."""
        last = progress >= 1
        for _ in range(CORRECTIONS if last else 1):
            plan = self._prune_once(progress)
            target = self.allowed_ms(progress)
            if target is None:
                break
            measured = self._measured(target)
            predicted = plan.ms + self.base_ms
            if last:
                self.correction *= measured / target if measured > target else 1.0
            else:
                # Bounded: one disturbed timing must not cost half of the model.
                self.correction = 0.5 * self.correction + 0.5 * min(2.0, max(0.5, measured / predicted))
            self.history.append(
                {
                    "progress": float(progress),
                    "target_ms": float(target),
                    "measured_ms": float(measured),
                    "error": float(plan.loss),
                }
            )
            # What was pruned is gone: a model that is already fast enough is not made slower again.
            if not last or measured <= target * (1 + TOLERANCE / 3):
                break
        return plan

    def _measured(self, target: float) -> float:
        """The model's time; one far above the target is taken again, since what is pruned for it does not come back."""
        measured = self.timer(self.recovery.model, self.kinds)
        if measured > (1 + DOUBTFUL) * target:
            measured = min(measured, self.timer(self.recovery.model, self.kinds))
        return measured

    def _prune_once(self, progress: float) -> Plan:
        scored = self._block_scores()  # not kept: they are as large as the model
        plan = self._allocate(progress, scored)
        self._apply(plan, scored)
        return plan

    def _block_scores(self) -> dict[Block, BlockScores]:
        spec, scores = self.recovery.model.spec, self.recovery.element_scores()
        return {block: BlockScores(spec, block, scores) for block in blocks_of(spec)}

    def _allocate(self, progress: float, scored: Mapping[Block, BlockScores]) -> Plan:
        model = self.recovery.model
        noise = {block: {} if self.noise is None else self.noise(block) for block in scored}
        shares = {b: block_share(model.spec, b.layer, b.kind, self.lengths) for b in scored}
        parts = [
            BlockPart(s, s.options(self.table, self.formats, noise[b], shares[b], self.densities))
            for b, s in scored.items()
        ]
        target = self.allowed_ms(progress)
        ms = None if target is None else target / self.correction - self.base_ms
        if ms is not None and ms <= 0:
            raise CompressionError(
                f"{target:.2f} ms cannot be reached: embeddings, norms and the head alone take {self.base_ms:.2f} ms"
            )
        plan = allocate(model.spec, parts, Limits(ms, self.allowed_bytes(progress)))
        if plan is None:
            raise CompressionError("no choice of blocks is small enough for the size that is asked for")
        return plan

    def _apply(self, plan: Plan, scored: Mapping[Block, BlockScores]) -> None:
        recovery, model = self.recovery, self.recovery.model
        masks: dict[str, np.ndarray] = {}
        kinds: dict[str, LinearKind] = {}
        for block, scores in scored.items():
            scheme = plan.schemes.get(block.linears[0])
            if scheme is not None:
                kept = (plan.keep.heads if block.kind == "attention" else plan.keep.channels)[block.layer]
                masks |= scores.masks(len(kept), scheme.density)
                kinds |= dict.fromkeys(block.linears, scheme.format)
        recovery.prune(plan.keep, masks)
        shapes = {name: tuple(model.weight(f"{name}.weight").shape) for name in masks}
        dead = dead_structure(model.spec, model.masks, shapes)
        if not dead.is_all_of(model.spec):
            recovery.prune(dead, {})
        self.kinds = {name: kind for name, kind in kinds.items() if name in model.masks}

    def _dense_options(self) -> Sequence[Option]:
        model = self.recovery.model
        scores = self.recovery.element_scores()
        out = []
        for block in blocks_of(model.spec):
            options = BlockScores(model.spec, block, scores).options(self.table, ("s8",), {})
            out.append(max(options, key=lambda option: option.bytes))
        return out


def formats_of(small: bool) -> tuple[LinearKind, ...]:
    """Return the formats to choose from: int4 costs time or accuracy, and is for models that must be small."""
    return ("s8", "s4") if small else ("s8",)


def rounds_towards(
    family: EncoderFamily, subject: Subject, table: MeasuredTable, limits: EncoderLimits, start_ms: float | None = None
) -> Rounds:
    """Return the rounds that lead `subject` to `limits`; `start_ms`: what it takes now, default: as timed."""
    model = subject.model
    return Rounds(
        subject,
        table,
        family.timer,
        start_ms=family.timer(model, {}) if start_ms is None else start_ms,
        target_ms=limits.ms,
        base_ms=table.base_ms,
        lengths=[len(text) for text in family.inputs.pruned.workload],
        max_bytes=limits.bytes,
        formats=formats_of(limits.bytes is not None),
        densities=family.densities(),
    )
