"""A previewed head: two small linears that say nearly what a decoder's head says, fitted to its hidden states.

After SVD-softmax (Shim et al. 2017, NeurIPS), which takes the singular vectors of the head's matrix E, the first of
them for all words and the whole row for a number of best words. Here directions are ordered by what they add to logits
of hidden states h that occur: with C = L L^T their covariance and mu their mean, and V the eigenvectors of
(E L)^T (E L),

    E h = E mu + T y,   T = E L V,   y = V^T L^-1 (h - mu)

where y has unit covariance, so that a column of T costs its squared length where it is left out. The preview keeps the
first columns: the first 32 in eight bits, as two groups of 4-bit values of the same inputs (value and what it leaves),
then 32 a group in four bits. What is left out makes a logit uncertain by a variance v a word; exp(logit) is then
exp(v / 2) times as large on average, which is in the bias.

Which words are exact decides a margin below the largest logit, not their number: a token that the model is sure of
needs few. Width and margin are chosen together, by the bytes that a token reads, among those whose KL divergence from
the whole head's distribution is small on hidden states that the fit has not seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from approxrt.artifact.spec.decoder import PREVIEW_OUT, PREVIEW_PROJECT, DecoderSpec, HeadPreviewSpec
from approxrt.artifact.spec.formats import GROUP_WEIGHTS
from approxrt.artifact.storage.groupwise import dequantize_groups, matrix_parts
from approxrt.errors import InputError
from approxrt.quantization.groupwise import quantize_groups4, quantize_groups8
from approxrt.runtime.cpu.decoder_engine import DecoderEngine, DecoderWeights
from approxrt.runtime.reference.groupwise import dequantized_tokens

MAX_KL = 0.003  # nats
LEAST_CHECKS = 16  # hidden states to measure on
REGULARISER = 0.01  # of the covariance's mean variance, added to every direction
MARGIN_STEP, MARGINS = 0.25, 128
# Bytes of rows anywhere in a table take longer than those of a stream.
ROW_COST = 1.7
LINE = 64  # bytes of a cache line

CALIBRATION_TOKENS, CHECK_TOKENS, SEQUENCE = 16384, 512, 256


@dataclass(frozen=True)
class Preview:
    """A preview and what was measured of it on the hidden states for checks.

    tensors     of `head.preview.project` and `head.preview.out`
    kl          nats, the mean over tokens of KL(whole head || previewed head)
    rows        words refined a token, on average
    bytes       that a token reads: both linears and the rows
    cost        bytes of a stream that would take as long to read
    agreement   share of tokens whose largest logit is the same word's
    """

    spec: HeadPreviewSpec
    tensors: dict[str, np.ndarray]
    kl: float
    rows: float
    bytes: float
    cost: float
    agreement: float


def build_preview(
    table: Mapping[str, np.ndarray], hidden: np.ndarray, check: np.ndarray, max_kl: float = MAX_KL
) -> Preview:
    """A preview of the head whose matrix is `table`, the parts of a g8 embedding table [vocab, K] (q and group_scale).

    hidden   float32 [tokens, K], what the head reads, to fit to: at least K tokens
    check    float32 [tokens, K], others, to measure on
    max_kl   nats a token, see `Preview.kl`

    Raises InputError for hidden states that are too few, not finite or do not fit, and where no preview reads less than
    the head itself. Deterministic.
    """
    if set(table) != {"q", "group_scale"}:
        raise InputError(f"the embedding table has parts {sorted(table)}; a preview needs kind g8 (q, group_scale)")
    k = table["q"].shape[1]
    _check_states(hidden, check, k)
    if not max_kl > 0:
        raise InputError(f"max_kl is {max_kl}; it must be over 0 nats")
    words = dequantize_groups(table, k)
    fit = _Fit(words, hidden)
    logits = np.concatenate([dequantized_tokens(part).astype(np.float32) @ words.T for part in _blocks(check)])
    best: tuple[float, int, Preview] | None = None
    for width, near in fit.previews(check):
        streamed = fit.bytes(width)
        if best is not None and streamed >= best[0]:
            break
        found = _measure(logits, near, max_kl)
        cost = streamed + ROW_COST * found.rows * _row_bytes(k)
        if best is None or cost < best[0]:
            spec = HeadPreviewSpec(width, found.margin)
            read = streamed + found.rows * _row_bytes(k)
            best = cost, width, Preview(spec, {}, found.kl, found.rows, read, cost, found.agreement)
    whole = sum(part.nbytes for part in table.values())
    if best is None or best[0] >= whole:
        least = "there is none" if best is None else f"the cheapest costs as much as {best[0] / 1e6:.2f} MB"
        raise InputError(
            f"no preview within {max_kl:g} nats is faster than the head, which reads {whole / 1e6:.2f} MB a token "
            f"({least}): leave it out, or allow more"
        )
    return dataclasses.replace(best[2], tensors=fit.tensors(best[1]))


def with_preview(
    built: DecoderWeights, ids: Sequence[int], max_kl: float = MAX_KL, threads: int | None = None
) -> tuple[DecoderSpec, dict[str, np.ndarray], Preview]:
    """Return (spec, tensors, preview) of a finished decoder, previewed: fitted to its hidden states on a text of `ids`.

    `built` has `decoder_spec` and `tensors`, as an artifact. The text runs through the CPU engine in pieces of SEQUENCE
    tokens; the last eighth of the pieces checks. Raises InputError, as `build_preview` and where the model's head is no
    tied embedding table of kind g8.
    """
    spec = built.decoder_spec
    check_previewable(spec)
    engine = DecoderEngine(built, threads)
    length = min(SEQUENCE, spec.max_positions)
    pieces = [list(ids[i : i + length]) for i in range(0, len(ids) - length + 1, length)]
    most = (CALIBRATION_TOKENS + CHECK_TOKENS) // length
    checks = max(1, min(len(pieces) // 8, CHECK_TOKENS // length))
    least = -(-spec.hidden_size // length) + checks
    if len(pieces) < least:
        raise InputError(
            f"the text has {len(ids)} tokens; a preview of {spec.hidden_size} inputs needs at least {least * length}"
        )
    # From all over the text.
    pieces = [pieces[i] for i in np.linspace(0, len(pieces) - 1, min(most, len(pieces))).astype(int)]
    states = [engine.hidden([engine.cache(length)], [piece]) for piece in pieces]
    hidden, check = np.concatenate(states[:-checks]), np.concatenate(states[-checks:])
    preview = build_preview(matrix_parts("embeddings.word", built.tensors), hidden, check, max_kl)
    return dataclasses.replace(spec, head_preview=preview.spec), dict(built.tensors) | preview.tensors, preview


def check_previewable(spec: DecoderSpec) -> None:
    """Raise InputError unless the decoder's head can be previewed."""
    if not spec.tied_embeddings or spec.embedding_kind != "g8":
        table = f"an embedding table of kind {spec.embedding_kind!r}"
        head = f"the head is {table}" if spec.tied_embeddings else f"the head is not the embedding table ({table})"
        raise InputError(f"{head}; a preview needs a head that is an embedding table of kind 'g8': convert with bits=5")
    if spec.head_preview is not None:
        raise InputError("the head has a preview already: start from the model without")


