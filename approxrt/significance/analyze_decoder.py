"""Analyze what of a decoder a text needs: blocks, key-value groups, heads, groups of FFN channels; a JSON document."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.errors import InputError, MissingDependencyError
from approxrt.progress import Progress, Show

if TYPE_CHECKING:
    from approxrt.significance.removal import Removal

SEQUENCE = 512
STATISTICS_SEQUENCES = 4


def analyze_decoder(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    samples: int = 1000,
    threads: int | None = None,
    device: str = "auto",
    progress: Show | None = None,
) -> dict[str, Any]:
    """Analyse a decoder on a plain text: its first four fifths give statistics, losses are measured on the last.

    samples   tokens that losses without a block are measured on, in whole pieces of 512 (of the model's context, if
              that is less), as far as the text goes; those without parts of a block are measured on one piece
    device    where torch computes: "cpu", "cuda" or "auto"

    Keys of the document:
      model     name, architecture, layers, hidden_size, parameters
      data      task, tokens (of the text), samples, part_samples (tokens that losses are measured on)
      dense     loss, metric ("perplexity"), value: of the whole model on the samples
      blocks    [{name, layer, kind, loss, change, stderr, improved, metric, metric_change, second_order}] in the order
                of execution. A block is taken out alone and leaves its mean output; `second_order` is the predicted
                change when all other weights make up for it
      groups    the same of each key-value group with its query heads, with `part` (its number)
      heads     the same of each query head, where several share keys and values
      units     the same of each group of FFN channels, with `units` [first, last]
      weights   of "attention", "ffn" and "head": how many are read for each token that is written
      ranking   names of the blocks, the least significant first
      seconds   of the whole analysis

    Losses are in nats a token. Raises InputError, DataError, CheckpointError, UnsupportedModelError,
    MissingDependencyError.
    """
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError("torch", "compress", "analysing a model")
    if samples < 2:
        raise InputError(f"samples is {samples}; at least 2 tokens are needed")
    import torch

    from approxrt.runtime.threads import resolve_threads

    count, before = resolve_threads(threads), torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return _analyze(checkpoint, data, samples, device, Progress.of(progress))
    finally:
        torch.set_num_threads(before)


def _analyze(
    checkpoint: str | os.PathLike[str], data: str | os.PathLike[str], samples: int, device: str, progress: Progress
) -> dict[str, Any]:
    from approxrt.models.decoder import load_any_decoder
    from approxrt.quantization.calibration import calibration
    from approxrt.significance.decoder_removal import HeldOutText
    from approxrt.significance.decoder_statistics import collect_from_text
    from approxrt.significance.elements import elements_of
    from approxrt.significance.removal import measure_removals
    from approxrt.tasks.text import split, text_file, token_ids
    from approxrt.torch_models.decoder import TorchDecoder
    from approxrt.torch_models.device import resolve_device

    started = time.monotonic()
    progress(0.0, "reading the checkpoint and the text")
    model = load_any_decoder(checkpoint)
    spec, tensors = model.spec, dict(model.tensors)
    ids = token_ids(model.tokenizer_json, text_file(data))
    sequence = min(SEQUENCE, spec.max_positions)
    calibrating, held_out = split(ids, sequence)
    sequence = min(sequence, len(held_out))
    held = calibration(held_out, -(-samples // sequence), sequence)
    decoder = TorchDecoder(spec, tensors, resolve_device(device))
    texts = calibration(calibrating, STATISTICS_SEQUENCES, min(SEQUENCE, spec.max_positions))
    found = collect_from_text(decoder, texts, progress=progress.part(0.02, 0.1))
    stats, means = found.linears, found.means
    everything = elements_of(spec)
    blocks = [element for element in everything if element.part is None]
    parts = [element for element in everything if element.part is not None]
    removed = measure_removals(HeldOutText(decoder, held), means, blocks, progress.part(0.1, 0.4))
    of_parts = measure_removals(HeldOutText(decoder, held[:1]), means, parts, progress.part(0.4, 1.0)).removals
    dense = removed.baseline
    predicted = _second_order(spec, tensors, stats, everything)

    def rows(found: list[Removal], part: str | None) -> list[dict[str, Any]]:
        return [_row(r, dense, predicted[r.element.name], spec) for r in found if r.element.part == part]

    document: dict[str, Any] = {
        "model": {
            "name": model.source["name"],
            "architecture": spec.architecture,
            "layers": len(spec.layers),
            "hidden_size": spec.hidden_size,
            "parameters": model.source["parameters"],
        },
        "data": {
            "task": "lm",
            "tokens": len(ids),
            "samples": int(held.numel()),
            "part_samples": int(held[:1].numel()),
        },
        "dense": {"loss": dense, "metric": "perplexity", "value": float(np.exp(dense))},
        "blocks": rows(removed.removals, None),
        "groups": rows(of_parts, "group"),
        "heads": rows(of_parts, "head"),
        "units": rows(of_parts, "units"),
    }
    weights = dict.fromkeys(("attention", "ffn"), 0) | {"head": spec.vocab_size * spec.hidden_size}
    for name, linear in spec.linears():
        if name.startswith("layers."):
            weights[name.split(".")[2]] += linear.out_features * linear.in_features
    document["weights"] = weights
    ranked = sorted(document["blocks"], key=lambda row: row["change"])
    return document | {"ranking": [row["name"] for row in ranked], "seconds": round(time.monotonic() - started, 1)}


def _row(removal: Removal, dense: float, predicted: float, spec: Any) -> dict[str, Any]:
    from approxrt.pruning.structure import channel_groups

    element = removal.element
    facts = asdict(removal)
    del facts["element"]
    row = {"name": element.name, "layer": element.layer, "kind": element.kind, **facts}
    # The whole model's loss on the same tokens is the trial's less its change.
    value = float(np.exp(removal.loss))
    row |= {"metric": value, "metric_change": value - float(np.exp(removal.loss - removal.change))}
    row["second_order"] = predicted
    if element.part == "units":
        channels = channel_groups(spec, spec.layers[element.layer].intermediate_size)[element.index]
        row["units"] = [int(channels[0]), int(channels[-1])]
    if element.part is not None:
        row["part"] = element.index
    return row


def _second_order(spec: Any, tensors: Any, stats: Any, elements: Any) -> dict[str, float]:
    """Return, of the last linear of a block, what removing the element's inputs costs once the others have adjusted."""
    from approxrt.pruning.obs import inverse_moments

    inverses: dict[str, np.ndarray] = {}
    out = {}
    for element in elements:
        name = element.linear
        if name not in inverses:
            inverses[name] = inverse_moments(stats[name].weighted, 1e-2).numpy()
        gone = element.inputs(spec)
        weight = tensors[f"{name}.weight"][:, gone].astype(np.float64)
        solved = np.linalg.solve(inverses[name][np.ix_(gone, gone)], weight.T)
        out[element.name] = float(0.5 * np.einsum("nk,kn->", weight, solved))
    return out
