"""The recipe with training: rounds of second-order pruning and refits, then recovery by distillation, stage by stage.

A stage goes from the model of the last one (the baseline at first) much of the way to its target in a few rounds of
statistics -> scores -> pruning -> refit, as the one-shot recipe does; it then learns from the teacher, is pruned thrice
more by scores that are taken anew, and computes on the artifact's grids in the end (QAT). A large speedup is reached by
way of half of it, whose artifact is a candidate, too. A stage that has time for few steps is pruned in rounds alone,
like the one-shot recipe, before its training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from approxrt.artifact.spec.formats import LinearKind
from approxrt.compression.families.encoder import EncoderFamily
from approxrt.compression.families.pruned_encoder import PrunedEncoder
from approxrt.compression.records import Candidate, Origin, Provenance, StepPlan
from approxrt.compression.rounds import Rounds, formats_of, rounds_towards
from approxrt.compression.signs import match_signs
from approxrt.planning.encoder_options import Block
from approxrt.random import Stream, generator
from approxrt.significance.scoring import element_scores, rounding_errors
from approxrt.significance.statistics import collect
from approxrt.torch_models.encoder import TorchEncoder
from approxrt.training.distillation import Distillation, encoder_linears
from approxrt.training.pace import Pace
from approxrt.training.teacher import Teacher

SENTENCES, TOKENS = 512, 12_000  # that statistics are taken of, at most
ROUNDS = (0.3, 0.5)  # of the way, before a stage's training
PRUNINGS = {0.08: 0.7, 0.18: 0.85, 0.3: 1.0}  # share of a stage's steps -> of the way
# With fewer steps than this, training cannot make up for pruning: a stage goes all of its way in rounds, which refit.
FEW_STEPS = 200
FEW_ROUNDS = (0.4, 0.75, 1.0)
QAT_FROM = 0.85
# Share of a format's rounding error that is left after training on the artifact's grid (QAT). int4 everywhere costs
# MiniLM nothing on SST-2 and 0.8 % on STS-B even without it, while its bytes pay for twice as many weights.
TRAINED_NOISE = 0.1
PRUNED_PACE = 0.66  # a step of a pruned model takes about two thirds of a dense one's time
SHARES = {1: (1.0,), 2: (0.45, 0.55)}  # of all steps, by number of stages
TWO_STAGES_FROM = 6.0  # times faster


@dataclass(frozen=True)
class Stage:
    """Hold what a stage is to reach, and its share of all steps and of the bar."""

    index: int
    speedup: float | None
    shrink: float | None
    begin: float
    share: float
    last: bool

    def facts(self) -> dict[str, Any]:
        """Return what the report says of it."""
        return {"speedup": self.speedup, "shrink": self.shrink}

    def name(self, text: str) -> str:
        """Return `text` with the stage's number."""
        return f"stage {self.index + 1}/{self.index + 1 if self.last else self.index + 2}{text}"


def stages_of(speedup: float | None, shrink: float | None) -> list[Stage]:
    """Return the stages one after the other, each from the last: half of a large speedup first."""
    if speedup is not None and speedup >= TWO_STAGES_FROM:
        first, second = SHARES[2]
        return [Stage(0, speedup / 2, None, 0.0, first, False), Stage(1, speedup, shrink, first, second, True)]
    return [Stage(0, speedup, shrink, 0.0, 1.0, True)]


def gradual(family: EncoderFamily) -> None:
    """Make the candidates of all stages; go on where an interrupted run was."""
    work = family.job.work
    stages = stages_of(family.job.options.wanted_speedup, family.job.options.wanted_shrink)
    if len(work.candidates()) < len(stages):
        _Stages(family, stages).run()


