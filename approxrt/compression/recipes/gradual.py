"""The recipe with training: rounds of second-order cuts and refits, then recovery by distillation, stage by stage.

A stage goes from the model of the last one (the dense model at first) much of the way to its target in a few rounds of
statistics -> scores -> cut -> refit, as the one-shot recipe does; it then learns from the teacher, is cut thrice more
on scores that are taken anew, and computes on the artifact's grids in the end (QAT). A large speedup is reached by way
of half of it, whose artifact is a candidate, too. A stage that has time for few steps is cut in rounds alone, like the
one-shot recipe, before its training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from approxrt.compression.attention import match_signs
from approxrt.compression.ramp import Ramp
from approxrt.compression.recipes.one_shot import Subject
from approxrt.compression.state import Candidate
from approxrt.planning.allocate import Block
from approxrt.quantization import build
from approxrt.random import Stream, generator
from approxrt.significance.scoring import element_scores, rounding_errors
from approxrt.significance.statistics import collect
from approxrt.torch_models.encoder import Student
from approxrt.training.recovery import Recovery, encoder_linears
from approxrt.training.teacher import Teacher

if TYPE_CHECKING:
    from approxrt.compression.pipeline import Compression

SENTENCES, TOKENS = 512, 12_000  # that statistics are taken of, at most
ROUNDS = (0.3, 0.5)  # of the way, before a stage's training
CUTS = {0.08: 0.7, 0.18: 0.85, 0.3: 1.0}  # share of a stage's steps -> of the way
# With fewer steps than this, training cannot make up for cuts: a stage goes all of its way in rounds, which refit.
FEW_STEPS = 200
FEW_ROUNDS = (0.4, 0.75, 1.0)
QAT_FROM = 0.85
# Share of a width's rounding error that is left after training on the artifact's grid (QAT). int4 everywhere costs
# MiniLM nothing on SST-2 and 0.8 % on STS-B even without it, while its bytes pay for twice as many weights.
TRAINED_NOISE = 0.1
CUT_PACE = 0.66  # a step of a cut model takes about two thirds of a dense one's time
SHARES = {1: (1.0,), 2: (0.45, 0.55)}  # of all steps, by number of stages

Stage = Mapping[str, float | None]


def run_stages(compression: Compression) -> list[Candidate]:
    """All stages; the candidates that were built, in order. Goes on where an interrupted run was."""
    return _Stages(compression).run()


class _Stages:
    def __init__(self, compression: Compression) -> None:
        self.c, self.options, self.work = compression, compression.options, compression.work

    def targets(self) -> list[Stage]:
        """One after the other, each from the last: half of a large speedup first."""
        speedup, shrink = self.options.wanted_speedup, self.options.wanted_shrink
        if speedup is not None and speedup >= 6:
            return [{"speedup": speedup / 2, "shrink": None}, {"speedup": speedup, "shrink": shrink}]
        return [{"speedup": speedup, "shrink": shrink}]

    def run(self) -> list[Candidate]:
        baseline, stages = self.c.baseline(), self.targets()
        done = len(self.work.candidates())
        if done >= len(stages):
            return self.work.candidates()
        table, teacher, student = self.c.table(), self.c.teacher(), self.c.dense()
        self.attention = match_signs(self.c, student)
        state = self.work.load_state()
        self.c.spent = 0.0 if state is None else float(state["seconds"])
        plan = self.work.read("plan") or self._plan(teacher)
        for index in range(done, len(stages)):
            # What a stage without cuts leaves over goes to the next.
            share = SHARES[len(stages)][index] if not self._idle(index) else 1.0
            steps = max(20, round(plan["steps"] * share))
            if state is not None and state["stage"] < index:
                # The stage before is built: its last weights are where this one starts.
                Recovery(student, self.c.lessons, teacher, steps, self.c.recovery_options()).restore(state["recovery"])
                student.input_hook = student.weight_hook = None
                state = None
            ramp = self._ramp(student, table, baseline, stages[index], state)
            few = self._few(steps, plan["pace_s"], index, len(stages)) if state is None else bool(state.get("few"))
            if state is None and ramp.needed:
                self._rounds(student, ramp, index, len(stages), FEW_ROUNDS if few else ROUNDS)
            elif state is None and (known := self._as_it_is(index, student, stages[index])) is not None:
                self.work.add(known)
                continue
            recovery = Recovery(student, self.c.lessons, teacher, steps, self.c.recovery_options())
            if state is not None:
                recovery.restore(state["recovery"])
                state = None
            ramp.recovery = recovery
            self._train(index, len(stages), recovery, ramp, few)
            about = {**stages[index], "cuts": ramp.history, "steps": recovery.steps}
            self.work.add(self._build(index, recovery.student, ramp.bits_of, about))
            if recovery.quantizer is not None:
                recovery.quantizer.remove()
        return self.work.candidates()

    def _idle(self, index: int) -> bool:
        """All stages before this one needed no training."""
        before = self.work.candidates()[:index]
        return index > 0 and all(not candidate.about.get("steps") for candidate in before)

    def _as_it_is(self, index: int, student: Student, stage: Stage) -> Candidate | None:
        """A stage whose limits the quantised model meets without cuts: built at once; None if that loses too much."""
        candidate = self._build(index, student, {}, {**stage, "cuts": [], "steps": 0})
        last = index == len(self.targets()) - 1
        return None if last and candidate.drop > self.options.max_drop else candidate

    def _plan(self, teacher: Teacher) -> dict[str, Any]:
        """How many steps the budget allows, from the pace of a few dense ones."""
        options = self.options
        trial = Recovery(self.c.dense(), self.c.lessons, teacher, 1000, self.c.recovery_options())
        for _ in range(3):
            trial.advance()
        begin = time.monotonic()
        for _ in range(8):
            trial.advance()
        pace = (time.monotonic() - begin) / 8
        # Rounds and checks take a fifth.
        affordable = max(40, int((options.budget * 0.8 - self.c.elapsed()) / (CUT_PACE * pace)))
        # Whoever asks for epochs means passes over the training texts.
        size = len(self.c.lessons.ids if options.epochs is None else self.c.train.ids)
        epochs = options.epochs if options.epochs is not None else max(4.0, min(30.0, 150_000 / size))
        wanted = max(40, round(epochs * -(-size // options.batch_size)))
        if affordable < wanted:
            self.c.note(
                f"the budget allows {affordable} steps ({affordable / trial.steps_per_epoch:.1f} epochs) "
                f"of the {wanted} that would be used"
            )
        plan = {"steps": min(affordable, wanted), "pace_s": pace, "steps_per_epoch": trial.steps_per_epoch}
        self.work.write("plan", plan)
        return plan

    def _ramp(
        self, student: Student, table: Any, baseline: Mapping[str, Any], stage: Stage, state: Mapping[str, Any] | None
    ) -> Ramp:
        speedup, shrink = stage["speedup"], stage["shrink"]
        limit = None if shrink is None else self.c.block_budget(student, baseline["f32_bytes"] / shrink)
        ramp = Ramp(
            self._subject(student),
            table,
            self.c.timer,
            start_ms=self.c.timer(student, {}),
            target_ms=None if speedup is None else baseline["ms"] / speedup,
            base_ms=table.base_ms,
            lengths=[len(text) for text in self.c.timed],
            max_bytes=limit,
            bits=(8,) if limit is None else (8, 4),
            densities=self.c.densities(),
        )
        if state is not None:
            ramp.bits_of, ramp.correction = dict(state["bits_of"]), state["correction"]
            ramp.start_ms, ramp.history = state["start_ms"], list(state["history"])
        return ramp

    def _subject(self, student: Student) -> Subject:
        """The student for rounds of cuts, held against a copy of what it is now."""
        copy = Student(student.spec, student.tensors())
        bits = (8,) if self.options.wanted_shrink is None else (8, 4)
        return Subject(student, copy, self.c.train, self._rows(), self.options.seed, bits)

    def _rows(self) -> np.ndarray:
        order = generator(self.options.seed, Stream.STATISTICS).permutation(len(self.c.train.ids))
        tokens = np.cumsum(self.c.train.lengths[order])
        return np.sort(order[: max(16, min(SENTENCES, int(np.searchsorted(tokens, TOKENS))))])

    def _few(self, steps: int, pace: float, index: int, count: int) -> bool:
        """Too few steps for cuts in training: of those planned, or of those that what is left of the budget allows."""
        affordable = _Pace(self.c, index, count).allowed / (CUT_PACE * pace)
        return self.options.epochs is None and min(steps, affordable) < FEW_STEPS

    def _rounds(self, student: Student, ramp: Ramp, index: int, count: int, rounds: Sequence[float]) -> None:
        subject = ramp.recovery
        assert isinstance(subject, Subject)
        share = sum(SHARES[count][:index])
        for place, progress in enumerate(rounds):
            self.c.progress(share, f"stage {index + 1}/{count}: cut {place + 1}")
            # Tiles that are pruned already tie units to their places.
            subject.score(reorder=place == 0 and not student.masks)
            if len(ramp.bits) > 1:
                ramp.noise = _trained(subject.rounding, ramp.bits)
            ramp.cut(progress)
            subject.refit()

    def _train(self, index: int, count: int, recovery: Recovery, ramp: Ramp, few: bool) -> None:
        """Learn, with the last cuts of the stage on the way unless there are `few` steps."""
        planned = steps = recovery.steps
        saved = time.monotonic()
        cuts = {max(1, round(steps * at)): progress for at, progress in CUTS.items()} if ramp.needed and not few else {}
        begin, share = sum(SHARES[count][:index]), SHARES[count][index]
        pace = _Pace(self.c, index, count)
        while recovery.step < steps:
            if recovery.step in cuts:
                self._rescore(recovery, ramp)
                ramp.cut(cuts[recovery.step])
            if recovery.step >= round(steps * QAT_FROM) and recovery.quantizer is None:
                recovery.quantize(self.c.all_bits(recovery.student, ramp.bits_of))
            recovery.advance()
            # Cuts, or a busy machine, make a slow start; it must not cost the rest. With grids learnt, the end is set.
            most = planned if recovery.quantizer is None else steps
            steps = recovery.steps = max(max(cuts, default=0) + 1, pace.fitting(recovery.step, steps, most))
            text = f"stage {index + 1}/{count}, loss {recovery.loss:.3f}"
            self.c.progress(begin + share * recovery.step / steps, text)
            if time.monotonic() - saved >= self.options.save_seconds and recovery.step < steps:
                self._save(index, recovery, ramp, few)
                saved = time.monotonic()
        self._save(index, recovery, ramp, few)

    def _rescore(self, recovery: Recovery, ramp: Ramp) -> None:
        """Scores and means of the student as training has made it, and what rounding would cost it."""
        student = recovery.student
        names = encoder_linears(student)
        found = collect(student, self.c.train, self._rows(), self.options.seed + recovery.step)
        scores = element_scores(student, found, names)
        if len(ramp.bits) > 1:
            ramp.noise = _trained(rounding_errors(student, found, names, ramp.bits), ramp.bits)
        recovery.scores = {name: torch.from_numpy(score) for name, score in scores.items()}
        recovery.means = {name: torch.from_numpy(found.means[name]) for name in scores}

    def _save(self, index: int, recovery: Recovery, ramp: Ramp, few: bool) -> None:
        self.work.save_state(
            {
                "stage": index,
                "few": few,
                "seconds": self.c.elapsed(),
                "recovery": recovery.state(),
                "bits_of": ramp.bits_of,
                "correction": float(ramp.correction),
                "start_ms": float(ramp.start_ms),
                "history": ramp.history,
            }
        )

    def _build(self, index: int, student: Student, chosen: Mapping[str, int], about: Mapping[str, Any]) -> Candidate:
        self.c.progress(1.0, "building and checking the artifact")
        path = self.work.candidate_path(index)
        build.write(
            path,
            student,
            self.c.all_bits(student, chosen),
            self.c.embeddings,
            self.c.tokenizer_json,
            {"approxrt": "candidate"},
            self.c.checkpoint.spec.inputs,
        )
        return self.c.check(path, {**about, "attention": self.attention})


def _trained(errors: Mapping[tuple[str, int], float], widths: Sequence[int]) -> Callable[[Block], dict[int, float]]:
    """What is left of rounding errors, by block and width, once a student is trained on its grid."""
    return lambda block: {bits: TRAINED_NOISE * sum(errors[name, bits] for name in block.linears) for bits in widths}


class _Pace:
    """Keeps a stage's training within its share of the time that was left when it began, by shortening it."""

    MARGIN_S = 20.0  # for building and checking
    LOOK_EVERY = 25  # steps

    def __init__(self, c: Compression, index: int, count: int) -> None:
        self.c, self.begun = c, c.elapsed()
        left = max(0.0, c.options.budget - self.begun)
        rest = sum(SHARES[count][index:])
        self.allowed = left * SHARES[count][index] / rest - self.MARGIN_S
        self.first: int | None = None

    def fitting(self, step: int, steps: int, most: int) -> int:
        """The number of steps that can still be afforded, at most `most`; looked at now and then, else `steps`."""
        if self.first is None:
            self.first = step
        taken = step - self.first
        if taken < self.LOOK_EVERY or taken % self.LOOK_EVERY or step >= steps:
            return steps
        used = self.c.elapsed() - self.begun
        # At least one step more: the schedule's end belongs to every run.
        affordable = step + max(1, int((self.allowed - used) / (used / taken)))
        return min(most, affordable)
