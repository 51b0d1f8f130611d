"""The search for a decoder's plan: options with losses and times, plans that are built, measured and corrected."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.analysis.decoder_latency import DecoderLatency, measure_latency
from approxrt.analysis.decoder_options import KINDS, Choices, Kind, Plan, block_options, with_measured_blocks
from approxrt.analysis.decoder_removal import DecoderElement, measure_removals
from approxrt.approx.decoder_round import calibration, statistics
from approxrt.artifact.decoder_spec import DecoderSpec
from approxrt.compression.lm_build import Builder, Cut, build_in_sequence, refitted
from approxrt.compression.report import SLACK, choose, violation
from approxrt.compression.work import Candidate

if TYPE_CHECKING:
    from approxrt.compression.lm import LmCompression

STATISTICS_SEQUENCES, ROUNDING_SEQUENCES, REMOVAL_SEQUENCES = 8, 12, 2
TRIES_UNTIL = 0.45  # of the budget, where training follows
TRIES = 3
TILES_SHARE = 0.2  # of the budget, that scoring tiles may take
# Before anything is measured: what is really lost, as a share of what is predicted.
FIRST_SCALE = 1.0
# A plan that is trained may lose so many times what is allowed before.
BEFORE_TRAINING = 3.0


class Search:
    """Of one compression, on a decoder in the coordinates in which it is rounded."""

    def __init__(self, compression: LmCompression, spec: DecoderSpec, tensors: dict[str, np.ndarray]) -> None:
        self.c, self.spec, self.tensors = compression, spec, tensors

    def run(self) -> tuple[Cut, Plan] | None:
        """Make candidates; what training starts from, or None where there is nothing to train or to win."""
        builder, choices = self._choices()
        tries: list[dict[str, float]] = list(self.c.work.read("tries") or [])
        plan: Plan | None = None
        trains = self.c.options.recipe == "train"
        while len(tries) < TRIES and self.c.left() > self.c.last_check:
            if trains and tries and self.c.elapsed() > TRIES_UNTIL * self.c.options.budget:
                break
            new = self._plan(choices, tries, self.c.allowed)
            if plan is not None and new.kinds == plan.kinds and _same(new, plan):
                break
            plan = new
            candidate = self.c.add(builder.build(plan), {"plan": plan.to_json(), "trained": 0})
            tries.append(self._learnt(plan, candidate))
            self.c.work.write("tries", tries)
            if self._good_enough(candidate, tries[-1]):
                break
        best = self._best_plan()
        again = any("rounded" in candidate.about for candidate in self.c.work.candidates())
        if best is not None and not again and self.c.left() > 2 * self.c.last_check:
            self.c.tick("rounding in sequence")
            batch = calibration(self.c.calibrating, ROUNDING_SEQUENCES, self.c.sequence)
            cut = builder.cut(best)
            built = build_in_sequence(cut.spec, refitted(cut), cut.masks, best, batch, self.c.tick)
            self.c.add(built, {"plan": best.to_json(), "trained": 0, "rounded": "in sequence"})
        if not trains or not tries:
            return None
        if self._target() is not None:
            if self._met():
                return None
            wanted = self._best_plan() or plan
        else:
            wanted = self._plan(choices, tries, BEFORE_TRAINING * self.c.allowed)
        if wanted is None or self.c.left() < 2 * self.c.last_check:
            return None
        return builder.cut(wanted), wanted

    def _choices(self) -> tuple[Builder, Choices]:
        """Statistics, measured times, losses of removal, scores of tiles: the options."""
        spec, tensors = self.spec, self.tensors
        batch = calibration(self.c.calibrating, STATISTICS_SEQUENCES, self.c.sequence)
        stats = statistics(spec, tensors, batch, self.c.tick, self.c.within_share("statistics"))
        latency = self._latency(spec)
        builder = Builder(spec, tensors, stats)
        begun, allowed = self.c.elapsed(), TILES_SHARE * self.c.options.budget

        def afford(share: float) -> bool:
            spent = self.c.elapsed() - begun
            return share < 0.02 or spent / share <= allowed

        if not builder.score(afford, self.c.tick):
            self.c.note("sparse tiles were left out: scoring them would take more than a fifth of the budget")
        choices = builder.choices(latency, self.c.tick, self.c.within_share("rounding"))
        blocks = block_options(spec, tensors, stats, self.c.tick)
        measured = self._removals(spec, tensors, blocks, {name: found.mean for name, found in stats.items()})
        # What nobody has measured stays in part.
        choices.blocks = {
            name: options if name in measured else options[:-1]
            for name, options in with_measured_blocks(blocks, measured).items()
        }
        return builder, choices

    def _latency(self, spec: Any) -> DecoderLatency:
        known = self.c.work.read("latency")
        named = {kind.name: kind for kind in KINDS}
        if known is None:
            found = measure_latency(spec, KINDS, self.c.threads, progress=self.c.tick)
            known = {
                part: {kind.name: value for kind, value in table.items()}
                for part, table in (("per_byte", found.per_byte), ("head", found.head))
            }
            self.c.work.write("latency", known)
        tables: list[dict[Kind, float]] = [
            {named[name]: value for name, value in known[part].items()} for part in ("per_byte", "head")
        ]
        return DecoderLatency(*tables)

    def _removals(self, spec: Any, tensors: Any, blocks: Any, means: Any) -> dict[str, float]:
        """Measured nats of removing whole blocks, those of the least predicted loss first, as far as time goes."""
        known = self.c.work.read("removals")
        if known is not None:
            return dict(known)
        elements = {f"layers.{i}.{kind}": DecoderElement(i, kind) for i in range(len(spec.layers))
                    for kind in ("attention", "ffn")}  # fmt: skip
        order = sorted(blocks, key=lambda name: blocks[name][-1].loss)
        # Other tokens than those of the statistics, where there are as many.
        text = (
            self.c.calibrating[self.c.sequence :]
            if len(self.c.calibrating) >= 2 * self.c.sequence
            else self.c.calibrating
        )
        batch = calibration(text, REMOVAL_SEQUENCES, self.c.sequence)
        _, found = measure_removals(
            spec, tensors, batch, means, [elements[name] for name in order],
            lambda done, total, text: self.c.tick(text), self.c.within_share("removal"),
        )  # fmt: skip
        measured = {removal.element.name: removal.change for removal in found}
        self.c.work.write("removals", measured)
        return measured

    # -- plans ---------------------------------------------------------------------

    def _target(self) -> float | None:
        """Seconds a token, or bytes of linears, that are asked for; None: as good as max_drop allows."""
        baseline = self.c.baseline()
        if self.c.cost == "bytes":
            if self.c.options.shrink is None or self.c.options.shrink <= 1:
                return None
            first = self.c.work.candidates()[0]
            linears = sum(KINDS[0].bytes(l.out_features, l.in_features) for _, l in self.spec.linears())
            return max(1.0, baseline["f32_bytes"] / self.c.options.shrink - (first.bytes - linears))
        wanted = self.c.options.speedup
        return None if wanted is None or wanted <= 1 else baseline["ms"] / 1e3 / wanted

    def _plan(self, choices: Choices, tries: list[dict[str, float]], allowed: float) -> Plan:
        """By what was learnt: the least loss within the target, or the least time within `allowed` nats."""
        target = self._target()
        if target is not None:
            factor = tries[-1]["cost"] / tries[-1]["predicted_cost"] if tries else self._first_factor(choices)
            return choices.within(
                lambda plan: getattr(plan, self.c.cost) * factor <= target, self.c.cost, cheapest=True
            )
        scale = tries[-1]["scale"] if tries else FIRST_SCALE
        return choices.within(lambda plan: scale * plan.loss <= allowed, self.c.cost)

    def _learnt(self, plan: Plan, candidate: Candidate) -> dict[str, float]:
        """What a built plan says of the predictions."""
        loss = math.log1p(candidate.drop)
        # All of the loss may be due to activations, so never below a tenth.
        scale = max(0.1, loss / plan.loss) if plan.loss > 0 else FIRST_SCALE
        if self.c.cost == "bytes":
            return {"scale": scale, "cost": 1.0, "predicted_cost": 1.0, "loss": loss}
        return {"scale": scale, "cost": self._seconds(candidate), "predicted_cost": plan.seconds, "loss": loss}

    def _seconds(self, candidate: Candidate) -> float:
        """A token's, as they would have been beside the baseline: the machine's own speed drifts."""
        return float(self.c.baseline()["ms"]) / 1e3 / candidate.speedup

    def _first_factor(self, choices: Choices) -> float:
        """Measured over predicted cost of int8, the first candidate."""
        if self.c.cost == "bytes":
            return 1.0
        predicted = sum(options[0].seconds for options in choices.linears.values())
        return self._seconds(self.c.work.candidates()[0]) / predicted

    def _good_enough(self, candidate: Candidate, learnt: dict[str, float]) -> bool:
        target = self._target()
        if target is None:
            return 0.7 * self.c.allowed < learnt["loss"] <= self.c.allowed
        return self.c.cost == "bytes" or SLACK <= target / learnt["cost"] <= 1 / SLACK

    def _best_plan(self) -> Plan | None:
        """Of the best candidate that has one and was not trained."""
        planned = [c for c in self.c.work.candidates() if isinstance(c.about["plan"], dict) and not c.about["trained"]]
        return Plan.from_json(choose(planned, self.c.options).about["plan"]) if planned else None

    def _met(self) -> bool:
        return any(violation(c, self.c.options) == 0 for c in self.c.work.candidates())


def _same(a: Plan, b: Plan) -> bool:
    return all(
        np.array_equal(x, y)
        for mine, theirs in ((a.keep.heads, b.keep.heads), (a.keep.units, b.keep.units))
        for x, y in zip(mine, theirs, strict=True)
    )
