"""Put texts into batches of like length, so that little padding is computed; how large they are is a matter of the
device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

# On a GPU: what a token of an encoder needs while a layer is computed, in vectors of the hidden size and 4 bytes (the
# FFN's inner states and their copies are the most), and the share of the free memory that may be taken; the rest is for
# the caching allocator, whose blocks of many batch shapes do not fit each other.
LIVE_VECTORS = 64
MEMORY_SHARE = 1 / 16
# Beyond some hundred thousand tokens multiplications do not become faster, while padding grows.
MOST_TOKENS = 1 << 17


@dataclass(frozen=True)
class BatchLimit:
    """Say how much a batch may hold: `texts`, and padded `tokens` (None: any number)."""

    texts: int
    tokens: int | None = None

    def within(self, size: int, token: int) -> BatchLimit:
        """Return the limit for states of `token` bytes a token that may take `size` bytes, at least one text's."""
        tokens = max(1, size // token)
        return BatchLimit(self.texts, tokens if self.tokens is None else min(self.tokens, tokens))

    def on(self, device: torch.device, hidden_size: int, layers: int = 1) -> BatchLimit:
        """Return the limit for a device; `layers` are those whose states are kept until a backward pass.

        On a CPU it stays: small batches keep their states in the caches. On a GPU, which they would leave idle, only
        tokens count, as many as a share of the free memory holds, at most `MOST_TOKENS`. Batches of a training step
        are no matter of this: they are part of what is learnt, and as large as asked for on every device.
        """
        if device.type != "cuda":
            return self
        free, _ = torch.cuda.mem_get_info(device)
        affordable = int(free * MEMORY_SHARE) // (4 * LIVE_VECTORS * hidden_size * layers)
        tokens = max(self.tokens or self.texts, min(MOST_TOKENS, affordable))
        return BatchLimit(tokens, tokens)


def batches_by_length(lengths: np.ndarray, limit: BatchLimit) -> Iterator[np.ndarray]:
    """Yield the rows of each batch of texts with `lengths` i64[n], the shortest first, each text once."""
    order = np.argsort(lengths, kind="stable")
    while len(order):
        size = limit.texts
        if limit.tokens is not None:
            longest = int(lengths[order[: limit.texts][-1]])
            size = max(1, min(size, limit.tokens // longest))
        yield order[:size]
        order = order[size:]
