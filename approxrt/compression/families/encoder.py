"""Encoders in a compression: their baseline and its peers, times of models in memory, and artifacts built and read."""

from __future__ import annotations

import dataclasses
import gc
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.spec.formats import LinearKind
from approxrt.artifact.tensorfile import release_pages
from approxrt.artifact.writer import write_artifact
from approxrt.compression.families.encoder_inputs import EncoderInputs
from approxrt.compression.family import OWN_F32, Opened
from approxrt.compression.job import BASELINE_ENDS, RECIPE_BEGINS, Job
from approxrt.compression.measure import baseline_of, candidate_of
from approxrt.compression.records import Baseline, Candidate, Provenance
from approxrt.errors import CompressionError
from approxrt.memory import release_memory
from approxrt.models.checkpoint import load_checkpoint
from approxrt.planning.encoder_options import DENSITIES
from approxrt.progress import Progress
from approxrt.quantization import build
from approxrt.runtime.loading import load
from approxrt.significance.latency import BlockTimes, MeasuredTable, measure_table, typical_lengths
from approxrt.significance.workload import PEERS, SAMPLE_TOKENS, Run, Timing, engine_run, peer_runs, take_turns
from approxrt.tasks.examples import encode
from approxrt.tasks.metrics import flip_rate
from approxrt.tasks.readers import Dataset, read_task, read_texts
from approxrt.torch_models.device import has_bf16
from approxrt.torch_models.encoder import TorchEncoder, predict
from approxrt.training.distillation import DistillationOptions, encoder_linears
from approxrt.training.teacher import Teacher, teach

REFERENCE = "approxrt-int8-dense"
TABLE_TOLERANCE = 1.6  # times that block times may be off by, added up, from the dense model's own
# What baseline and candidates are timed for in turns: long enough for medians that repeat; of a small budget a share.
TURNS_SECONDS, TURNS_SHARE = 6.0, 0.015
FILE_BYTES = 24_000  # of an artifact's headers, config.json and card.json
DEV_TEXTS = 2000  # of a file without labels, for the report

Kinds = Mapping[str, LinearKind]  # by linear


@dataclass(frozen=True)
class EncoderLimits:
    """Hold what is allowed: milliseconds of the whole model on the workload, bytes of its blocks; None: anything."""

    ms: float | None
    bytes: int | None


