"""The recipe without training: second-order scores, least-squares refits and GPTQ rounding; minutes, a larger loss.

Rounds of statistics -> scores of tiles (`approxrt.pruning.obs`) -> allocation under the measured table -> cut -> refit
lead to the target along the same ramp as training does: statistics that are taken anew after each cut are worth more
than anything else (oBERT, Kurtic et al. 2022, arXiv 2203.07259). A tile's score is spread over its weights, so that
heads, FFN units and tiles are judged in one currency. At last linears are rounded by GPTQ, whose mean error the biases
take over.

The baseline "magnitude" prunes the same share of every linear's tiles by energy, refits nothing, and looks for the
share that meets the target in the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from approxrt.artifact.storage.bsr import expand_mask
from approxrt.compression.attention import match_signs
from approxrt.compression.ramp import TOLERANCE, Ramp
from approxrt.compression.state import Candidate
from approxrt.errors import CompressionError
from approxrt.planning.allocate import Block
from approxrt.pruning.magnitude import prune_tiles
from approxrt.pruning.obs import unit_errors
from approxrt.pruning.reconstruct import refit
from approxrt.pruning.structure import Structure, remove, selections
from approxrt.quantization import build
from approxrt.quantization.gptq import round_weights
from approxrt.random import Stream, generator
from approxrt.sign_attention.calibrate import with_sign_attention
from approxrt.significance.scoring import element_scores, rounding_errors
from approxrt.significance.statistics import Statistics, collect
from approxrt.tasks.examples import Examples
from approxrt.torch_models.encoder import Student

if TYPE_CHECKING:
    from approxrt.compression.pipeline import Compression

SENTENCES = 1024
ROUNDS = 4
BISECTIONS = 10


def run(compression: Compression) -> list[Candidate]:
    """The candidates of the method that is asked for; what is built already is not built again."""
    done = compression.work.candidates()
    if done:
        return done
    methods = {"ours": one_shot, "magnitude": magnitude}
    method = compression.options.method
    if method not in methods:
        raise CompressionError(f"method {method} has no one-shot recipe; those that do: {', '.join(methods)}")
    return methods[method](compression)


def one_shot(compression: Compression) -> list[Candidate]:
    """See the module's text."""
    baseline, table, options = compression.baseline(), compression.table(), compression.options
    rows = generator(options.seed, Stream.STATISTICS).permutation(len(compression.train.ids))[:SENTENCES]
    student = compression.dense()
    attention = match_signs(compression, student)
    target, limit = _limits(compression, student, baseline)
    bits = (8,) if limit is None else (8, 4)
    exact = Student(student.spec, student.tensors())
    with_sign_attention(exact, {}, ())
    subject = Subject(student, exact, compression.train, np.sort(rows), options.seed, bits)
    start, lengths = compression.timer(student, {}), [len(text) for text in compression.timed]
    ramp = Ramp(
        subject, table, compression.timer, start, target, table.base_ms, lengths, limit, bits, compression.densities()
    )
    if len(bits) > 1:
        ramp.noise = subject.noise
    for i in range(ROUNDS):
        compression.progress(i / (ROUNDS + 1), f"round {i + 1}/{ROUNDS}: statistics and scores")
        subject.score(reorder=i == 0)
        compression.progress((i + 0.6) / (ROUNDS + 1), f"round {i + 1}/{ROUNDS}: cut and refit")
        ramp.cut((i + 1) / ROUNDS)
        subject.refit()
    compression.progress(ROUNDS / (ROUNDS + 1), "rounding")
    widths = compression.all_bits(subject.student, ramp.bits_of)
    tensors_of = subject.round(widths)
    stage = {"speedup": options.wanted_speedup, "shrink": options.wanted_shrink}
    about: dict[str, object] = {**stage, "recipe": "one-shot", "method": "ours", "cuts": ramp.history}
    about |= {"examples": len(rows), "attention": attention}
    return [_build(compression, subject.student, widths, tensors_of, about)]


