"""Scores of every weight of a model as it is: block OBS of its tiles, spread over their weights.

One currency for heads, FFN channels and tiles: half the loss of a text, by the Fisher matrix of its own predictions
(`approxrt.significance.statistics`) and the input moments of each linear (`approxrt.pruning.obs`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from approxrt.artifact.spec.formats import TILE_K, TILE_N, LinearKind
from approxrt.artifact.storage.bsr import to_tiles
from approxrt.progress import Progress
from approxrt.pruning.obs import tile_curve
from approxrt.quantization.gptq import dequantized_linear, output_error
from approxrt.quantization.rtn import quantize_linear
from approxrt.significance.statistics import Statistics
from approxrt.torch_models.encoder import TorchEncoder


def element_scores(
    model: TorchEncoder, found: Statistics, names: Sequence[str], progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """f32[out, in] by linear: a tile's error of removal, in its order of removal, shared by its weights."""
    # In units of a text's loss, so that what is spent on blocks and on bits adds up.
    tokens = found.tokens / found.examples
    progress, scores = progress or Progress(), {}
    for done, name in enumerate(names):
        progress.count(done, len(names), f"scoring tiles of {name}")
        weight = model.weight(f"{name}.weight").detach().cpu().numpy()
        scores[name] = spread(tile_curve(weight, found.inputs[name], found.gradients[name] * tokens), weight.shape)
    return scores


def rounding_errors(
    model: TorchEncoder, found: Statistics, names: Sequence[str], kinds: Sequence[LinearKind]
) -> dict[tuple[str, LinearKind], float]:
    """Return, by linear and kind, what plain rounding of its weights dw costs, 1/2 sum_r G_rr dw_r A dw_r^T.

    In the unit of `element_scores`.
    """
    tokens, out = found.tokens / found.examples, dict[tuple[str, LinearKind], float]()
    for name in names:
        weight = model.weight(f"{name}.weight").detach().cpu().numpy()
        scale = np.sqrt(found.gradients[name] * tokens / 2)[:, None]
        for kind in kinds:
            change = dequantized_linear(quantize_linear(weight, kind)[1], *weight.shape) - weight
            out[name, kind] = output_error(change * scale, found.inputs[name])
    return out


def spread(curve: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Scores of tiles [strips, columns] -> f32[N, K]: every weight has its share of its tile's."""
    counts = to_tiles(np.ones(shape, np.float32)).sum(axis=(2, 3))
    each = (curve / counts).astype(np.float32)
    n, k = shape
    return np.ascontiguousarray(np.repeat(np.repeat(each, TILE_N, axis=0)[:n], TILE_K, axis=1)[:, :k])