class EncoderFamily:
    """See the module's text and `Family`."""

    rises = False

    def __init__(self, job: Job, inputs: EncoderInputs, teachers: tuple[str, ...] = ()) -> None:
        self.job, self.inputs, self.teacher_folders = job, inputs, teachers
        self._reference_run: Run | None = None
        self._peers: dict[str, Run] = {}

    @property
    def task(self) -> str:
        return self.inputs.data.task.name

    @property
    def parameters(self) -> int:
        return int(self.inputs.checkpoint.source["parameters"])

    @property
    def source(self) -> Mapping[str, Any]:
        return self.inputs.checkpoint.source

    @property
    def seen(self) -> bool | None:
        return self.inputs.data.seen

    # -- the baseline --------------------------------------------------------------

    def model(self) -> TorchEncoder:
        """Return a fresh model that is the baseline (with embeddings as they will be stored)."""
        return TorchEncoder(self.inputs.spec, self.inputs.tensors, device=self.job.device)

    def unchanged(self) -> TorchEncoder:
        """Return the same for reading alone: its blocks are the checkpoint's file, and take no memory of their own."""
        return TorchEncoder(self.inputs.spec, self.inputs.tensors, device=self.job.device, copy=False)

    def baseline(self) -> Baseline:
        """See `Family`; peers that are not the fastest are let go."""
        found = baseline_of(self)
        self._peers = {name: run for name, run in self._peers.items() if name == found.fastest}
        return found

    def release_peers(self) -> None:
        """Let go the engines that the baseline was timed with; a candidate that is timed beside one builds it again."""
        self._peers = {}
        gc.collect()  # a compiled module and what it was compiled to hold each other
        release_memory()

    def release_file(self) -> None:
        """Let the checkpoint's pages go until the model of `unchanged` is read again."""
        release_pages(self.inputs.checkpoint.tensors.values())

    def evaluate_baseline(self) -> dict[str, float]:
        """See `Family`; keeps the outputs, which flips are counted against."""
        inputs = self.inputs
        whole = self._checkpoint_model()
        encoded = encode(inputs.data.validation, inputs.checkpoint.tokenizer_json, inputs.source.length)
        outputs = predict(whole, encoded.ids, encoded.types)
        self.job.work.save_array("baseline_outputs", outputs)
        return inputs.data.metrics(outputs, outputs)

    def baseline_runs(self, names: tuple[str, ...] | None = None) -> dict[str, Run]:
        """See `Family`: the peers that are installed, our own float32 engine, and the dense model in int8."""
        inputs, texts = self.inputs, self.inputs.own.workload
        peers = [name for name in PEERS if (names is None or name in names) and name not in self._peers]
        if peers:  # an export takes as long as all that is timed with it: once for a run
            self._peers |= peer_runs(inputs.source.folder, texts, self.job.threads, self.job.log, peers)
        runs = dict(self._peers)
        if names is None or OWN_F32 in names:
            runs[OWN_F32] = engine_run(inputs.checkpoint.spec, inputs.checkpoint.tensors, texts, self.job.threads)
        if names is None:
            runs[REFERENCE] = self._reference()
        return {name: run for name, run in runs.items() if names is None or name in names}

    def timed(self, runs: Mapping[str, Run]) -> dict[str, Timing]:
        """See `Family`: milliseconds of the workload, timed for less where the budget is small."""
        with self.job.budget.measuring():
            return take_turns(runs, seconds=min(TURNS_SECONDS, TURNS_SHARE * self.job.options.budget))

    def fastest(self, times: Mapping[str, Timing]) -> str:
        """See `Family`: the fastest peer, or our own float32 engine where PyTorch would be the only one."""
        peers = [name for name in times if name not in (OWN_F32, REFERENCE)]
        return min(peers if len(peers) > 1 else [*peers, OWN_F32], key=lambda name: times[name].median_ms)

    def baseline_outputs(self) -> np.ndarray:
        """Return the float32 model's outputs f32[n, k] on validation texts."""
        return self.job.work.load_array("baseline_outputs")

    # -- what rounds of pruning ask ---------------------------------------------------

    def timer(self, model: TorchEncoder, kinds: Kinds) -> float:
        """Return the milliseconds of a model in the engine on the workload, as they would have been at the baseline.

        Timed in turns with the dense int8 model, whose time then and now says how fast the machine is.
        """
        spec, tensors = build.quantized(model, kinds, self.inputs.embeddings, clip_ratios=(1.0,))
        workload = self.inputs.pruned.workload
        runs = {REFERENCE: self._reference(), "model": engine_run(spec, tensors, workload, self.job.threads)}
        times = take_turns(runs, seconds=1.0, least_rounds=7)
        then = self.baseline().times[REFERENCE].median_ms
        return times["model"].median_ms * then / times[REFERENCE].median_ms

    def latency_table(self) -> MeasuredTable:
        """Return measured milliseconds by option, for the task's lengths; they must agree with the dense model's time.

        Probes are short: on a machine that is busy with something else for half a minute they can be off by any
        factor. Where the share of the budget that is for measurements has room, they are taken again, once; a table
        that still disagrees is scaled to the model's time, and the notes say so.
        """
        job, spec = self.job, self.inputs.spec
        kinds: tuple[LinearKind, ...] = ("s8", "s4") if job.options.wanted_shrink else ("s8",)
        lengths = [len(text) for text in self.inputs.pruned.workload]
        typical = tuple(typical_lengths(self.inputs.own.train.lengths, SAMPLE_TOKENS))
        wanted = BlockTimes(spec, typical, kinds, job.threads)
        tokens = sum(lengths)
        whole = self.baseline().times[REFERENCE].median_ms
        for fresh in (False, True):
            begun = job.budget.elapsed()
            with job.budget.measuring():
                table = measure_table(wanted, job.progress.part(BASELINE_ENDS, RECIPE_BEGINS), fresh, tokens)
            predicted = table.model_ms(spec, lengths)
            if 1 / TABLE_TOLERANCE <= predicted / whole <= TABLE_TOLERANCE:
                return table
            said = f"the table says {predicted:.1f} ms of a dense model that takes {whole:.1f} ms"
            if fresh or not job.budget.may_measure(job.budget.elapsed() - begun):
                break
            job.log(f"{said}: timing blocks again")
        job.notes.add(
            f"block times did not agree with the dense model's ({predicted:.1f} ms for {whole:.1f} ms), as on a busy "
            "machine; they were scaled, and the plan may be poor: repeat the run when the machine is idle"
        )
        return table.scaled(whole / predicted)

    def limits(self, model: TorchEncoder, speedup: float | None, shrink: float | None) -> EncoderLimits:
        """Return what a speedup and a shrink allow a model."""
        baseline = self.baseline()
        ms = None if speedup is None else baseline.ms / speedup
        return EncoderLimits(ms, None if shrink is None else self.block_budget(model, baseline.f32_bytes / shrink))

    def block_budget(self, model: TorchEncoder, total: float) -> int:
        """Return the bytes that are left for the blocks of a folder of `total` bytes."""
        _, tensors = build.quantized(model, self.head_kinds(), self.inputs.embeddings, clip_ratios=(1.0,))
        fixed = sum(array.nbytes for name, array in tensors.items() if not _in_block(name))
        fixed += len(self.inputs.tokenizer_json) + FILE_BYTES
        if total <= fixed:
            raise CompressionError(
                f"{total / 1e6:.2f} MB cannot be reached: embeddings, tokenizer and head alone take {fixed / 1e6:.2f} "
                "MB; ask for a smaller --shrink, or for --vocabulary task"
            )
        return int(total - fixed)

    def block_bytes(self, model: TorchEncoder) -> int:
        """Return the bytes of the blocks' weights in the artifact."""
        _, tensors = build.quantized(model, self.head_kinds(), self.inputs.embeddings, clip_ratios=(1.0,))
        return sum(array.nbytes for name, array in tensors.items() if _in_block(name))

    def head_kinds(self) -> dict[str, LinearKind]:
        """Return the kind of the head's dense layer, where it is rounded at all."""
        if "head.dense" not in dict(self.inputs.spec.linears()) or not self.job.options.wanted_shrink:
            return {}
        return {"head.dense": "s4" if self.inputs.tight else "s8"}

    def kinds(self, model: TorchEncoder, chosen: Kinds) -> dict[str, LinearKind]:
        """Return the kinds by linear of the artifact to be: what was chosen, s8 elsewhere in the layers."""
        return {name: chosen.get(name, "s8") for name in encoder_linears(model)} | self.head_kinds()

    def densities(self) -> tuple[float, ...]:
        """Return the shares of tiles to choose from: 16x4 tiles are the CPU kernels'; for a GPU all of them stay."""
        return (1.0,) if self.job.options.target == "cuda" else DENSITIES

    # -- training ---------------------------------------------------------------------

    def teachers(self) -> list[TorchEncoder]:
        """Return the float32 checkpoint, and those that were named beside it."""
        checkpoint, models = self.inputs.checkpoint, [self._checkpoint_model()]
        for folder in self.teacher_folders:
            other = load_checkpoint(folder)
            if other.spec.labels != checkpoint.spec.labels:
                raise CompressionError(
                    f"teacher {folder!r} has the labels {', '.join(other.spec.labels)}; "
                    f"the checkpoint has {', '.join(checkpoint.spec.labels)}"
                )
            models.append(TorchEncoder(other.spec, other.tensors, device=self.job.device))
        return models

    def teacher(self) -> Teacher:
        """Return the targets of all texts that are learnt from."""
        # A pruned vocabulary leaves the training texts' tokens as they are: the teacher reads the same ones.
        learnt = self.inputs.own.learnt
        return teach(
            self.teachers(),
            learnt,
            progress=Progress(lambda share, text: self.job.progress(0.0, f"{text} ({share:.0%})")),
        )

    def training_options(self) -> DistillationOptions:
        """Return how a pruned model learns from its teacher."""
        options = self.job.options
        bf16 = has_bf16(self.job.device)
        return DistillationOptions(lr=options.lr, batch_size=options.batch_size, seed=options.seed, bf16=bf16)

    # -- artifacts ----------------------------------------------------------------------

    def build(
        self,
        model: TorchEncoder,
        kinds: Kinds,
        provenance: Provenance,
        tensors_of: Mapping[str, build.LinearTensors] | None = None,
        only_within: float | None = None,
    ) -> Candidate | None:
        """Write the model's artifact, measure it, and note it as the next candidate.

        only_within   the drop over which it is none: nothing is noted then, and None comes back
        """
        self.job.progress(1.0, "building and checking the artifact")
        work, inputs = self.job.work, self.inputs
        index = len(work.candidates())
        spec, tensors = build.quantized(model, kinds, inputs.embeddings, tensors_of=tensors_of)
        spec = dataclasses.replace(spec, inputs=inputs.checkpoint.spec.inputs)
        card = {"approxrt": "candidate"}
        write_artifact(work.candidate_path(index), spec, tensors, inputs.tokenizer_json, card, overwrite=True)
        candidate = candidate_of(self, index, provenance)
        if only_within is not None and candidate.drop > only_within:
            return None
        work.add(candidate)
        return candidate

    def open(self, artifact: Path) -> Opened:
        """See `Family`."""
        inputs, model = self.inputs, load(artifact, threads=self.job.threads)
        validation, dense = inputs.validation, self.baseline_outputs()
        outputs = model.forward(validation.ids, validation.types if model.spec.type_vocab_size else None)
        flips = flip_rate(outputs, dense) if inputs.data.classifies else None
        workload = inputs.pruned.workload
        return Opened(inputs.data.metrics(outputs, dense), flips, lambda: model.forward(workload))

    def evaluate(self, artifact: Path, file: Path | None) -> dict[str, Any] | None:
        """See `Family`: of a labelled file, or for an embedder of texts."""
        if file is None:
            return None
        checkpoint, data = self.inputs.checkpoint, self.inputs.data
        if data.embeds:
            texts = read_texts(file, data.form)[:DEV_TEXTS]
            dataset = Dataset(texts, np.zeros(len(texts), np.float32), None)
        else:
            labels = checkpoint.spec.labels if data.classifies else None
            dataset = read_task(data.task, file, labels, not data.classifies, data.form)
        whole = encode(dataset, checkpoint.tokenizer_json, self.inputs.source.length)
        before = predict(self._checkpoint_model(), whole.ids, whole.types)
        model = load(artifact, threads=self.job.threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # texts over max_length: cut for the float32 model, too
            after = model.embed(dataset.texts, normalize=False) if data.embeds else model.logits(dataset.texts)
        result = {
            "file": file.name,
            "examples": len(dataset),
            "before": data.metrics(before, before, dataset.labels),
            "after": data.metrics(after, before, dataset.labels),
        }
        return result | {"flip_rate": flip_rate(before, after)} if data.classifies else result

    def notes(self, best: Candidate) -> list[str]:
        """See `Family`."""
        inputs, out = self.inputs, []
        if inputs.data.seen:
            out.append(
                "validation is part of the training data that the checkpoint may have learnt from: the dense model "
                "then looks better on it than it is, and the drop larger; a checkpoint of `approxrt finetune` names "
                "its own split"
            )
        out += self.job.notes.all
        if inputs.wide_share is not None:
            wide, rows = len(inputs.embeddings[1]["embeddings.word.wide"]), inputs.spec.vocab_size
            out.append(
                f"{rows - wide} of the embedding table's {rows} rows have two bits a weight; the other {wide}, with "
                f"four, are {inputs.wide_share:.0%} of the words in the training texts"
            )
        if inputs.spec.vocab_size < inputs.checkpoint.spec.vocab_size:
            out.append(_vocabulary_note(inputs))
        if best.speedup < 1:
            out.append("the artifact is not faster than the fastest float32 engine on this machine")
        return out

    def _checkpoint_model(self) -> TorchEncoder:
        checkpoint = self.inputs.checkpoint
        return TorchEncoder(checkpoint.spec, checkpoint.tensors, device=self.job.device)

    def _reference(self) -> Run:
        """The dense model in int8: what later timings are held against, since the machine's own speed drifts."""
        if self._reference_run is None:
            inputs = self.inputs
            spec, tensors = build.quantized(self.model(), {}, inputs.embeddings, clip_ratios=(1.0,))
            self._reference_run = engine_run(spec, tensors, inputs.pruned.workload, self.job.threads)
        return self._reference_run


def _vocabulary_note(inputs: EncoderInputs) -> str:
    rows, all_rows = inputs.spec.vocab_size, inputs.checkpoint.spec.vocab_size
    shared, common = (inputs.vocabulary.shared, inputs.vocabulary.common) if inputs.vocabulary else (False, 0)
    if shared:
        return (
            f"{rows} of the vocabulary's {all_rows} tokens have a row of the embedding table: those that the training "
            f"texts use most{f' and {common} more common ones' if common else ''}; each other token is read as the one "
            "of them that the model treats most alike"
        )
    return (
        f"the vocabulary has {rows} of {all_rows} tokens: those that the training texts use, and all "
        "single characters; other words are split into smaller tokens, none is lost"
    )


def _in_block(name: str) -> bool:
    return name.startswith("layers.") and ".norm." not in name