class _Stages:
    """One run over the stages that are not built yet; `model` is what they are made of, one after the other."""

    def __init__(self, family: EncoderFamily, stages: list[Stage]) -> None:
        self.family, self.job, self.stages = family, family.job, stages
        self.table = family.latency_table()
        self.teacher: Teacher = family.teacher()
        self.model: TorchEncoder = family.model()
        self.signs = match_signs(family, self.model).to_report()

    def run(self) -> None:
        job, state = self.job, self.job.work.load_tensors("state")
        if state is not None:
            job.budget.resume(float(state["seconds"]))
        plan = job.work.load("plan", StepPlan) or self._plan()
        for stage in self.stages[len(job.work.candidates()) :]:
            # What a stage without pruning leaves over goes to the next.
            share = 1.0 if self._idle(stage) else stage.share
            steps = max(20, round(plan.steps * share))
            if state is not None and state["stage"] < stage.index:
                # The stage before is built: its last weights are where this one starts.
                self._trainer(steps).restore(state["recovery"])
                self.model.input_hook = self.model.weight_hook = None
                state = None
            self._stage(stage, steps, plan.pace_s, state)
            state = None

    def _stage(self, stage: Stage, steps: int, pace: float, state: Mapping[str, Any] | None) -> None:
        rounds = self._rounds(stage, state)
        few = self._few(stage, steps, pace) if state is None else bool(state.get("few"))
        if state is None and rounds.needed:
            self._prune(stage, rounds, FEW_ROUNDS if few else ROUNDS)
        elif state is None and self._as_it_is(stage):
            return
        trainer = self._trainer(steps)
        if state is not None:
            trainer.restore(state["recovery"])
        rounds.recovery = trainer
        self._train(stage, trainer, rounds, few)
        self._build(stage, rounds.kinds, rounds.history, trainer.steps)
        if trainer.quantizer is not None:
            trainer.quantizer.remove()

    def _idle(self, stage: Stage) -> bool:
        """Tell whether all stages before this one needed no training."""
        before = self.job.work.candidates()[: stage.index]
        return stage.index > 0 and not any(candidate.provenance.steps for candidate in before)

    def _as_it_is(self, stage: Stage) -> bool:
        """Build a stage whose limits the quantised model meets without pruning; whether it loses little enough."""
        keeps = self._build(stage, {}, [], 0, only_within=self.job.options.max_drop if stage.last else None)
        return keeps is not None

    def _plan(self) -> StepPlan:
        """Return how many steps the budget allows, from the pace of a few dense ones."""
        job, options = self.job, self.job.options
        inputs = self.family.inputs.pruned
        trial = Distillation(self.family.model(), inputs.learnt, self.teacher, 1000, self.family.training_options())
        for _ in range(3):
            trial.advance()
        begin = time.monotonic()
        for _ in range(8):
            trial.advance()
        pace = (time.monotonic() - begin) / 8
        # Rounds and checks take a fifth.
        affordable = max(40, int((options.budget * 0.8 - job.budget.elapsed()) / (PRUNED_PACE * pace)))
        # Whoever asks for epochs means passes over the training texts.
        size = len(inputs.learnt.ids if options.epochs is None else inputs.train.ids)
        epochs = options.epochs if options.epochs is not None else max(4.0, min(30.0, 150_000 / size))
        wanted = max(40, round(epochs * -(-size // options.batch_size)))
        if affordable < wanted:
            job.notes.add(
                f"the budget allows {affordable} steps ({affordable / trial.steps_per_epoch:.1f} epochs) "
                f"of the {wanted} that would be used"
            )
        plan = StepPlan(min(affordable, wanted), pace, trial.steps_per_epoch)
        job.work.save("plan", plan)
        return plan

    def _trainer(self, steps: int) -> Distillation:
        learnt = self.family.inputs.pruned.learnt
        return Distillation(self.model, learnt, self.teacher, steps, self.family.training_options())

    def _rounds(self, stage: Stage, state: Mapping[str, Any] | None) -> Rounds:
        limits = self.family.limits(self.model, stage.speedup, stage.shrink)
        rounds = rounds_towards(self.family, self._subject(), self.table, limits)
        if state is not None:
            rounds.kinds, rounds.correction = dict(state["kinds"]), state["correction"]
            rounds.start_ms, rounds.history = state["start_ms"], list(state["history"])
        return rounds

    def _subject(self) -> PrunedEncoder:
        """The model for rounds of pruning, held against a copy of what it is now."""
        copy = self.model.twin()
        formats = formats_of(self.job.options.wanted_shrink is not None)
        return PrunedEncoder(
            self.model, copy, self.family.inputs.pruned.train.subset(self._rows()), self.job.seed, formats
        )

    def _rows(self) -> np.ndarray:
        train = self.family.inputs.pruned.train
        order = generator(self.job.seed, Stream.STATISTICS).permutation(len(train.ids))
        tokens = np.cumsum(train.lengths[order])
        return np.sort(order[: max(16, min(SENTENCES, int(np.searchsorted(tokens, TOKENS))))])

    def _pace(self, stage: Stage) -> Pace:
        rest = sum(other.share for other in self.stages[stage.index :])
        return Pace(self.job.budget, stage.share / rest)

    def _few(self, stage: Stage, steps: int, pace: float) -> bool:
        """Too few steps for pruning in training: of those planned, or of those that the rest of the budget allows."""
        affordable = self._pace(stage).allowed / (PRUNED_PACE * pace)
        return self.job.options.epochs is None and min(steps, affordable) < FEW_STEPS

    def _prune(self, stage: Stage, rounds: Rounds, ways: Sequence[float]) -> None:
        subject = rounds.recovery
        assert isinstance(subject, PrunedEncoder)
        for place, way in enumerate(ways):
            self.job.recipe_progress(stage.begin, stage.name(f": pruning {place + 1}"))
            # Tiles that are pruned already tie FFN channels to their places.
            subject.score(reorder=place == 0 and not self.model.masks)
            if len(rounds.formats) > 1:
                rounds.noise = _trained(subject.rounding, rounds.formats)
            rounds.prune(way)
            subject.refit()

    def _train(self, stage: Stage, trainer: Distillation, rounds: Rounds, few: bool) -> None:
        """Learn, with the last prunings of the stage on the way unless there are `few` steps."""
        job = self.job
        planned = steps = trainer.steps
        saved = time.monotonic()
        prunings = {max(1, round(steps * at)): way for at, way in PRUNINGS.items()} if rounds.needed and not few else {}
        pace = self._pace(stage)
        while trainer.step < steps:
            if trainer.step in prunings:
                self._rescore(trainer, rounds)
                rounds.prune(prunings[trainer.step])
            if trainer.step >= round(steps * QAT_FROM) and trainer.quantizer is None:
                trainer.quantize(self.family.kinds(trainer.model, rounds.kinds))
            trainer.advance()
            # Pruning, or a busy machine, makes a slow start, which must not cost the rest. With grids learnt, the end
            # is set.
            most = planned if trainer.quantizer is None else steps
            steps = trainer.steps = max(max(prunings, default=0) + 1, pace.fitting(trainer.step, steps, most))
            text = stage.name(f", loss {trainer.loss:.3f}")
            job.recipe_progress(stage.begin + stage.share * trainer.step / steps, text)
            if time.monotonic() - saved >= job.options.save_seconds and trainer.step < steps:
                self._save(stage, trainer, rounds, few)
                saved = time.monotonic()
        self._save(stage, trainer, rounds, few)

    def _rescore(self, trainer: Distillation, rounds: Rounds) -> None:
        """Scores and means of the model as training has made it, and what rounding would cost it."""
        model, train = trainer.model, self.family.inputs.pruned.train
        names = encoder_linears(model)
        found = collect(model, train.subset(self._rows()), self.job.seed + trainer.step)
        scores = element_scores(model, found, names)
        if len(rounds.formats) > 1:
            rounds.noise = _trained(rounding_errors(model, found, names, rounds.formats), rounds.formats)
        trainer.scores = {name: torch.from_numpy(score).to(model.device) for name, score in scores.items()}
        trainer.means = {name: torch.from_numpy(found.means[name]).to(model.device) for name in scores}

    def _save(self, stage: Stage, trainer: Distillation, rounds: Rounds, few: bool) -> None:
        self.job.work.save_tensors(
            "state",
            {
                "stage": stage.index,
                "few": few,
                "seconds": self.job.budget.elapsed(),
                "recovery": trainer.state(),
                "kinds": rounds.kinds,
                "correction": float(rounds.correction),
                "start_ms": float(rounds.start_ms),
                "history": rounds.history,
            },
        )

    def _build(
        self,
        stage: Stage,
        chosen: Mapping[str, LinearKind],
        history: list[dict[str, Any]],
        steps: int,
        only_within: float | None = None,
    ) -> Candidate | None:
        facts = {**stage.facts(), "cuts": history, "steps": steps, "attention": self.signs}
        provenance = Provenance(Origin.PLANNED, steps=steps, facts=facts)
        kinds = self.family.kinds(self.model, chosen)
        return self.family.build(self.model, kinds, provenance, only_within=only_within)


def _trained(
    errors: Mapping[tuple[str, LinearKind], float], formats: Sequence[LinearKind]
) -> Callable[[Block], dict[LinearKind, float]]:
    """Return what is left of rounding errors, by block and format, once a model is trained on its grid."""
    return lambda block: {form: TRAINED_NOISE * sum(errors[name, form] for name in block.linears) for form in formats}