class _Fit:
    """All columns of T and their quantised groups, of which a preview takes the first."""

    def __init__(self, words: np.ndarray, hidden: np.ndarray) -> None:
        self.vocab, k = words.shape
        mean = hidden.mean(axis=0, dtype=np.float64)
        centred = hidden - mean.astype(np.float32)
        covariance = (centred.T @ centred).astype(np.float64) / len(hidden)
        covariance += np.eye(k) * (REGULARISER * max(np.trace(covariance) / k, 1e-12))
        root = np.linalg.cholesky(covariance)
        turned = words @ root.astype(np.float32)
        energy, vectors = np.linalg.eigh((turned.T @ turned).astype(np.float64))
        vectors = vectors[:, np.argsort(energy)[::-1]]
        # A basis is one up to signs; these do not depend on the library that found it.
        vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(k)] < 0, -1, 1)
        self.columns = turned @ vectors.astype(np.float32)
        self.whole = k // GROUP_WEIGHTS  # groups of 32 columns; those of a last, smaller one are left out
        self.project = quantize_groups8(
            np.linalg.solve(root.T, vectors).T[: self.whole * GROUP_WEIGHTS].astype(np.float32)
        )
        self.shift = -(dequantize_groups(self.project, k).astype(np.float64) @ mean)
        self.centre = words.astype(np.float64) @ mean
        self.groups: list[list[dict[str, np.ndarray]]] = []
        self.left: list[np.ndarray] = []  # variance that a word's logit has besides, by the last group of a preview

    def previews(self, check: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Return (width, near logits float32 [tokens, vocab]) of one preview after the other."""
        k = check.shape[1]
        rows = dequantize_groups(self.project, k).astype(np.float64)
        y = (dequantized_tokens(check) @ rows.T + self.shift).astype(np.float32)
        y = dequantized_tokens(y).astype(np.float32)
        near = np.zeros((len(check), self.vocab), np.float32)
        left = (self.columns.astype(np.float64) ** 2).sum(axis=1)
        for g in range(self.whole):
            at = slice(g * GROUP_WEIGHTS, (g + 1) * GROUP_WEIGHTS)
            exact = self.columns[:, at]
            value = quantize_groups4(exact)
            stored = dequantize_groups(value, GROUP_WEIGHTS)
            self.groups.append([value])
            if g == 0:
                self.groups[0].append(quantize_groups4(exact - stored))
                stored = stored + dequantize_groups(self.groups[0][1], GROUP_WEIGHTS)
            left = (
                left - (exact.astype(np.float64) ** 2).sum(axis=1) + ((exact - stored).astype(np.float64) ** 2).sum(1)
            )
            self.left.append(left)
            near += y[:, at] @ stored.T
            # Of many widths every other one.
            if g % 2 == 0 or self.whole <= 8:
                yield (g + 2) * GROUP_WEIGHTS, near + self._bias(g)

    def _bias(self, g: int) -> np.ndarray:
        """f32[vocab] of the preview that ends with group g."""
        bias: np.ndarray = (self.centre + np.maximum(self.left[g], 0) / 2).astype(np.float32)
        return bias

    def bytes(self, width: int) -> int:
        """That the two linears read a token."""
        k = self.columns.shape[1]
        groups = width // GROUP_WEIGHTS
        return self.vocab * (groups * 20 + 4) + width * (k + 2 * -(-k // GROUP_WEIGHTS) + 4)

    def tensors(self, width: int) -> dict[str, np.ndarray]:
        """Return the tensors of both linears: `head.preview.*`."""
        used = width // GROUP_WEIGHTS - 1
        # The first group's inputs are there twice, once for the values and once for what they leave.
        rows = np.concatenate([np.arange(GROUP_WEIGHTS), np.arange(used * GROUP_WEIGHTS)])
        project = {part: np.ascontiguousarray(array[rows]) for part, array in self.project.items()}
        project["bias"] = self.shift[rows].astype(np.float32)
        parts = [part for group in self.groups[:used] for part in group]
        out = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        out["bias"] = self._bias(used - 1)
        return {f"{PREVIEW_PROJECT}.{name}": array for name, array in project.items()} | {
            f"{PREVIEW_OUT}.{name}": array for name, array in out.items()
        }


@dataclass(frozen=True)
class _Measured:
    margin: float
    kl: float
    rows: float
    agreement: float


def _measure(logits: np.ndarray, near: np.ndarray, max_kl: float) -> _Measured:
    """The least margin of those tried whose mean KL divergence is within `max_kl`, and what it costs."""
    divergences, counts = np.zeros(MARGINS + 1), np.zeros(MARGINS + 1)
    largest_gap = 0.0
    for full, a in zip(_blocks(logits), _blocks(near), strict=True):
        tokens = len(full)
        top = full.max(axis=1, keepdims=True)
        gap = a.max(axis=1, keepdims=True) - a
        largest_gap = max(largest_gap, float(gap.max()))
        # The first margin that has the word among those that are refined.
        first = np.minimum(np.ceil(gap / np.float32(MARGIN_STEP)), MARGINS).astype(np.int64)
        bins = (first + np.arange(tokens)[:, None] * (MARGINS + 1)).ravel()

        def up_to(values: np.ndarray, bins: np.ndarray = bins, tokens: int = tokens) -> np.ndarray:
            """[tokens, margins]: the sum over words that are refined."""
            by_margin = np.bincount(bins, values.ravel(), tokens * (MARGINS + 1))
            return np.cumsum(by_margin.reshape(tokens, -1), axis=1)

        exact, guessed = np.exp(full - top), np.exp(a - top)
        refined, others, missed = up_to(exact), up_to(guessed), up_to(exact * (full - a))
        total = refined[:, -1:]
        missed = (missed[:, -1:] - missed) / total
        kl = missed - np.log(total) + np.log(refined + (others[:, -1:] - others))
        divergences += kl.sum(axis=0)
        counts += np.cumsum(np.bincount(first.ravel(), minlength=MARGINS + 1))
    kl, rows = divergences / len(logits), counts / len(logits)
    chosen = int(np.argmax(kl <= max_kl)) if (kl <= max_kl).any() else MARGINS
    # The last one stands for all words.
    margin = chosen * MARGIN_STEP if chosen < MARGINS else float(np.ceil(largest_gap)) + 1
    agreed = 0
    for full, a in zip(_blocks(logits), _blocks(near), strict=True):
        mixed = np.where(a >= a.max(axis=1, keepdims=True) - np.float32(margin), full, a)
        agreed += int(np.count_nonzero(mixed.argmax(axis=1) == full.argmax(axis=1)))
    return _Measured(margin, float(kl[chosen]), float(rows[chosen]), agreed / len(logits))


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    """A few rows at a time: what is computed of them are many times their bytes."""
    return [rows[i : i + 32] for i in range(0, len(rows), 32)]


def _check_states(hidden: np.ndarray, check: np.ndarray, k: int) -> None:
    for name, states, least in (("hidden", hidden, k), ("check", check, LEAST_CHECKS)):
        if states.ndim != 2 or states.shape[1] != k or states.dtype != np.float32:
            raise InputError(f"{name} is {states.dtype}{list(states.shape)}; float32 [tokens, {k}] is needed")
        if len(states) < least:
            raise InputError(f"{name} has {len(states)} states; at least {least} are needed: give more text")
        bad = int(np.count_nonzero(~np.isfinite(states)))
        if bad:
            raise InputError(f"{name} has {bad} values that are NaN or infinite")


def _row_bytes(k: int) -> int:
    """That a refined word reads: the lines of its row, and one of scales."""
    return -(-k // LINE) * LINE + LINE + LINE
