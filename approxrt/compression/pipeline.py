"""How a compression runs: prepare, measure the dense model, cut and recover stage by stage, build, check, choose.

Everything that decides the next step is on disk (`approxrt.compression.state`), so an interrupted run goes on; every
stage leaves a finished artifact, so the best so far is never lost. What is promised is checked on the built artifact:
time in the engine beside float32 peers, bytes of its folder, the metric on validation data by the runtime itself.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from approxrt.compression.options import CompressOptions
from approxrt.compression.recipes import one_shot as oneshot
from approxrt.compression.recipes.gradual import run_stages
from approxrt.compression.state import Candidate, Work
from approxrt.errors import CompressionError
from approxrt.models.checkpoint import Checkpoint, find_folder, load_checkpoint
from approxrt.planning.allocate import DENSITIES
from approxrt.quantization import build
from approxrt.quantization.rtn import quantize_rows
from approxrt.significance.latency import MeasuredTable, cpu_name, measure_table
from approxrt.significance.workload import Run, engine_run, peer_runs, sample_texts, take_turns
from approxrt.tasks.examples import encode
from approxrt.tasks.metrics import flip_rate, primary
from approxrt.torch_models.device import has_bf16
from approxrt.torch_models.encoder import Student, dequantized, predict
from approxrt.training.augmentation import with_more_pairs
from approxrt.training.data import DataOptions, TaskData, read_data
from approxrt.training.recovery import RecoveryOptions, encoder_linears
from approxrt.training.teacher import Teacher, teach
from approxrt.vocabulary.prune import apply_vocabulary, compact_tokenizer, trim_positions
from approxrt.vocabulary.selection import (
    WIDE_SHARE,
    TaskVocabulary,
    is_tight,
    resplit_texts,
    stored_embeddings,
    task_vocabulary,
)

WORKLOAD_TEXTS = 128
OWN_F32 = "approxrt-f32"
REFERENCE = "approxrt-int8-dense"
TABLE_TOLERANCE = 1.6  # times that block times may be off by, added up, from the dense model's own

# (share of everything that is done, what is going on)
Progress = Callable[[float, str], None]


class Compression:
    """One compression; see the module's text."""

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        task: str,
        data: str | os.PathLike[str],
        out: Path,
        options: CompressOptions,
        teachers: tuple[str, ...] = (),
        progress: Progress | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        from approxrt.runtime.threads import resolve_threads

        self.options, self.out = options, out
        self.progress, self.log = progress or (lambda share, text: None), log or (lambda text: None)
        self.started, self.spent = time.monotonic(), 0.0
        self.threads = resolve_threads(options.threads)
        self.folder = find_folder(checkpoint)
        self.checkpoint: Checkpoint = load_checkpoint(self.folder)
        reading = DataOptions(options.seed, options.val_fraction, options.limit, options.data_format)
        self.data: TaskData = read_data(task, data, self.checkpoint, self.folder, reading)
        learns = options.method == "ours" and options.recipe == "train" and "accuracy" not in options.objective
        # What a student learns from; what it is cut by, and timed on, are the training texts alone.
        self.texts = with_more_pairs(self.data.train, options.seed) if learns else self.data.train
        self.teacher_folders = tuple(teachers)
        self.noted: list[str] = []
        self._reference_run: Run | None = None
        identity = options.identity() | {
            "task": self.data.task.name,
            "checkpoint": self.folder.resolve().name,
            "examples": [len(self.data.train), len(self.data.validation), len(self.texts)],
            "teachers": [Path(t).name for t in teachers],
        }
        self.work = Work(out, identity)
        self._prepare()

    # -- preparation ------------------------------------------------------------

    def _prepare(self) -> None:
        options, spec, tensors = self.options, self.checkpoint.spec, dict(self.checkpoint.tensors)
        shrink = options.wanted_shrink
        self.length = min(options.max_length, spec.max_length)
        self.tokenizer_json = self.checkpoint.tokenizer_json
        resplit = None
        self.full_train = encode(self.data.train, self.tokenizer_json, self.length)
        alone = self.texts is self.data.train
        self.full_lessons = self.full_train if alone else encode(self.texts, self.tokenizer_json, self.length)
        # What the peers and the dense model are timed with: they know the full vocabulary only.
        self.timed_full = sample_texts(self.full_train.ids, WORKLOAD_TEXTS, options.seed)
        self.chosen: TaskVocabulary | None = None
        bits = 4 if (shrink or 1) > 4 else 8
        allowed = None if shrink is None else 4 * self.checkpoint.source["parameters"] / shrink
        if shrink is not None:
            if (options.vocabulary or "task") == "task":
                # A GPU would hold a table of two widths in float32: where bytes are not scarce, it has one width there.
                widths = bits if options.target == "cpu" else 8
                chosen = self.chosen = self._task_vocabulary(allowed, widths)
                if not chosen.shared:
                    kept, whole = chosen.vocabulary.kept, (self.full_lessons.ids, self.full_lessons.types)
                    resplit = resplit_texts(self.tokenizer_json, self.data.train, self.texts, kept, whole, self.length)
                spec, tensors = apply_vocabulary(spec, tensors, chosen.vocabulary)
                self.tokenizer_json = chosen.vocabulary.tokenizer_json
            self.tokenizer_json = compact_tokenizer(self.tokenizer_json)
            spec, tensors = trim_positions(spec, tensors, self.length)
        self.train = encode(self.data.train, self.tokenizer_json, self.length)
        lessons = self.train if alone else encode(self.texts, self.tokenizer_json, self.length)
        self.lessons = dataclasses.replace(lessons, resplit=resplit, labelled=len(self.data.train))
        words = tensors["embeddings.word.weight"]
        if self.chosen is not None:
            self.tight, self.wide_share = self.chosen.tight, self.chosen.wide_share
        else:
            self.tight = is_tight(len(words), words.shape[1], self.tokenizer_json, allowed)
            self.wide_share = WIDE_SHARE if self.tight else None
        self.embeddings = stored_embeddings(words, bits, self.train.ids, self.wide_share)
        if shrink is not None:
            q, scale = quantize_rows(tensors["embeddings.position.weight"])
            self.embeddings[1].update({"embeddings.position.q": q, "embeddings.position.scale": scale})
        stored = build.without_tables(tensors, self.embeddings) | self.embeddings[1]
        # The student reads the rows as they are stored, so training makes up for their rounding.
        self.spec, self.tensors = dequantized(build.stored_spec(spec, self.embeddings), stored)
        self.validation = encode(self.data.validation, self.tokenizer_json, self.length)
        self.timed = sample_texts(self.train.ids, WORKLOAD_TEXTS, options.seed)

    def _task_vocabulary(self, allowed: float | None, bits: int) -> TaskVocabulary:
        """Chosen once: an interrupted run goes on with the same."""
        known = self.work.read("vocabulary")
        if known is None:
            self.progress(0.0, "comparing vocabularies")
        chosen = task_vocabulary(
            self.checkpoint,
            self.data.train,
            self.data.validation,
            self.length,
            allowed,
            self.options.seed,
            None if known is None else bool(known["shared"]),
            bits,
        )
        self.work.write("vocabulary", {"shared": chosen.shared})
        return chosen

    def separators(self) -> tuple[int, ...]:
        """Ids of the tokens that the tokenizer puts around and between texts."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_json.decode("utf-8"))
        pair = tokenizer.encode("a", "b")
        return tuple(sorted({i for i, special in zip(pair.ids, pair.special_tokens_mask, strict=True) if special}))

    def elapsed(self) -> float:
        """Seconds that the run has taken, those before an interrupt included."""
        return self.spent + time.monotonic() - self.started

    def dense(self) -> Student:
        """A fresh student that is the dense model (with embeddings as they are stored)."""
        return Student(self.spec, self.tensors)

    def baseline(self) -> dict[str, Any]:
        """Metric of the float32 checkpoint on validation, the fastest float32 engine's time; measured once."""
        known = self.work.read("baseline")
        if known is not None:
            return known
        self.progress(0.0, "measuring the dense model")
        whole = Student(self.checkpoint.spec, self.checkpoint.tensors)
        encoded = encode(self.data.validation, self.checkpoint.tokenizer_json, self.length)
        logits = predict(whole, encoded.ids, encoded.types)
        metrics = self.data.metrics(logits, logits)
        runs = peer_runs(self.folder, self.timed_full, self.threads, self.log)
        runs[OWN_F32] = engine_run(self.checkpoint.spec, self.checkpoint.tensors, self.timed_full, self.threads)
        runs[REFERENCE] = self._reference()
        times = take_turns(runs)
        fastest = _fastest(times)
        baseline = {
            "metrics": metrics,
            "times": times,
            "fastest": fastest,
            "ms": times[fastest]["median_ms"],
            "f32_bytes": 4 * self.checkpoint.source["parameters"],
            "seen": self.data.seen,
        }
        self.work.write("baseline", baseline)
        self.work.save_array("baseline_logits", logits)
        return baseline

    def table(self) -> MeasuredTable:
        """Measured milliseconds by option, for the task's lengths; it must agree with the time of the dense model.

        Probes are short: on a machine that is busy with something else for half a minute they can be off by any
        factor, and a plan made of them would be nonsense.
        """
        bits = (8, 4) if self.options.wanted_shrink else (8,)
        lengths = [len(text) for text in self.timed]
        whole = self.baseline()["times"][REFERENCE]["median_ms"]
        for fresh in (False, True, True):
            table = measure_table(
                self.spec,
                lengths,
                bits,
                self.threads,
                progress=lambda done, total, text: self.progress(0.0, text),
                fresh=fresh,
            )
            predicted = table.model_ms(self.spec, lengths)
            if 1 / TABLE_TOLERANCE <= predicted / whole <= TABLE_TOLERANCE:
                return table
            self.log(
                f"the table says {predicted:.1f} ms of a dense model that takes {whole:.1f} ms: timing blocks again"
            )
        self.note(
            f"block times did not agree with the dense model's ({predicted:.1f} ms for {whole:.1f} ms), as on a busy "
            "machine; they were scaled, and the plan may be poor: repeat the run when the machine is idle"
        )
        return table.scaled(whole / predicted)

    def teachers(self) -> list[Student]:
        """The dense checkpoint and those that were named beside it."""
        models = [Student(self.checkpoint.spec, self.checkpoint.tensors)]
        for folder in self.teacher_folders:
            other = load_checkpoint(folder)
            if other.spec.labels != self.checkpoint.spec.labels:
                raise CompressionError(
                    f"teacher {folder!r} has the labels {', '.join(other.spec.labels)}; "
                    f"the checkpoint has {', '.join(self.checkpoint.spec.labels)}"
                )
            models.append(Student(other.spec, other.tensors))
        return models

    def teacher(self) -> Teacher:
        """Targets for all lessons."""
        # A pruned vocabulary leaves the training texts' pieces as they are: the teacher reads the same tokens.
        return teach(
            self.teachers(),
            self.full_lessons.ids,
            self.full_lessons.types,
            progress=lambda done, total, text: self.progress(0.0, f"{text} ({done}/{total})"),
        )

    def _reference(self) -> Run:
        """The dense model in int8: what later timings are held against, since the machine's own speed drifts."""
        if self._reference_run is None:
            spec, tensors = build.quantized(self.dense(), {}, self.embeddings, clip_ratios=(1.0,))
            self._reference_run = engine_run(spec, tensors, self.timed, self.threads)
        return self._reference_run

    def timer(self, student: Student, bits: Mapping[str, int]) -> float:
        """Milliseconds of a student in the engine on the workload, as they would have been beside the baseline.

        Timed in turns with the dense int8 model, whose time then and now says how fast the machine is.
        """
        spec, tensors = build.quantized(student, bits, self.embeddings, clip_ratios=(1.0,))
        runs = {REFERENCE: self._reference(), "student": engine_run(spec, tensors, self.timed, self.threads)}
        times = take_turns(runs, seconds=1.0, least_rounds=7)
        then = self.baseline()["times"][REFERENCE]["median_ms"]
        return times["student"]["median_ms"] * then / times[REFERENCE]["median_ms"]

    # -- recipes ----------------------------------------------------------------

    def run(self) -> list[Candidate]:
        """The recipe; the candidates that were built, in order."""
        if self.options.method == "paper":
            from approxrt.compression.recipes.paper import paper

            return paper(self)
        if "accuracy" in self.options.objective:
            from approxrt.compression.recipes.accuracy import more_accurate

            return more_accurate(self)
        if self.options.recipe == "one-shot":
            return oneshot.run(self)
        return run_stages(self)

    def recovery_options(self) -> RecoveryOptions:
        options = self.options
        return RecoveryOptions(lr=options.lr, batch_size=options.batch_size, seed=options.seed, bf16=has_bf16())

    def block_budget(self, student: Student, total: float) -> int:
        """What is left for the blocks of a folder of `total` bytes."""
        _, tensors = build.quantized(student, self.head_bits(), self.embeddings, clip_ratios=(1.0,))
        rest = sum(a.nbytes for n, a in tensors.items() if not _in_block(n))
        fixed = rest + len(self.tokenizer_json) + 24_000  # headers, config.json, card.json
        if total <= fixed:
            names = "embeddings, tokenizer and head"
            raise CompressionError(
                f"{total / 1e6:.2f} MB cannot be reached: {names} alone take {fixed / 1e6:.2f} MB; "
                "ask for a smaller --shrink, or for --vocabulary task"
            )
        return int(total - fixed)

    def head_bits(self) -> dict[str, int]:
        if "head.dense" not in dict(self.spec.linears()) or not self.options.wanted_shrink:
            return {}
        return {"head.dense": 4 if self.tight else 8}

    def all_bits(self, student: Student, chosen: Mapping[str, int]) -> dict[str, int]:
        """Width by linear of the artifact to be: what was chosen, 8 elsewhere in the layers."""
        return {name: chosen.get(name, 8) for name in encoder_linears(student)} | self.head_bits()

    def densities(self) -> tuple[float, ...]:
        """Of tiles, to choose from: 16x4 tiles are the CPU kernels'; for a GPU structures shrink and tiles stay."""
        return (1.0,) if self.options.target == "cuda" else DENSITIES

    def note(self, text: str) -> None:
        """Something for the log now and for the report's notes."""
        self.log(text)
        self.noted.append(text)

    # -- results ----------------------------------------------------------------

    def machine(self) -> dict[str, Any]:
        """What the artifact's card says of where times were measured."""
        return {"cpu": cpu_name(), "threads": self.threads}

    def check(self, path: Path, about: Mapping[str, Any]) -> Candidate:
        """Measure a built artifact: metric and flips on validation, bytes, time beside the float32 engines."""
        from approxrt.runtime.loading import load

        baseline = self.baseline()
        model = load(path, threads=self.threads)
        logits = model.forward(self.validation.ids, self.validation.types if model.spec.type_vocab_size else None)
        dense = self.work.load_array("baseline_logits")
        metrics = self.data.metrics(logits, dense)
        runs = peer_runs(self.folder, self.timed_full, self.threads, self.log)
        runs = {name: run for name, run in runs.items() if name == baseline["fastest"]}
        if baseline["fastest"] == OWN_F32:
            runs[OWN_F32] = engine_run(self.checkpoint.spec, self.checkpoint.tensors, self.timed_full, self.threads)
        runs["artifact"] = lambda: model.forward(self.timed)
        times = take_turns(runs)
        size = build.folder_bytes(path)
        before, after = primary(baseline["metrics"]), primary(metrics)
        flips = flip_rate(logits, dense) if self.data.classifies else None
        return Candidate(
            path=str(path),
            metrics=metrics,
            drop=(before - after) / abs(before) if before else 0.0,
            flip_rate=flips,
            bytes=size,
            shrink=baseline["f32_bytes"] / size,
            ms=times["artifact"]["median_ms"],
            speedup=times[baseline["fastest"]]["median_ms"] / times["artifact"]["median_ms"],
            times=times,
            about=dict(about),
        )


def _fastest(times: Mapping[str, Mapping[str, float]]) -> str:
    """What speed is compared with: the fastest peer, or our own float32 engine where PyTorch would be the only one."""
    peers = [name for name in times if name not in (OWN_F32, REFERENCE)]
    return min(peers if len(peers) > 1 else [*peers, OWN_F32], key=lambda name: times[name]["median_ms"])


def _in_block(name: str) -> bool:
    return name.startswith("layers.") and ".norm." not in name