def magnitude(compression: Compression) -> list[Candidate]:
    """See the module's text. Raises CompressionError when one tile a linear is not little enough."""
    baseline, options = compression.baseline(), compression.options
    target, limit = _limits(compression, compression.dense(), baseline)
    student, low, high, tried = compression.dense(), 0.0, 1.0, []
    tensors = student.tensors()

    def fits(density: float) -> bool:
        """Prune `student` to a density; whether that meets the target."""
        student.load_state_dict(compression.dense().state_dict())
        student.set_masks(prune_tiles(student.spec, tensors, density))
        ms = compression.timer(student, {}) if target is not None else None
        size = _block_bytes(student, compression)
        tried.append({"density": density, "ms": ms, "bytes": size})
        return (ms is None or target is None or ms <= target) and (limit is None or size <= limit)

    if not fits(1.0):
        for i in range(BISECTIONS):
            compression.progress(i / BISECTIONS, f"magnitude: density {(low + high) / 2:.3f}")
            middle = (low + high) / 2
            if fits(middle):
                low = middle
            else:
                high = middle
            measured = tried[-1]["ms"]
            if low == middle and measured is not None and limit is None and measured > (1 - TOLERANCE) * (target or 0):
                break
        if not low:
            raise CompressionError(f"magnitude pruning does not meet the target even with {high:.2%} of the tiles")
        fits(low)
    about = {
        "speedup": options.wanted_speedup,
        "shrink": options.wanted_shrink,
        "recipe": "one-shot",
        "method": "magnitude",
        "density": low or 1.0,
        "tried": tried,
    }
    return [_build(compression, student, compression.head_bits(), None, about)]


