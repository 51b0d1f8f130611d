"""Quantisation-aware fine-tuning of a transformers module: int8 weights and activations (Q8BERT, arXiv 1910.06188).

Every linear of the encoder computes on the engine's int8 grid, weights by output channel and activations by token, with
straight-through gradients; rows of the word embeddings are on theirs. The classifier's last layer stays float, as in
artifacts. A trained module's weights are rounded in the end, so that the checkpoint holds what was trained, and
`approxrt convert` finds the same grid again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from approxrt.quantization.fake_quantize import quantize_activations, quantize_weight8


def quantize_module(model: nn.Module) -> None:
    """Let the module compute on int8 grids from now on. Its parameters and their names stay as they are."""
    for linear in _linears(model):
        linear.forward = _Int8Forward(linear)
    for table in _embedding_tables(model):
        table.register_forward_hook(_round_output)


def round_weights(model: nn.Module) -> None:
    """Put the weights that `quantize_module` rounds on the fly onto their grids for good."""
    with torch.no_grad():
        for linear in _linears(model):
            linear.weight.copy_(quantize_weight8(linear.weight))
        for table in _embedding_tables(model):
            table.weight.copy_(quantize_weight8(table.weight))


class _Int8Forward:
    """A linear's forward on the int8 grid; a class, so that the module can still be copied."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(quantize_activations(x), quantize_weight8(self.linear.weight), self.linear.bias)


def _round_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    # A looked-up row has its own scale: rounding what was looked up is rounding the table.
    return quantize_activations(output)


def _linears(model: nn.Module) -> Iterator[nn.Linear]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "layer" in name.split("."):
            yield module


def _embedding_tables(model: nn.Module) -> Iterator[nn.Embedding]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("word_embeddings"):
            yield module
