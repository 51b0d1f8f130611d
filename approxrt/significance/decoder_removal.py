"""A decoder on held-out text, without one element at a time; and with another head.

Elements are blocks, key-value groups with all of their query heads, query heads, and groups of FFN channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from approxrt.artifact.spec.decoder import AnySpec, DecoderSpec
from approxrt.significance.elements import Element
from approxrt.significance.removal import Means
from approxrt.torch_models.decoder import TorchDecoder


class HeldOutText:
    """Held-out text i64[sequences, tokens], a sequence in a pass of its own, with the inputs of every block.

    Memory: 4 * hidden_size bytes a token, for each block.
    """

    def __init__(self, model: TorchDecoder, batch: torch.Tensor) -> None:
        self.model, self.spec = model, model.spec
        self.batch, self.stage = batch.to(model.device), 0
        self._inputs: list[list[torch.Tensor]] = []

    @property
    def any_spec(self) -> AnySpec:
        return self.spec

    @property
    def metric_name(self) -> str:
        return "perplexity"

    def move(self, stage: int) -> None:
        """Start from the block at `stage`."""
        self.stage = stage

    def outputs(self) -> np.ndarray:
        """Return nats f64[all tokens that have one before them] of the whole model."""
        with torch.inference_mode():
            losses = [self._losses(self.stage, x[self.stage], i) for i, x in enumerate(self._kept())]
        return self._together(losses)

    def outputs_without(self, elements: Sequence[Element], means: Means) -> list[np.ndarray]:
        """Return the same without each of `elements`, which are of one block."""
        name = elements[0].linear
        mean = 0.0 if means is None else self._there(np.asarray(means[name], np.float32))
        found: list[list[torch.Tensor]] = [[] for _ in elements]
        gone = [self._there(element.inputs(self.spec)) for element in elements]
        with torch.inference_mode():
            for i, kept in enumerate(self._kept()):
                layer, x = elements[0].layer, kept[self.stage]
                read = self.model.channels(layer, x) if self.stage % 2 else self.model.context(layer, x)
                for element, its, out in zip(elements, gone, found, strict=True):
                    y = self.model.linear(name, torch.where(its, mean, read))
                    if element.part is None and means is None:
                        y = torch.zeros_like(y)
                    out.append(self._losses(self.stage + 1, x + y, i))
        return [self._together(losses) for losses in found]

    def losses(self, outputs: np.ndarray) -> np.ndarray:
        """Return nats of every token."""
        return outputs

    def metric(self, outputs: np.ndarray) -> float:
        """Return perplexity."""
        return float(np.exp(outputs.mean()))

    def _kept(self) -> list[list[torch.Tensor]]:
        """Return the inputs of every block, by sequence."""
        if not self._inputs:
            for ids in self.batch:
                x, kept = self.model.embed(ids[None]), []
                for stage in range(2 * len(self.spec.layers)):
                    kept.append(x)
                    x = self._block(stage, x)
                self._inputs.append([*kept, x])
        return self._inputs

    def _block(self, stage: int, x: torch.Tensor) -> torch.Tensor:
        layer, second = divmod(stage, 2)
        return self.model.ffn_block(layer, x) if second else self.model.attention_block(layer, x)

    def _losses(self, stage: int, x: torch.Tensor, sequence: int) -> torch.Tensor:
        """Return f32[tokens - 1] of one sequence from the inputs of a block on."""
        for later in range(stage, 2 * len(self.spec.layers)):
            x = self._block(later, x)
        return functional.cross_entropy(self.model.head(x)[0, :-1], self.batch[sequence][1:], reduction="none")

    def _together(self, losses: list[torch.Tensor]) -> np.ndarray:
        together: np.ndarray = torch.cat(losses).double().cpu().numpy()
        return together

    def _there(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.model.device)


def head_divergence(
    spec: DecoderSpec,
    tensors: Mapping[str, np.ndarray],
    head: np.ndarray,
    batch: torch.Tensor,
    with_table: bool = False,
) -> float:
    """KL(model || model with the head's matrix `head` f32[vocab, hidden]) of the next token, nats, mean over `batch`,
    on its device.

    with_table   the embedding table becomes the same
    """
    whole = TorchDecoder(spec, tensors, batch.device)
    other = TorchDecoder(spec, {**tensors, "embeddings.word.weight": head}, batch.device) if with_table else whole
    weight, total = torch.from_numpy(head).to(whole.device), 0.0
    with torch.inference_mode():
        for ids in batch:
            hidden = [_last_hidden(model, ids) for model in dict.fromkeys((whole, other))]
            wanted = whole.linear("head.out", hidden[0]).log_softmax(-1)
            found = functional.linear(hidden[-1], weight, whole.weights["head.out.bias"]).log_softmax(-1)
            total += float(functional.kl_div(found, wanted, log_target=True, reduction="sum"))
    return total / batch.numel()


def _last_hidden(model: TorchDecoder, ids: torch.Tensor) -> torch.Tensor:
    x = model.embed(ids[None])
    for layer in range(len(model.spec.layers)):
        x = model.layer(layer, x)
    return model.norm("head.norm", x)[0]
