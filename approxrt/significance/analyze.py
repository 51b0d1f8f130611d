"""Find what of a fine-tuned model its task needs: all measures of significance together, as one JSON document.

Coarse to fine: blocks, heads and groups of FFN channels by the loss without them (`approxrt.significance.removal`),
tiles of weights by second-order scores (`approxrt.pruning.obs`), rows of the embedding table by the gradient at the
embedding (`approxrt.significance.statistics`). Beside them what each block costs (`approxrt.significance.latency`), and
from both what a speedup would cost and which parts would pay for it (`approxrt.significance.pareto`).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.errors import InputError, MissingDependencyError, UnsupportedTaskError
from approxrt.progress import Progress, Show
from approxrt.random import Stream, generator
from approxrt.tasks.format import PLAIN, DataFormat, check_format

if TYPE_CHECKING:
    from approxrt.models.checkpoint import Checkpoint
    from approxrt.significance.encoder_removal import HeldOutLoss
    from approxrt.significance.removal import Removal
    from approxrt.significance.statistics import Statistics
    from approxrt.tasks.examples import Examples
    from approxrt.torch_models.encoder import TorchEncoder
    from approxrt.training.data import DataOptions, TaskData

LEAST_SAMPLES = 20
PART_SAMPLES = 400  # heads and groups are many: what they cost is measured on so many of the samples, at most
CURVE = tuple(i / 20 for i in range(21))


@dataclass(frozen=True)
class _Settings:
    samples: int
    reading: DataOptions
    max_length: int
    threads: int
    device: str


def analyze(
    checkpoint: str | os.PathLike[str],
    task: str,
    data: str | os.PathLike[str],
    *,
    samples: int = 1000,
    seed: int = 0,
    threads: int | None = None,
    max_length: int = 128,
    val_fraction: float = 0.1,
    data_format: DataFormat = PLAIN,
    device: str = "auto",
    progress: Show | None = None,
) -> dict[str, Any]:
    """Analyse a fine-tuned checkpoint on the training data of its task; a document of plain data.

    samples       texts held out of training that losses are measured on (those without heads or groups of neurons on
                  at most 400 of them); as many training texts give statistics
    val_fraction  share of train to hold out, where the checkpoint does not name the texts that it has not learnt from
    data_format   how the data files are laid out, where otherwise than their task's own
    device        where torch computes: "cpu", "cuda" or "auto"; times are the CPU's

    Keys of the document:
      model       name, architecture, task_type, layers, hidden_size, heads and units (by layer), parameters,
                  embedding_parameters
      data        task, train, validation, samples, part_samples (numbers of texts; the last for heads and groups),
                  seen (the held-out texts may have been trained on), labels {name: share of the samples} (empty for
                  scores), tokens {mean, p95, longest}, seed
      dense       loss, stderr, metric (its name), value: of the whole model on the samples
      blocks      [{name, layer, kind, loss, change, stderr, metric, metric_change, improved, zero_change,
                  second_order}], in the order of execution. A block is taken out alone and leaves its mean output;
                  zero_change is the loss's change when it leaves nothing (the paper's way)
      heads       the same of each head, with `part` for zero_change, second_order and `fisher`
      groups      the same of each of up to 12 groups of FFN channels, with `neurons` [first, last]
      ranking     names of the blocks, the least significant first
      linears     [{name, tiles, loss, curve}]: curve [[share of tiles kept, share of significance kept]], the best
                  tiles first; loss: predicted increase of the loss when all go
      embeddings  rows, used (by the training texts), used_share, seen (rows of the statistics' texts), unseen_tokens
                  (share of the samples' tokens whose row no training text uses), parameter_share, curve
      latency     cpu, threads, texts, tokens, f32_ms, int8_ms (the whole model, measured), base_ms, correction
                  (measured over predicted), attention and ffn {sizes, densities, ms} of one block
      front       [{speedup, ms, speedup_f32, loss, blocks {name: {size, of, density}}}]: predicted, speedup over the
                  dense int8 model
      seconds     of the whole analysis

    Losses are in nats a text, or squared errors. `second_order` is the predicted increase when all other weights make
    up for the loss as well as they can; `fisher` is the mean square of a gate's gradient.

    Raises InputError, DataError, CheckpointError, UnsupportedTaskError, MissingDependencyError.
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError("torch", "compress", "analysing a model")
    if samples < LEAST_SAMPLES:
        raise InputError(f"samples is {samples}; at least {LEAST_SAMPLES} are needed")
    if max_length < 1:
        raise InputError(f"max_length is {max_length}; it must be at least 1")
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
    check_format(data_format)
    import torch

    from approxrt.runtime.threads import resolve_threads
    from approxrt.training.data import DataOptions

    count, before = resolve_threads(threads), torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        reading = DataOptions(seed, val_fraction, None, data_format)
        settings = _Settings(samples, reading, max_length, count, device)
        return _Analysis(checkpoint, task, data, settings, Progress.of(progress)).run()
    finally:
        torch.set_num_threads(before)


class _Analysis:
    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        task: str,
        data: str | os.PathLike[str],
        settings: _Settings,
        progress: Progress,
    ) -> None:
        from approxrt.models.checkpoint import find_folder, load_checkpoint
        from approxrt.significance.encoder_removal import HeldOutLoss
        from approxrt.tasks.examples import encode
        from approxrt.torch_models.device import resolve_device
        from approxrt.torch_models.encoder import TorchEncoder
        from approxrt.training.data import read_data

        self.started = time.monotonic()
        reading, samples = settings.reading, settings.samples
        self.progress, self.seed, self.threads = progress, reading.seed, settings.threads
        device = resolve_device(settings.device)
        self.progress(0.0, "reading the checkpoint and the data")
        folder = find_folder(checkpoint)
        self.checkpoint: Checkpoint = load_checkpoint(folder)
        _require_labels(self.checkpoint, folder)
        self.data: TaskData = read_data(task, data, self.checkpoint, folder, reading)
        length = min(settings.max_length, self.checkpoint.spec.max_length)
        self.rng = generator(self.seed, Stream.ANALYSIS)
        chosen = self._draw(len(self.data.validation), samples)
        self.held_out = self.data.validation.subset(chosen)
        self.train = encode(self.data.train, self.checkpoint.tokenizer_json, length)
        self.examples = encode(self.held_out, self.checkpoint.tokenizer_json, length)
        self.statistics_rows = self._draw(len(self.data.train), samples)
        self.model: TorchEncoder = TorchEncoder(self.checkpoint.spec, self.checkpoint.tensors, device=device)
        self.held: HeldOutLoss = HeldOutLoss(self.model, self.examples, task=self.data.task)

    def _draw(self, count: int, most: int) -> np.ndarray:
        return np.sort(self.rng.permutation(count)[:most])

    def run(self) -> dict[str, Any]:
        from approxrt.significance.pareto import costs, spread
        from approxrt.significance.statistics import collect

        rows, model = self.statistics_rows, self.model
        stats = collect(model, self.train, rows, self.seed, progress=self.progress.part(0.02, 0.15))
        out: dict[str, Any] = {"model": _model_facts(self.checkpoint), "data": self._data_facts()}
        out |= self._removals(stats)
        # What a token's loss gains, times the tokens of a text, is what a text's does.
        tokens = stats.tokens / stats.examples
        tiles = self._tiles(stats, self.progress.part(0.55, 0.8))
        self._second_order(out, stats, tokens)
        out["linears"] = [_linear(name, scores, tokens) for name, scores in tiles.items()]
        out["embeddings"] = _embeddings(self.checkpoint, self.train, self.examples, stats)
        elements = {
            name: spread(scores, *model.weight(f"{name}.weight").shape) * tokens for name, scores in tiles.items()
        }
        out["latency"], out["front"] = costs(
            model, elements, self.train.ids, self.threads, self.seed, self.progress.part(0.8, 1.0)
        )
        out["seconds"] = round(time.monotonic() - self.started, 1)
        return out

    def _data_facts(self) -> dict[str, Any]:
        data, lengths = self.data, self.examples.lengths
        names = data.train.label_names
        labels = {} if names is None else {n: float(np.mean(self.held_out.labels == i)) for i, n in enumerate(names)}
        return {
            "task": data.task.name,
            "train": len(data.train),
            "validation": len(data.validation),
            "samples": len(self.held_out),
            "part_samples": min(PART_SAMPLES, len(self.held_out)),
            "seen": data.seen,
            "labels": labels,
            "tokens": {
                "mean": float(lengths.mean()),
                "p95": float(np.percentile(lengths, 95)),
                "longest": int(lengths.max()),
            },
            "seed": self.seed,
        }

    def _removals(self, stats: Statistics) -> dict[str, Any]:
        from approxrt.significance.elements import channel_parts, elements_of
        from approxrt.significance.encoder_removal import HeldOutLoss
        from approxrt.significance.removal import measure_removals, standard_error
        from approxrt.tasks.metrics import compute_metrics
        from approxrt.torch_models.device import has_bf16

        held, spec = self.held, self.model.spec
        held.move(0)
        outputs = held.outputs()
        losses = held.losses(outputs)
        name, value = next(iter(compute_metrics(self.data.task, outputs, held.labels).items()))
        blocks = elements_of(spec, parts=False)
        parts = [element for element in elements_of(spec) if element.part is not None]
        found = measure_removals(held, stats.means, blocks, self.progress.part(0.15, 0.2)).removals
        zero = measure_removals(held, None, blocks, self.progress.part(0.2, 0.25)).removals
        # The samples were drawn and stand in the order of the file: some of them are drawn again.
        fewer = self._draw(len(held), PART_SAMPLES)
        few = HeldOutLoss(self.model, self.examples, fewer, self.data.task, has_bf16(self.model.device))
        found += measure_removals(few, stats.means, parts, self.progress.part(0.25, 0.55)).removals
        zeros = {removal.element: removal.change for removal in zero}
        out: dict[str, Any] = {
            "dense": {
                "loss": float(losses.mean()),
                "stderr": standard_error(losses),
                "metric": name,
                "value": float(value),
            },
            "blocks": [_entry(r) | {"zero_change": zeros[r.element]} for r in found if r.element.part is None],
            "heads": [],
            "groups": [],
        }
        for removal in found:
            element = removal.element
            if element.part is None:
                continue
            entry = _entry(removal) | {"part": element.index}
            if element.kind == "attention":
                out["heads"].append(entry)
            else:
                neurons = channel_parts(spec, spec.layers[element.layer].intermediate_size)[element.index]
                out["groups"].append(entry | {"neurons": [int(neurons[0]), int(neurons[-1])]})
        out["ranking"] = [b["name"] for b in sorted(out["blocks"], key=lambda block: block["change"])]
        return out

    def _second_order(self, out: dict[str, Any], stats: Statistics, tokens: float) -> None:
        """Add what the statistics predict to blocks, heads and groups."""
        from approxrt.pruning.obs import channel_errors, group_curve

        spec, errors, channels = self.model.spec, {}, {}
        for i, layer in enumerate(spec.layers):
            if layer.num_heads:
                errors[i] = group_curve(*self._problem(f"layers.{i}.attention.output", stats), layer.head_dim)
            if layer.intermediate_size:
                channels[i] = channel_errors(*self._problem(f"layers.{i}.ffn.down", stats))
        for entry in out["heads"]:
            i, part = entry["layer"], entry["part"]
            entry["second_order"] = float(errors[i][part] * tokens)
            entry["fisher"] = float(stats.heads[i][part] / stats.examples)
        for entry in out["groups"]:
            i, (first, last) = entry["layer"], entry["neurons"]
            entry["second_order"] = float(channels[i][first : last + 1].sum() * tokens)
            entry["fisher"] = float(stats.channels[i][first : last + 1].sum() / stats.examples)
        for block in out["blocks"]:
            linear = "attention.output" if block["kind"] == "attention" else "ffn.down"
            weight, moment, gradient = self._problem(f"layers.{block['layer']}.{linear}", stats)
            # Nothing is left that could make up for it: 1/2 sum_r G_rr w_r A w_r^T, less what the mean output covers.
            mean = stats.means[f"layers.{block['layer']}.{linear}"]
            spread = np.einsum("ri,ij,rj->r", weight, moment - np.outer(mean, mean), weight, optimize=True)
            block["second_order"] = float(0.5 * (gradient * np.maximum(spread, 0)).sum() * tokens)

    def _problem(self, name: str, stats: Statistics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.model.weight(f"{name}.weight").detach().cpu().numpy(), stats.inputs[name], stats.gradients[name]

    def _tiles(self, stats: Statistics, progress: Progress) -> dict[str, np.ndarray]:
        """Return, by linear, f64[strips, columns] what the loss of a token gains when the tile goes."""
        from approxrt.pruning.obs import tile_curve

        names = [name for name, _ in self.model.spec.linears() if name.startswith("layers.")]
        out = {}
        for done, name in enumerate(names):
            progress.count(done, len(names), f"scoring tiles of {name}")
            out[name] = tile_curve(*self._problem(name, stats))
        return out


# -- parts of the document ------------------------------------------------------


def _require_labels(checkpoint: Checkpoint, folder: Path) -> None:
    spec = checkpoint.spec
    if not spec.labels:
        raise UnsupportedTaskError(
            f"checkpoint {str(folder)!r} is an encoder without a head, and an analysis needs the loss of a task: "
            "fine-tune it first (approxrt finetune)"
        )
    if spec.task_type == "multi_label":
        raise UnsupportedTaskError(
            f"checkpoint {str(folder)!r} gives a text several labels (multi_label), which no task here has; "
            "classification and regression can be analysed"
        )


def _model_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    spec, tensors = checkpoint.spec, checkpoint.tensors
    return {
        "name": checkpoint.source["name"],
        "architecture": spec.architecture,
        "task_type": spec.task_type,
        "layers": len(spec.layers),
        "hidden_size": spec.hidden_size,
        "heads": [layer.num_heads for layer in spec.layers],
        "units": [layer.intermediate_size for layer in spec.layers],
        "parameters": int(sum(array.size for array in tensors.values())),
        "embedding_parameters": int(sum(a.size for n, a in tensors.items() if n.startswith("embeddings."))),
    }


def _entry(removal: Removal) -> dict[str, Any]:
    element = removal.element
    return {
        "name": element.name,
        "layer": element.layer,
        "kind": element.kind,
        "loss": removal.loss,
        "change": removal.change,
        "stderr": removal.stderr,
        "metric": removal.metric,
        "metric_change": removal.metric_change,
        "improved": removal.improved,
    }


def _linear(name: str, scores: np.ndarray, tokens: float) -> dict[str, Any]:
    return {"name": name, "tiles": scores.size, "loss": float(scores.sum() * tokens), "curve": concentration(scores)}


def concentration(scores: np.ndarray) -> list[list[float]]:
    """[[share of entries, share of the scores' sum that these hold]], the largest entries first."""
    ordered = np.sort(scores.ravel())[::-1]
    held = np.concatenate([[0.0], np.cumsum(ordered)])
    total = held[-1] or 1.0
    return [[share, float(np.interp(share * ordered.size, np.arange(held.size), held) / total)] for share in CURVE]


def _embeddings(checkpoint: Checkpoint, train: Examples, examples: Examples, stats: Statistics) -> dict[str, Any]:
    rows, size = checkpoint.spec.vocab_size, checkpoint.spec.embedding_size
    used = np.bincount(np.concatenate([np.asarray(ids) for ids in train.ids]), minlength=rows) > 0
    tokens = np.concatenate([np.asarray(ids) for ids in examples.ids])
    parameters = sum(array.size for array in checkpoint.tensors.values())
    return {
        "rows": rows,
        "used": int(used.sum()),
        "used_share": float(used.mean()),
        "seen": int((stats.counts > 0).sum()),
        "unseen_tokens": float(np.mean(~used[tokens])),
        "parameter_share": rows * size / parameters,
        "curve": concentration(stats.rows),
    }
