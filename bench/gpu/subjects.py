"""Models of random weights that the GPU's benchmarks run; speed depends on sizes and not on values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from approxrt.approx.prune import prune_tiles
from approxrt.approx.quantize import quantize_model
from approxrt.artifact.spec import HeadSpec, LayerSpec, ModelSpec
from approxrt.runtime.gpu_layout import PRUNE_BLOCK

POSITIONS = 512


@dataclass
class Subject:
    """What an engine is built from."""

    spec: ModelSpec
    tensors: dict[str, np.ndarray]


def random_encoder(
    hidden: int, ffn: int, layers: int, heads: int, density: float = 1.0, vocab: int = 1000, seed: int = 0
) -> Subject:
    """A BERT classifier in int8, pruned by the blocks of the target cuda."""
    spec = ModelSpec(
        architecture="bert",
        task_type="classification",
        vocab_size=vocab,
        embedding_size=hidden,
        hidden_size=hidden,
        max_positions=POSITIONS,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        activation="gelu",
        layers=tuple(LayerSpec(heads, hidden // heads, ffn) for _ in range(layers)),
        head=HeadSpec(dense_features=hidden),
        labels=("no", "yes"),
    )
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, _, shape in spec.dense_tensors():
        value = rng.standard_normal(shape, np.float32)
        if len(shape) == 2 and not name.startswith("embeddings"):
            value *= np.float32(shape[1] ** -0.5)
        else:
            value = value * np.float32(0.05) + np.float32(name.endswith("norm.weight"))
        tensors[name] = value
    masks = prune_tiles(spec, tensors, density, block=PRUNE_BLOCK) if density < 1 else {}
    return Subject(*quantize_model(spec, tensors, 8, masks))


def hugging_face(subject: Subject, dtype: object) -> object:
    """transformers' BERT of the same sizes with SDPA, in `dtype` on the GPU; its weights are its own."""
    import transformers

    spec = subject.spec
    config = transformers.BertConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        num_hidden_layers=len(spec.layers),
        num_attention_heads=spec.layers[0].num_heads,
        intermediate_size=spec.layers[0].intermediate_size,
        max_position_embeddings=spec.max_positions,
        num_labels=len(spec.labels),
        attn_implementation="sdpa",
    )
    return transformers.BertForSequenceClassification(config).to("cuda", dtype).eval()
