"""The baseline "magnitude": prune the same share of every linear's tiles by their energy, and refit nothing.

The share that meets the target is looked for in the engine.
"""

from __future__ import annotations

from typing import Any

from approxrt.compression.families.encoder import EncoderFamily
from approxrt.compression.records import Origin, Provenance
from approxrt.compression.rounds import TOLERANCE
from approxrt.errors import CompressionError
from approxrt.pruning.magnitude import prune_tiles

BISECTIONS = 10


def magnitude(family: EncoderFamily) -> None:
    """See the module's text. Raises CompressionError when one tile a linear is not little enough."""
    job, options = family.job, family.job.options
    if job.work.candidates():
        return
    limits = family.limits(family.model(), options.wanted_speedup, options.wanted_shrink)
    model, low, high = family.model(), 0.0, 1.0
    tried: list[dict[str, Any]] = []
    tensors = model.tensors()

    def fits(density: float) -> bool:
        """Prune `model` to a density; whether that meets the target."""
        model.load_state_dict(family.model().state_dict())
        model.set_masks(prune_tiles(model.spec, tensors, density))
        ms = family.timer(model, {}) if limits.ms is not None else None
        size = family.block_bytes(model)
        tried.append({"density": density, "ms": ms, "bytes": size})
        fast = ms is None or limits.ms is None or ms <= limits.ms
        return fast and (limits.bytes is None or size <= limits.bytes)

    if not fits(1.0):
        for i in range(BISECTIONS):
            job.recipe_progress(i / BISECTIONS, f"magnitude: density {(low + high) / 2:.3f}")
            middle = (low + high) / 2
            if fits(middle):
                low = middle
            else:
                high = middle
            measured = tried[-1]["ms"]
            close = measured is not None and measured > (1 - TOLERANCE) * (limits.ms or 0)
            if low == middle and limits.bytes is None and close:
                break
        if not low:
            raise CompressionError(f"magnitude pruning does not meet the target even with {high:.2%} of the tiles")
        fits(low)
    facts = {
        "speedup": options.wanted_speedup,
        "shrink": options.wanted_shrink,
        "recipe": "one-shot",
        "method": "magnitude",
        "density": low or 1.0,
        "tried": tried,
    }
    family.build(model, family.head_kinds(), Provenance(Origin.PLANNED, facts=facts))
