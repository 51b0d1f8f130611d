"""What the loss says of an element of a decoder: it is taken out alone, and the model is run on held-out text.

As `approxrt.significance.removal` for encoders (significance as in Nagarajan et al. 2020, arXiv 2010.03688). Elements
are attention and FFN blocks, key-value groups with all of their query heads, query heads, and groups of FFN units. What
is taken out leaves its mean output: its inputs of the output projection, or of `down`, are replaced by their means,
which is what `approxrt.pruning.decoder_structure.remove` builds before its refit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.pruning.structure import channel_groups, head_rows
from approxrt.torch_models.decoder import TorchDecoder


@dataclass(frozen=True)
class DecoderElement:
    """A block ("attention" or "ffn" of a layer), or a part: a "group" of keys and values, a "head", or "units"."""

    layer: int
    kind: str
    part: str | None = None
    index: int = 0

    @property
    def name(self) -> str:
        """As in "layers.3.ffn", "layers.3.attention.head.5", "layers.3.ffn.units.2"."""
        block = f"layers.{self.layer}.{self.kind}"
        return block if self.part is None else f"{block}.{self.part}.{self.index}"

    @property
    def linear(self) -> str:
        """The linear that reads what the element puts out."""
        return f"layers.{self.layer}." + ("attention.output" if self.kind == "attention" else "ffn.down")

    def inputs(self, spec: DecoderSpec) -> np.ndarray:
        """bool over the inputs of `linear`: those that come from the element."""
        layer = spec.layers[self.layer]
        width = layer.num_heads * layer.head_dim if self.kind == "attention" else layer.intermediate_size
        gone = np.zeros(width, bool)
        if self.part is None:
            gone[:] = True
        elif self.part == "units":
            gone[channel_groups(spec, width)[self.index]] = True
        else:
            per = layer.num_heads // layer.num_kv_heads if self.part == "group" else 1
            gone[head_rows(np.arange(self.index * per, (self.index + 1) * per), layer.head_dim)] = True
        return gone


@dataclass(frozen=True)
class DecoderRemoval:
    """The model without one element, on n tokens: nats a token, their change and its standard error (paired)."""

    element: DecoderElement
    loss: float
    change: float
    stderr: float
    improved: float


def elements_of(spec: DecoderSpec, parts: bool = True) -> list[DecoderElement]:
    """Blocks that are there, in the order of execution, each followed by its parts."""
    out: list[DecoderElement] = []
    for i, layer in enumerate(spec.layers):
        counts: list[tuple[str, str, int]] = []
        if layer.has_attention:
            out.append(DecoderElement(i, "attention"))
            counts = [("attention", "group", layer.num_kv_heads)]
            if layer.num_heads != layer.num_kv_heads:
                counts.append(("attention", "head", layer.num_heads))
        out += [DecoderElement(i, *part[:2], index) for part in counts for index in range(part[2]) if parts]
        if layer.has_ffn:
            out.append(DecoderElement(i, "ffn"))
            groups = len(channel_groups(spec, layer.intermediate_size))
            out += [DecoderElement(i, "ffn", "units", index) for index in range(groups) if parts]
    return out


def token_losses(model: TorchDecoder, x: torch.Tensor, ids: torch.Tensor, first: int = 0) -> torch.Tensor:
    """f32[tokens - 1] of one sequence i64[tokens] from the inputs of layer `first`."""
    for layer in range(first, len(model.spec.layers)):
        x = model.layer(layer, x)
    return functional.cross_entropy(model.head(x)[0, :-1], ids[1:], reduction="none")


def head_divergence(
    spec: DecoderSpec,
    tensors: Mapping[str, np.ndarray],
    head: np.ndarray,
    batch: torch.Tensor,
    with_table: bool = False,
    device: str | torch.device = "cpu",
) -> float:
    """KL(model || model with the head's matrix `head` f32[vocab, hidden]) of the next token, nats, mean over `batch`.

    with_table   the word table becomes the same
    """
    whole = TorchDecoder(spec, tensors, device)
    other = TorchDecoder(spec, {**tensors, "embeddings.word.weight": head}, device) if with_table else whole
    weight, total = torch.from_numpy(head).to(whole.device), 0.0
    with torch.inference_mode():
        for ids in batch.to(whole.device):
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


def measure_removals(
    spec: DecoderSpec,
    tensors: Mapping[str, np.ndarray],
    batch: torch.Tensor,
    means: Mapping[str, np.ndarray],
    elements: Iterable[DecoderElement] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    enough: Callable[[], bool] | None = None,
    device: str | torch.device = "cpu",
) -> tuple[float, list[DecoderRemoval]]:
    """(nats a token of the whole model, each of `elements` (default: all) taken out alone, in the order given).

    batch   i64[sequences, tokens] of held-out text
    means   E[x] of the inputs of "layers.i.attention.output" and "layers.i.ffn.down"
    enough  asked after each element: true when the time for this is over

    Memory: the inputs of every layer, 4 * hidden_size bytes a token each.
    """
    model = TorchDecoder(spec, tensors, device)
    batch = batch.to(model.device)
    chosen = list(elements_of(spec) if elements is None else elements)
    out: list[DecoderRemoval] = []
    with torch.inference_mode():
        inputs, baseline = [], list[torch.Tensor]()
        for ids in batch:
            x, kept = model.embed(ids[None]), []
            for layer in range(len(spec.layers)):
                kept.append(x)
                x = model.layer(layer, x)
            inputs.append(kept)
            baseline.append(functional.cross_entropy(model.head(x)[0, :-1], ids[1:], reduction="none"))
        whole = torch.cat(baseline).double().cpu().numpy()
        for done, element in enumerate(chosen):
            gone = torch.from_numpy(element.inputs(spec)).to(model.device)
            mean = torch.from_numpy(np.asarray(means[element.linear], np.float32)).to(model.device)

            def linear(name: str, x: torch.Tensor) -> torch.Tensor:
                return model.linear(name, torch.where(gone, mean, x) if name == element.linear else x)  # noqa: B023

            losses = []
            for ids, kept in zip(batch, inputs, strict=True):
                x = model.layer(element.layer, kept[element.layer], linear)
                losses.append(token_losses(model, x, ids, element.layer + 1))
            trial = torch.cat(losses).double().cpu().numpy()
            change = trial - whole
            out.append(
                DecoderRemoval(
                    element,
                    loss=float(trial.mean()),
                    change=float(change.mean()),
                    stderr=float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else 0.0,
                    improved=float((change < 0).mean()),
                )
            )
            if progress:
                progress(done + 1, len(chosen), f"removing {element.name}")
            if enough is not None and enough():
                break
    return float(whole.mean()), out
