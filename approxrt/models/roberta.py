"""RoBERTa (Liu et al. 2019, arXiv 1907.11692) and the models that share its code: CamemBERT, XLM-RoBERTa.

Two conventions differ from BERT. Positions count from padding_idx + 1, so the
first rows of the table are never read: they are cut off, and position 0 is the
first token. And there is one token type, whose row is the same for every token:
it is added to the position table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.models.base import Config, HeadNames, Readout, Weights
from approxrt.models.post_norm import PostNormFamily, build_post_norm

MODEL_TYPES = ("roberta", "camembert", "xlm-roberta")
PREFIX = "roberta."
ACTIVATION_KEY = "hidden_act"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 1,
}
FAMILY = PostNormFamily(
    "roberta",
    HeadNames("classifier.dense", "classifier.out_proj", "tanh"),
    positions_after_pad=True,
    fold_single_type=True,
)


def build(config: Config, weights: Weights, pooling: Readout) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (all-f32 spec, tensors). `pooling` is None for a classifier."""
    return build_post_norm(FAMILY, config, weights, pooling)
