"""Decoders: blocks, heads, channels, tiles and bits by what each costs and brings, then distillation.

What a part may become is in `approxrt.planning.decoder_options`, with its loss and its measured time; a plan takes what
brings most time for a loss,

  - with `speedup` (or `shrink`), just enough for it;
  - else as much as `max_drop` allows, the relative increase of perplexity on validation text.

Plans are built, measured, and planned again with what was learnt of the predictions (`decoder_rounds`). Where a plan
costs more than is allowed, or a bolder one may come within it, the model learns from the float32 one for the time that
is left (`decoder_training`).

Every step ends with a candidate's artifact in `OUT.work`, the first of them after a minute: whatever happens later, the
best so far is there. The budget bounds every step; an interrupted run goes on from its candidates and its training.
"""

from __future__ import annotations

from pathlib import Path

from approxrt.artifact.memory import InMemory
from approxrt.artifact.reader import read_artifact
from approxrt.compression.families.decoder import DecoderFamily
from approxrt.compression.families.decoder_build import untied
from approxrt.compression.recipes.decoder_rounds import Search
from approxrt.compression.recipes.decoder_training import starting_state, train
from approxrt.compression.records import Origin, Preview, Provenance
from approxrt.errors import InputError
from approxrt.quantization.low_rank_head import with_preview
from approxrt.quantization.rotation import can_rotate, rotate
from approxrt.quantization.rtn import quantize_model
from approxrt.training.budget import BudgetSpent

# Of the allowed increase, what a head's preview may cost on text like that it is fitted to, and the most of it in nats;
# on other text it is up to twice as much. The head is a third of what a token reads.
PREVIEW_SHARE, PREVIEW_KL = 0.3, 0.01


def decoder(family: DecoderFamily) -> None:
    """Make candidates until more budget would change nothing. Raises BudgetSpent where it ends before."""
    job, checkpoint = family.job, family.inputs.checkpoint
    spec, tensors = checkpoint.spec, dict(checkpoint.tensors)
    if family.own is not None:
        # What a rotation and rounding make of a file with grids of its own cannot be closer to it than those.
        if not job.work.candidates():
            job.say("as in the file")
            kept = InMemory(*quantize_model(spec, tensors, "g4", grouped=checkpoint.grouped))
            family.build(kept, Provenance(Origin.CONVERTED, title="as in the file"))
        _preview_head(family)
        spec, tensors = untied(spec, tensors)
    else:
        if can_rotate(spec):
            job.say("rotating")
            spec, tensors = rotate(spec, tensors)
        else:
            job.notes.add("layer norms: activations are not rotated, so their outliers cost some accuracy")
        if not job.work.candidates():
            job.say("int8")
            rounded = InMemory(*quantize_model(spec, tensors, "s8"))
            family.build(rounded, Provenance(Origin.CONVERTED, title="int8, rounded to nearest"))
    state = job.work.load_tensors("state")
    if state is None:
        if job.budget.left() <= 0:
            raise BudgetSpent
        found = Search(family, spec, tensors).run()
        if found is None:
            return
        job.say("preparing distillation")
        state = starting_state(*found)
        job.work.save_tensors("state", state)
        job.save_clock(family.last_check)
    train(family, spec, tensors, state)


def _preview_head(family: DecoderFamily) -> None:
    """A candidate whose head is previewed, and what the others' heads are previewed with."""
    job = family.job
    if family.cost != "ms":
        return
    done = next((c for c in job.work.candidates() if c.provenance.origin is Origin.PREVIEWED), None)
    if done is not None:
        family.take_preview(Path(done.path))
        return
    job.say("fitting a preview of the head")
    try:
        most = min(PREVIEW_KL, PREVIEW_SHARE * family.allowed)
        kept = read_artifact(Path(job.work.candidates()[0].path))
        spec, tensors, found = with_preview(kept, family.inputs.calibrating, most, job.threads)
    except InputError as error:
        job.notes.add(f"the head is not previewed: {error}")
        return
    preview = Preview(found.kl, found.rows, found.bytes, found.cost, found.agreement)
    built = InMemory(spec, tensors)
    family.build(built, Provenance(Origin.PREVIEWED, title="as in the file, the head previewed", preview=preview))
    family.preview = built
