"""The search for a decoder's plan: options with losses and times, plans that are built, measured and corrected."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.compression.families.decoder import DecoderFamily
from approxrt.compression.families.decoder_build import Builder, build_in_sequence, refitted
from approxrt.compression.records import Candidate, DecodeTimes, Learnt, Origin, Provenance
from approxrt.compression.report import SLACK, choose, violation
from approxrt.planning.allocate import allocate
from approxrt.planning.decoder_options import (
    HEAD,
    DecoderOptions,
    block_options,
    with_measured_blocks,
)
from approxrt.planning.plan import Limits, Option, Plan
from approxrt.progress import Progress
from approxrt.pruning.structure import GROUPS
from approxrt.quantization.calibration import calibration
from approxrt.quantization.scheme import SCHEMES, Scheme
from approxrt.significance.decoder_latency import DecoderLatency, measure_latency
from approxrt.significance.decoder_removal import HeldOutText, head_divergence
from approxrt.significance.decoder_statistics import collect_from_text
from approxrt.significance.elements import Element
from approxrt.significance.removal import measure_removals
from approxrt.torch_models.decoder import TorchDecoder
from approxrt.training.budget import BudgetSpent

STATISTICS_SEQUENCES, ROUNDING_SEQUENCES, REMOVAL_SEQUENCES, HEAD_SEQUENCES = 8, 12, 2, 2
# Of the blocks whose removal costs least, the first so many are measured again, on text of their own: the least of many
# noisy numbers is too small.
AGAIN, AGAIN_SEQUENCES = 12, 6
FINE_GROUPS = 48  # of FFN channels a layer, where no transform binds them together and no tiles are scored
TRIES_UNTIL = 0.45  # of the budget, where training follows
TRIES = 3
# Shares of the budget that steps may take at most, where they have a choice.
SHARES = {"statistics": 0.12, "removal": 0.08, "rounding": 0.12}
TILES_SHARE = 0.2  # of the budget, that scoring tiles may take
# Before anything is measured: what is really lost, as a share of what is predicted.
FIRST_SCALE = 1.0
# A plan that is trained may lose so many times what is allowed before.
BEFORE_TRAINING = 3.0


class Search:
    """Search for the plan of one compression, of a decoder in the coordinates in which it is rounded."""

    def __init__(self, family: DecoderFamily, spec: DecoderSpec, tensors: dict[str, np.ndarray]) -> None:
        self.family, self.job, self.spec, self.tensors = family, family.job, spec, tensors
        self.baseline = family.baseline()
        self.reachable = True
        self.linear_bytes = 0  # of the first candidate

    def run(self) -> tuple[Builder, Plan] | None:
        """Make candidates; what training starts from, or None where there is nothing to train or to win.

        Raises BudgetSpent where time ran out before that was found.
        """
        builder, choices = self._choices()
        self.linear_bytes = sum(options[0].bytes for options in choices.linears.values())
        self._check_reach(choices)
        tries = self.job.work.load("tries", list[Learnt]) or []
        plan: Plan | None = None
        trains = self.job.options.recipe == "train"
        while len(tries) < TRIES and self.job.budget.left() > self.family.last_check:
            if trains and tries and self.job.budget.elapsed() > TRIES_UNTIL * self.job.options.budget:
                break
            new = self._plan(choices, tries, self.family.allowed)
            if plan is not None and new.schemes == plan.schemes and _same(new, plan):
                break
            plan = new
            candidate = self.family.build(builder.build(plan), Provenance(Origin.PLANNED, plan))
            tries.append(self._learnt(plan, candidate))
            self.job.work.save("tries", tries)
            if self._good_enough(candidate, tries[-1]):
                break
        best = self._best_plan() if builder.own is None or self._rounds(self._best_plan(), builder) else None
        again = any(candidate.provenance.in_sequence for candidate in self.job.work.candidates())
        if best is not None and not again and self.job.budget.left() > 2 * self.family.last_check:
            self.job.tick("rounding in sequence")
            batch = calibration(self.family.inputs.calibrating, ROUNDING_SEQUENCES, self.family.inputs.sequence)
            pruned = refitted(builder.prune(best))
            built = build_in_sequence(pruned, best, batch.to(self.job.device), builder.own, self.job.tick)
            self.family.build(built, Provenance(Origin.PLANNED, best, in_sequence=True))
        if not trains:
            return None
        if not tries:
            raise BudgetSpent
        if self._target() is not None:
            if self._met():
                return None
            wanted = self._best_plan() or plan
        else:
            wanted = self._plan(choices, tries, BEFORE_TRAINING * self.family.allowed)
        if wanted is None:
            return None
        if self.job.budget.left() < 2 * self.family.last_check:
            self.job.notes.add("the time left is too short for distillation", False)
            raise BudgetSpent
        return builder, wanted

    def _rounds(self, plan: Plan | None, builder: Builder) -> bool:
        """Tell whether a linear of the plan's layers is not on the checkpoint's own grid."""
        assert builder.own is not None
        schemes = {} if plan is None else plan.schemes
        return any(scheme != builder.own.scheme(name) for name, scheme in schemes.items() if name != HEAD)

    def _check_reach(self, choices: DecoderOptions) -> None:
        """Find out whether what is asked for lies beyond all plans: then say so, and be as good as `max_drop`
        allows."""
        target = self._target()
        if target is None:
            return
        factor = 1.0 if self.family.cost == "bytes" else self._first_factor(choices)
        # What the model knows over one that knows nothing: a plan that is predicted to lose all of it is none.
        known = max(1.0, math.log(self.spec.vocab_size / self.baseline.metrics["perplexity"]))
        end = self._allocate(choices, Limits(loss=known))
        cost = factor * getattr(end, self.family.cost)
        if cost <= target:
            return
        self.reachable = False
        if self.family.cost == "bytes":
            first = self.job.work.candidates()[0]
            asked, most = self.job.options.shrink, self.baseline.f32_bytes / (first.bytes - self.linear_bytes + cost)
        else:
            asked, most = self.job.options.speedup, self.baseline.ms / cost
        self.job.notes.add(
            f"{asked:g}x is out of reach: the {'smallest' if self.family.cost == 'bytes' else 'fastest'} plan that "
            f"leaves anything of the model is predicted at {most:.1f}x; looking for the best within "
            f"{100 * self.job.options.max_drop:g} % of perplexity instead"
        )

    def _choices(self) -> tuple[Builder, DecoderOptions]:
        """Statistics, measured times, losses of removal, scores of tiles: the options."""
        spec, tensors, own = self.spec, self.tensors, self.family.own
        latency = self._latency(spec)
        batch = calibration(self.family.inputs.calibrating, STATISTICS_SEQUENCES, self.family.inputs.sequence)
        stats = collect_from_text(
            TorchDecoder(spec, tensors, self.job.device), batch, own is not None,
            Progress(lambda share, text: self.job.tick(text)), self.job.budget.share(SHARES["statistics"]),
        ).linears  # fmt: skip
        builder = Builder(spec, tensors, stats, own)
        begun, allowed = self.job.budget.elapsed(), TILES_SHARE * self.job.options.budget

        def afford(share: float) -> bool:
            spent = self.job.budget.elapsed() - begun
            return share < 0.02 or spent / share <= allowed

        if own is None and not builder.score(afford, self.job.tick):
            self.job.notes.add("sparse tiles were left out: scoring them would take more than a fifth of the budget")
        choices = builder.choices(latency, self.job.tick, self.job.budget.share(SHARES["rounding"]), self.family.cost)
        if own is not None and HEAD in choices.linears:
            choices.linears[HEAD] = self._previewed_head(self._measured_head(builder, choices.linears[HEAD]))
        blocks = block_options(spec, tensors, stats, self.job.tick, GROUPS if own is None else FINE_GROUPS)
        measured = self._removals(spec, tensors, blocks, {name: found.mean for name, found in stats.items()})
        # What nobody has measured stays in part.
        choices.blocks = {
            name: options if name in measured else options[:-1]
            for name, options in with_measured_blocks(blocks, measured).items()
        }
        return builder, choices

    def _latency(self, spec: DecoderSpec) -> DecoderLatency:
        named = {scheme.name: scheme for scheme in SCHEMES}
        known = self.job.work.load("latency", DecodeTimes)
        if known is None:
            wanted = Builder(spec, {}, {}, self.family.own)
            of_names = {name: wanted.schemes(name) for name, _ in spec.linears()}
            heads = [s for s in of_names.pop(HEAD, [Scheme("s8")]) if not s.sparse]
            schemes = list(dict.fromkeys(s for found in of_names.values() for s in found))
            found = measure_latency(spec, schemes, heads, self.job.threads, progress=self.job.tick)
            per_byte, head = (
                {scheme.name: value for scheme, value in table.items()} for table in (found.per_byte, found.head)
            )
            known = DecodeTimes(per_byte, head)
            self.job.work.save("latency", known)
        tables = [{named[name]: value for name, value in table.items()} for table in (known.per_byte, known.head)]
        return DecoderLatency(*tables)

    def _measured_head(self, builder: Builder, options: list[Option]) -> list[Option]:
        """Return the options with KL(dense || rounded) of the next token on text, nats: of outputs as many as words the
        Fisher information is not the same, so second-order losses say little."""
        text = self._other_text()
        batch = calibration(text, HEAD_SEQUENCES, self.family.inputs.sequence)
        assert builder.own is not None
        with_table = builder.own.tied and not builder.own.keeps_table
        out = []
        for option in options:
            if option.scheme == builder.own.scheme(HEAD):
                out.append(option)
                continue
            self.job.tick(f"measuring the head in {option.scheme.name}")
            weight = builder.rounded(HEAD, option.scheme)
            loss = head_divergence(self.spec, self.tensors, weight, batch.to(self.job.device), with_table)
            out.append(replace(option, loss=loss))
        return out

    def _previewed_head(self, options: list[Option]) -> list[Option]:
        """The checkpoint's own head reads, and loses, what its preview does."""
        cost = self.family.preview_facts()
        if cost is None:
            return options
        own = options[0]
        return [replace(own, loss=cost.kl, ms=own.ms * cost.cost / own.bytes), *options[1:]]

    def _other_text(self) -> list[int]:
        """Other tokens than those of the statistics, where there are as many."""
        long = len(self.family.inputs.calibrating) >= 2 * self.family.inputs.sequence
        return self.family.inputs.calibrating[self.family.inputs.sequence :] if long else self.family.inputs.calibrating

    def _removals(self, spec: Any, tensors: Any, blocks: Any, means: Any) -> dict[str, float]:
        """Measured nats of removing whole blocks, those of the least predicted loss first, as far as time goes."""
        known = self.job.work.load("removals", dict[str, float])
        if known is not None:
            return known
        elements = {f"layers.{i}.{kind}": Element(i, kind) for i in range(len(spec.layers))
                    for kind in ("attention", "ffn")}  # fmt: skip
        order = sorted(blocks, key=lambda name: blocks[name][-1].loss)
        text = self._other_text()

        def measure(names: list[str], batch: Any) -> dict[str, float]:
            found = measure_removals(
                HeldOutText(TorchDecoder(spec, tensors, self.job.device), batch), means,
                [elements[name] for name in names],
                Progress(lambda share, text: self.job.tick(text)), self.job.budget.share(SHARES["removal"]),
            )  # fmt: skip
            return {removal.element.name: removal.change for removal in found.removals}

        measured = measure(order, calibration(text, REMOVAL_SEQUENCES, self.family.inputs.sequence))
        middle = text[len(text) // 8 : len(text) - len(text) // 8]
        if len(middle) >= AGAIN_SEQUENCES * self.family.inputs.sequence:
            least = sorted(measured, key=measured.__getitem__)[:AGAIN]
            measured |= measure(least, calibration(middle, AGAIN_SEQUENCES, self.family.inputs.sequence))
        self.job.work.save("removals", measured)
        return measured

    # -- plans ---------------------------------------------------------------------

    def _target(self) -> float | None:
        """Milliseconds a token, or bytes of linears, that are asked for; None: as good as max_drop allows."""
        if not self.reachable:
            return None
        if self.family.cost == "bytes":
            if self.job.options.shrink is None or self.job.options.shrink <= 1:
                return None
            first = self.job.work.candidates()[0]
            return max(1.0, self.baseline.f32_bytes / self.job.options.shrink - (first.bytes - self.linear_bytes))
        wanted = self.job.options.speedup
        return None if wanted is None or wanted <= 1 else self.baseline.ms / wanted

    def _plan(self, choices: DecoderOptions, tries: list[Learnt], allowed: float) -> Plan:
        """Plan by what was learnt: the least loss within the target, or the least time within `allowed` nats."""
        target = self._target()
        if target is not None:
            factor = tries[-1].cost / tries[-1].predicted_cost if tries else self._first_factor(choices)
            return self._allocate(choices, Limits(**{self.family.cost: target / factor}))
        scale, base = tries[-1].scale if tries else FIRST_SCALE, self._base()
        return self._allocate(choices, Limits(loss=(allowed - base) / scale))

    def _allocate(self, choices: DecoderOptions, limits: Limits) -> Plan:
        plan = allocate(self.spec, choices.parts(), limits, self.family.cost)
        assert plan is not None
        return plan

    def _base(self) -> float:
        """Nats that activations cost where weights are the checkpoint's own: what no prediction knows of."""
        return math.log1p(self.job.work.candidates()[0].drop) if self.family.own is not None else 0.0

    def _learnt(self, plan: Plan, candidate: Candidate) -> Learnt:
        """Return what a built plan says of the predictions."""
        loss = math.log1p(candidate.drop)
        # All of the loss may be due to activations, so never below a tenth.
        scale = max(0.1, (loss - self._base()) / plan.loss) if plan.loss > 0 else FIRST_SCALE
        if self.family.cost == "bytes":
            return Learnt(scale, 1.0, 1.0, loss)
        return Learnt(scale, self._ms(candidate), plan.ms, loss)

    def _ms(self, candidate: Candidate) -> float:
        """A token's, as they would have been beside the baseline: the machine's own speed drifts."""
        return self.baseline.ms / candidate.speedup

    def _first_factor(self, choices: DecoderOptions) -> float:
        """Measured over predicted cost of what is there before any plan: int8, or what the file has, previewed."""
        if self.family.cost == "bytes":
            return 1.0
        predicted = sum(options[0].ms for options in choices.linears.values())
        unplanned = [c for c in self.job.work.candidates() if c.provenance.plan is None]
        return self._ms(unplanned[-1]) / predicted

    def _good_enough(self, candidate: Candidate, learnt: Learnt) -> bool:
        target = self._target()
        if target is None:
            return 0.7 * self.family.allowed < learnt.loss <= self.family.allowed
        return self.family.cost == "bytes" or SLACK <= target / learnt.cost <= 1 / SLACK

    def _best_plan(self) -> Plan | None:
        """Return that of the best candidate that has one and was not trained."""
        planned = [c for c in self.job.work.candidates() if c.provenance.plan is not None and not c.provenance.steps]
        return choose(planned, self.job.options).provenance.plan if planned else None

    def _met(self) -> bool:
        return any(violation(c, self.job.options) == 0 for c in self.job.work.candidates())


def _same(a: Plan, b: Plan) -> bool:
    return all(
        np.array_equal(x, y)
        for mine, theirs in ((a.keep.heads, b.keep.heads), (a.keep.channels, b.keep.channels))
        for x, y in zip(mine, theirs, strict=True)
    )