class Subject:
    """A student that is cut and refitted, never trained; see `approxrt.compression.ramp.Subject`.

    `kept` says which of the dense model's heads and units the student has; `bits` are the widths to choose from.
    """

    def __init__(
        self,
        student: Student,
        dense: Student,
        examples: Examples,
        rows: np.ndarray,
        seed: int = 0,
        bits: tuple[int, ...] = (8,),
    ) -> None:
        self.student, self.dense, self.examples, self.rows, self.seed = student, dense, examples, rows, seed
        self.bits = bits
        self.rounding: dict[tuple[str, int], float] = {}
        self.kept = Structure.of(dense.spec)
        self.scores: dict[str, np.ndarray] = {}
        self.means: dict[str, np.ndarray] = {}
        self.rounds = 0

    def score(self, reorder: bool = False) -> None:
        """Take statistics of the student as it is, and score its tiles with them.

        With `reorder`, FFN units come by falling error of their removal first, so that weak ones share tiles.
        """
        found = self.statistics = collect(self.student, self.examples, self.rows, self.seed + self.rounds)
        self.rounds += 1
        self.means, self.scores = dict(found.means), {}
        if reorder:
            self._reorder_units(found)
        self.scores = element_scores(self.student, found, self._linears())
        if len(self.bits) > 1:
            self.rounding = rounding_errors(self.student, found, self._linears(), self.bits)

    def _reorder_units(self, found: Statistics) -> None:
        """The student's units and what was found of them."""
        spec, orders = self.student.spec, []
        for i, layer in enumerate(spec.layers):
            up, down = f"layers.{i}.ffn.up", f"layers.{i}.ffn.down"
            order = np.arange(0)
            if layer.intermediate_size:
                weight = self.student.weight(f"{down}.weight").detach().numpy()
                order = np.argsort(-unit_errors(weight, found.inputs[down], found.gradients[down]), kind="stable")
                found.inputs[down] = found.inputs[down][np.ix_(order, order)]
                found.means[down], found.gradients[up] = found.means[down][order], found.gradients[up][order]
            orders.append(order)
        self.cut(Structure(Structure.of(spec).heads, tuple(orders)), {})
        self.means = dict(found.means)

    def element_scores(self) -> dict[str, np.ndarray]:
        """f32[out, in] by linear."""
        return self.scores

    def noise(self, block: Block) -> dict[int, float]:
        """What plain rounding costs a block by width, in the scores' unit."""
        return {bits: sum(self.rounding[name, bits] for name in block.linears) for bits in self.bits}

    def cut(self, keep: Structure, masks: Mapping[str, np.ndarray]) -> None:
        """Take structure out for real, then set masks; biases take over what goes, on average."""
        old = self.student
        chosen = selections(old.spec, keep)
        spec, tensors, old_masks = remove(old.spec, old.tensors(), keep, self.means, old.masks)
        for name, selection in chosen.items():
            linear = name.removesuffix(".weight")
            if selection.indices is None:
                self.scores.pop(linear, None)
                self.means.pop(linear, None)
                continue
            if name.endswith(".weight") and linear in self.scores:
                self.scores[linear] = np.take(self.scores[linear], selection.indices, selection.axis)
            if selection.axis == 1:
                self.means[linear] = self.means[linear][selection.indices]
        # What is pruned stays pruned: a density that is rounded up does not bring zeros back.
        masks = {name: mask & old_masks[name] if name in old_masks else mask for name, mask in masks.items()}
        for name, mask in masks.items():
            weight = tensors[f"{name}.weight"]
            gone = np.where(expand_mask(mask, *weight.shape), 0, weight)
            tensors[f"{name}.bias"] = tensors[f"{name}.bias"] + gone @ self.means[name]
        # The student stays the same object: who cuts it may hold it.
        old.spec, old.weights, old.masks = spec, Student(spec, tensors).weights, {}
        old.set_masks(old_masks | dict(masks))
        self.kept = Structure(
            tuple(mine[kept] for mine, kept in zip(self.kept.heads, keep.heads, strict=True)),
            tuple(mine[kept] for mine, kept in zip(self.kept.units, keep.units, strict=True)),
        )

    def refit(self) -> None:
        """All that is left follows the dense model again."""
        refit(self.student, self.dense, self.examples, self.rows, self.kept)

    def round(self, bits: Mapping[str, int]) -> dict[str, build.LinearTensors]:
        """GPTQ of the layers' linears at their widths; the student takes the rounded weights and their biases."""
        found = collect(self.student, self.examples, self.rows, self.seed + self.rounds)
        out: dict[str, build.LinearTensors] = {}
        for name in self._linears():
            parameter = self.student.weight(f"{name}.weight")
            weight, mean = parameter.detach().numpy(), found.means[name]
            mask = self.student.masks.get(name)
            if mask is not None and mask.all():
                mask = None
            # The bias takes over the mean error, so that only what varies is left to be small.
            covariance = found.inputs[name] - np.outer(mean, mean)
            rounded, kind, parts = round_weights(weight, mask, covariance, bits.get(name, 8))
            out[name] = (kind, parts)
            with torch.no_grad():
                self.student.weight(f"{name}.bias").add_(torch.from_numpy((weight - rounded) @ mean))
                parameter.copy_(torch.from_numpy(rounded))
        return out

    def _linears(self) -> list[str]:
        return [name for name, _ in self.student.spec.linears() if name.startswith("layers.")]


def _limits(
    compression: Compression, student: Student, baseline: Mapping[str, float]
) -> tuple[float | None, int | None]:
    """(milliseconds of the whole model, bytes of its blocks) that are allowed."""
    speedup, shrink = compression.options.wanted_speedup, compression.options.wanted_shrink
    ms = None if speedup is None else baseline["ms"] / speedup
    return ms, None if shrink is None else compression.block_budget(student, baseline["f32_bytes"] / shrink)


def _block_bytes(student: Student, compression: Compression) -> int:
    """Bytes of the blocks' weights in the artifact."""
    _, tensors = build.quantized(student, compression.head_bits(), compression.embeddings, clip_ratios=(1.0,))
    return sum(a.nbytes for name, a in tensors.items() if name.startswith("layers.") and ".norm." not in name)


def _build(
    compression: Compression,
    student: Student,
    bits: Mapping[str, int],
    tensors_of: Mapping[str, build.LinearTensors] | None,
    about: Mapping[str, object],
) -> Candidate:
    compression.progress(1.0, "building and checking the artifact")
    path = compression.work.candidate_path(0)
    inputs, tokenizer = compression.checkpoint.spec.inputs, compression.tokenizer_json
    build.write(path, student, bits, compression.embeddings, tokenizer, {"approxrt": "candidate"}, inputs, tensors_of)
    candidate = compression.check(path, about)
    compression.work.add(candidate)
    return candidate
