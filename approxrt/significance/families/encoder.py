"""Encoders in an analysis: a fine-tuned checkpoint with its task's texts, and what only encoders are measured for.

Beside removals there are tiles of weights by second-order scores (`approxrt.pruning.obs`), rows of the embedding table
by the gradient at the embedding (`approxrt.significance.statistics`), what each block costs
(`approxrt.significance.latency`), and from these what a speedup would cost and which parts would pay for it
(`approxrt.significance.pareto`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from approxrt.errors import UnsupportedTaskError
from approxrt.models.checkpoint import find_folder, load_checkpoint
from approxrt.progress import Progress
from approxrt.pruning.obs import channel_errors, group_curve, tile_curve
from approxrt.pruning.structure import refuse_unprunable
from approxrt.random import Stream, generator
from approxrt.significance.elements import ENCODER_CHANNELS, HEAD, Element
from approxrt.significance.encoder_removal import HeldOutLoss
from approxrt.significance.family import AnalysisOptions, PartRows
from approxrt.significance.pareto import Timed, costs, spread
from approxrt.significance.statistics import Statistics, collect
from approxrt.tasks.examples import encode
from approxrt.tasks.registry import Task
from approxrt.torch_models.device import has_bf16, resolve_device
from approxrt.torch_models.encoder import TorchEncoder
from approxrt.training.data import DataOptions, read_data

PART_SAMPLES = 400  # heads and groups are many: what they cost is measured on so many of the samples, at most
CURVE = tuple(i / 20 for i in range(21))
TILES_SHARE = 0.55  # of what is done beside removals: scoring tiles; the rest measures times

# A linear's weight f32[out, in], moments of its inputs f32[in, in], squared gradients at its outputs f32[out].
Problem = tuple[np.ndarray, np.ndarray, np.ndarray]


class AnalyzedEncoder:
    """See the module's text and `approxrt.significance.family.AnalysisFamily`."""

    part_rows: ClassVar[Mapping[str, PartRows]] = {
        HEAD: PartRows("heads"),
        ENCODER_CHANNELS: PartRows("groups", "neurons"),
    }
    removals_end = 0.55

    def __init__(
        self, checkpoint: str | os.PathLike[str], task: Task, data: str | os.PathLike[str], options: AnalysisOptions
    ) -> None:
        folder, seed = find_folder(checkpoint), options.seed
        self.options, self.checkpoint = options, load_checkpoint(folder)
        self.spec, tokenizer = self.checkpoint.spec, self.checkpoint.tokenizer_json
        self._require_labels(str(folder))
        refuse_unprunable(self.spec, self.checkpoint.source["name"], "analyze")
        reading = DataOptions(seed, options.val_fraction, None, options.data_format)
        self.data = read_data(task, data, self.checkpoint, folder, reading)
        length = min(options.max_length, self.spec.max_length)
        self.rng = generator(seed, Stream.ANALYSIS)
        samples = self.data.validation.subset(self._draw(len(self.data.validation), options.samples))
        self.samples, self.examples = samples, encode(samples, tokenizer, length)
        self.train = encode(self.data.train, tokenizer, length)
        self.learnt = self.train.subset(self._draw(len(self.data.train), options.samples))
        # The samples were drawn and stand in the order of the file: some of them are drawn again.
        self.part_samples = self._draw(len(samples), PART_SAMPLES)
        self.model = TorchEncoder(self.spec, self.checkpoint.tensors, device=resolve_device(options.device))

    def _require_labels(self, folder: str) -> None:
        if not self.spec.labels:
            raise UnsupportedTaskError(
                f"checkpoint {folder!r} is an encoder without a head, and an analysis needs the loss of a task: "
                "fine-tune it first (approxrt finetune)"
            )
        if self.spec.task_type == "multi_label":
            raise UnsupportedTaskError(
                f"checkpoint {folder!r} gives a text several labels (multi_label), which no task here has; "
                "classification and regression can be analysed"
            )

    def _draw(self, count: int, most: int) -> np.ndarray:
        return np.sort(self.rng.permutation(count)[:most])

    def facts(self) -> dict[str, Any]:
        """See `AnalysisFamily`."""
        spec, tensors, data, lengths = self.spec, self.checkpoint.tensors, self.data, self.examples.lengths
        names = data.train.label_names
        labels = {} if names is None else {n: float(np.mean(self.samples.labels == i)) for i, n in enumerate(names)}
        return {
            "model": {
                "name": self.checkpoint.source["name"],
                "architecture": spec.architecture,
                "task_type": spec.task_type,
                "layers": len(spec.layers),
                "hidden_size": spec.hidden_size,
                "heads": [layer.num_heads for layer in spec.layers],
                "units": [layer.intermediate_size for layer in spec.layers],
                "parameters": int(sum(array.size for array in tensors.values())),
                "embedding_parameters": int(sum(a.size for n, a in tensors.items() if n.startswith("embeddings."))),
            },
            "data": {
                "task": data.task.name,
                "train": len(data.train),
                "validation": len(data.validation),
                "samples": len(self.samples),
                "part_samples": len(self.part_samples),
                "seen": data.seen,
                "labels": labels,
                "tokens": {
                    "mean": float(lengths.mean()),
                    "p95": float(np.percentile(lengths, 95)),
                    "longest": int(lengths.max()),
                },
                "seed": self.options.seed,
            },
        }

    def statistics(self, progress: Progress) -> Statistics:
        """See `AnalysisFamily`: of as many training texts as there are samples."""
        return collect(self.model, self.learnt, self.options.seed, progress=progress)

    def held_out(self) -> HeldOutLoss:
        """See `AnalysisFamily`."""
        return HeldOutLoss(self.model, self.examples, task=self.data.task)

    def held_out_for_parts(self) -> HeldOutLoss:
        """See `AnalysisFamily`: in bfloat16 where that is faster, since ranks of removals stay."""
        return HeldOutLoss(self.model, self.examples, self.part_samples, self.data.task, has_bf16(self.model.device))

    def predictions(self, found: Statistics, elements: Sequence[Element]) -> dict[str, dict[str, float]]:
        """See `AnalysisFamily`: heads and groups have their gates' Fisher information, too."""
        tokens, out, errors = _tokens(found), dict[str, dict[str, float]](), dict[str, np.ndarray]()
        for element in elements:
            name, problem = element.linear, self._problem(element.linear, found)
            if element.part is None:
                out[element.name] = {"second_order": _without_compensation(problem, found.means[name]) * tokens}
                continue
            layer, attention = element.layer, element.kind == "attention"
            if name not in errors:
                dim = self.spec.layers[layer].head_dim
                errors[name] = group_curve(*problem, dim) if attention else channel_errors(*problem)
            gone = [element.index] if attention else np.flatnonzero(element.inputs(self.spec))
            fisher = found.heads[layer] if attention else found.channels[layer]
            out[element.name] = {
                "second_order": float(errors[name][gone].sum() * tokens),
                "fisher": float(fisher[gone].sum() / found.examples),
            }
        return out

    def more(self, found: Statistics, progress: Progress) -> dict[str, Any]:
        """See `AnalysisFamily`: tiles of every linear, rows of the embedding table, times, and what speedups cost."""
        tokens, model, options = _tokens(found), self.model, self.options
        tiles = self._tiles(found, progress.part(0.0, TILES_SHARE))
        scores = {
            name: spread(scores, *model.weight(f"{name}.weight").shape) * tokens for name, scores in tiles.items()
        }
        timed = Timed(self.train.ids, options.threads, options.seed)
        latency, front = costs(model, scores, timed, progress.part(TILES_SHARE, 1.0))
        return {
            "linears": [_linear(name, scores, tokens) for name, scores in tiles.items()],
            "embeddings": self._embeddings(found),
            "latency": latency,
            "front": front,
        }

    def _problem(self, name: str, found: Statistics) -> Problem:
        return self.model.weight(f"{name}.weight").detach().cpu().numpy(), found.inputs[name], found.gradients[name]

    def _tiles(self, found: Statistics, progress: Progress) -> dict[str, np.ndarray]:
        """Return, by linear, f64[strips, columns] what the loss of a token gains when the tile goes."""
        names = [name for name, _ in self.spec.linears() if name.startswith("layers.")]
        out = {}
        for done, name in enumerate(names):
            progress.count(done, len(names), f"scoring tiles of {name}")
            out[name] = tile_curve(*self._problem(name, found))
        return out

    def _embeddings(self, found: Statistics) -> dict[str, Any]:
        rows, size = self.spec.vocab_size, self.spec.embedding_size
        used = np.bincount(np.concatenate([np.asarray(ids) for ids in self.train.ids]), minlength=rows) > 0
        tokens = np.concatenate([np.asarray(ids) for ids in self.examples.ids])
        return {
            "rows": rows,
            "used": int(used.sum()),
            "used_share": float(used.mean()),
            "seen": int((found.counts > 0).sum()),
            "unseen_tokens": float(np.mean(~used[tokens])),
            "parameter_share": rows * size / sum(array.size for array in self.checkpoint.tensors.values()),
            "curve": concentration(found.rows),
        }


def _tokens(found: Statistics) -> float:
    """Return the tokens of a text: what a token's loss gains, times these, is what a text's does."""
    return found.tokens / found.examples


def _without_compensation(problem: Problem, mean: np.ndarray) -> float:
    """Return 1/2 sum_r G_rr w_r A w_r^T, less what the mean output covers.

    Nothing is left of a block that could make up for it.
    """
    weight, moment, gradient = problem
    spread = np.einsum("ri,ij,rj->r", weight, moment - np.outer(mean, mean), weight, optimize=True)
    return float(0.5 * (gradient * np.maximum(spread, 0)).sum())


def _linear(name: str, scores: np.ndarray, tokens: float) -> dict[str, Any]:
    return {"name": name, "tiles": scores.size, "loss": float(scores.sum() * tokens), "curve": concentration(scores)}


def concentration(scores: np.ndarray) -> list[list[float]]:
    """[[share of entries, share of the scores' sum that these hold]], the largest entries first."""
    ordered = np.sort(scores.ravel())[::-1]
    held = np.concatenate([[0.0], np.cumsum(ordered)])
    total = held[-1] or 1.0
    return [[share, float(np.interp(share * ordered.size, np.arange(held.size), held) / total)] for share in CURVE]
