"""Decoders in an analysis: a checkpoint with a plain text, whose first four fifths give statistics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from approxrt.errors import InputError
from approxrt.models.decoder import load_any_decoder
from approxrt.progress import Progress
from approxrt.pruning.obs import inverse_moments
from approxrt.quantization.calibration import calibration
from approxrt.significance.decoder_removal import HeldOutText
from approxrt.significance.decoder_statistics import collect_from_text
from approxrt.significance.elements import DECODER_CHANNELS, HEAD, KEY_VALUE_GROUP, Element
from approxrt.significance.family import MAX_LENGTH, VAL_FRACTION, AnalysisOptions, PartRows
from approxrt.significance.statistics import Statistics
from approxrt.tasks.format import PLAIN
from approxrt.tasks.registry import Task
from approxrt.tasks.text import split, text_file, token_ids
from approxrt.torch_models.decoder import TorchDecoder
from approxrt.torch_models.device import resolve_device

SEQUENCE = 512
STATISTICS_SEQUENCES = 4
DAMPING = 1e-2  # of the moments' mean diagonal


class AnalyzedDecoder:
    """See the module's text and `approxrt.significance.family.AnalysisFamily`."""

    part_rows: ClassVar[Mapping[str, PartRows]] = {
        KEY_VALUE_GROUP: PartRows("groups"),
        HEAD: PartRows("heads"),
        DECODER_CHANNELS: PartRows("units", "units"),
    }
    removals_end = 1.0

    def __init__(
        self, checkpoint: str | os.PathLike[str], task: Task, data: str | os.PathLike[str], options: AnalysisOptions
    ) -> None:
        _refuse(task, options)
        loaded = load_any_decoder(checkpoint)
        self.task, self.source, self.spec, self.tensors = task, loaded.source, loaded.spec, dict(loaded.tensors)
        ids = token_ids(loaded.tokenizer_json, text_file(data))
        sequence = min(SEQUENCE, self.spec.max_positions)
        calibrating, held_out = split(ids, sequence)
        self.tokens = len(ids)
        self.texts = calibration(calibrating, STATISTICS_SEQUENCES, sequence)
        sequence = min(sequence, len(held_out))
        self.samples = calibration(held_out, -(-options.samples // sequence), sequence)
        self.model = TorchDecoder(self.spec, self.tensors, resolve_device(options.device))

    def facts(self) -> dict[str, Any]:
        """See `AnalysisFamily`."""
        return {
            "model": {
                "name": self.source["name"],
                "architecture": self.spec.architecture,
                "layers": len(self.spec.layers),
                "hidden_size": self.spec.hidden_size,
                "parameters": self.source["parameters"],
            },
            "data": {
                "task": self.task.name,
                "tokens": self.tokens,
                "samples": int(self.samples.numel()),
                "part_samples": int(self.samples[:1].numel()),
            },
        }

    def statistics(self, progress: Progress) -> Statistics:
        """See `AnalysisFamily`."""
        return collect_from_text(self.model, self.texts, progress=progress)

    def held_out(self) -> HeldOutText:
        """See `AnalysisFamily`."""
        return HeldOutText(self.model, self.samples)

    def held_out_for_parts(self) -> HeldOutText:
        """See `AnalysisFamily`: on one piece."""
        return HeldOutText(self.model, self.samples[:1])

    def predictions(self, found: Statistics, elements: Sequence[Element]) -> dict[str, dict[str, float]]:
        """See `AnalysisFamily`: of a block's last linear, once its other inputs' weights have been adjusted."""
        inverses: dict[str, np.ndarray] = {}
        out = {}
        for element in elements:
            name = element.linear
            if name not in inverses:
                inverses[name] = inverse_moments(found.linears[name].weighted, DAMPING).numpy()
            gone = element.inputs(self.spec)
            weight = self.tensors[f"{name}.weight"][:, gone].astype(np.float64)
            solved = np.linalg.solve(inverses[name][np.ix_(gone, gone)], weight.T)
            out[element.name] = {"second_order": float(0.5 * np.einsum("nk,kn->", weight, solved))}
        return out

    def more(self, found: Statistics, progress: Progress) -> dict[str, Any]:
        """See `AnalysisFamily`: the weights that a token reads."""
        weights = dict.fromkeys(("attention", "ffn"), 0) | {"head": self.spec.vocab_size * self.spec.hidden_size}
        for name, linear in self.spec.linears():
            if name.startswith("layers."):
                weights[name.split(".")[2]] += linear.out_features * linear.in_features
        return {"weights": weights}


def _refuse(task: Task, options: AnalysisOptions) -> None:
    """Raise InputError naming every option that a plain text does not have."""
    given = {
        f"max_length ({options.max_length})": options.max_length != MAX_LENGTH,
        f"val_fraction ({options.val_fraction})": options.val_fraction != VAL_FRACTION,
        "data_format": options.data_format != PLAIN,
    }
    wrong = [name for name, is_given in given.items() if is_given]
    if wrong:
        raise InputError(
            f"not available for task {task.name!r}: {', '.join(wrong)}; losses are measured on pieces of "
            f"{SEQUENCE} tokens of the text's last fifth"
        )
