"""How well a model finds entities: the F1 of whole entities, as seqeval (the conlleval script) counts them.

An entity is right if its first word, its last word and its kind are. Entities are compared, not tags, so that a file's
scheme may be another than the model's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from approxrt.errors import DataError, InputError, MissingDependencyError
from approxrt.runtime.tagging import TagOptions
from approxrt.tasks.registry import plain_label
from approxrt.tasks.tagged import TaggedSentence, iobes, kind_of, kinds_of

PASS = 64  # sentences that are tagged at a time


def entity_metrics(predicted: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> dict[str, float]:
    """{f1, precision, recall} of entities, and the accuracy of words' tags; lists of tags by sentence.

    Raises InputError where sentences have other lengths, MissingDependencyError without seqeval.
    """
    sizes = [[len(row) for row in side] for side in (predicted, tags)]
    if sizes[0] != sizes[1] or not sizes[0]:
        raise InputError(
            f"{sum(sizes[0])} predicted tags of {len(sizes[0])} sentences do not fit {sum(sizes[1])} of {len(sizes[1])}"
        )
    try:
        from seqeval import metrics
    except ImportError:
        raise MissingDependencyError("seqeval", "compress", "the F1 score of entities") from None
    ours, theirs = ([list(map(_prefixed, row)) for row in side] for side in (predicted, tags))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no entity at all: scores are 0 by definition
        return {
            "f1": float(metrics.f1_score(theirs, ours)),
            "precision": float(metrics.precision_score(theirs, ours)),
            "recall": float(metrics.recall_score(theirs, ours)),
            "accuracy": float(metrics.accuracy_score(theirs, ours)),
        }


def _prefixed(tag: str) -> str:
    """The tag as conlleval reads it: names without a prefix go on while they are the same."""
    tag, kind = iobes(tag), kind_of(tag)
    return f"I-{tag}" if kind == tag else tag


def as_the_model_has(sentences: Sequence[TaggedSentence], labels: Sequence[str], file: Path) -> list[list[str]]:
    """The tags of sentences, with kinds of entities called as the model's labels call them.

    Names are compared without regard to capitals, spaces, - and _. Raises DataError naming the line for a kind that the
    model has not.
    """
    known = {plain_label(kind): kind for kind in kinds_of(labels)}
    rows = []
    for sentence in sentences:
        row = []
        for tag in sentence.tags:
            kind = kind_of(tag)
            if kind is None:
                row.append(tag)
                continue
            if plain_label(kind) not in known:
                raise DataError(
                    f"{file}:{sentence.line}: an entity is called {kind!r}; the model's are {', '.join(known.values())}"
                )
            row.append(tag[: len(tag) - len(kind)] + known[plain_label(kind)])
        rows.append(row)
    return rows


def predict_tags(
    model: Any, sentences: Sequence[TaggedSentence], progress: Callable[[int], None] | None = None
) -> list[list[str]]:
    """A label of the model for every word, of sentences over its limit, too: those are read in windows."""
    tagger, found = model.tagger, []
    length = tagger.length(None, None)
    options = TagOptions(stride=length // 4, words=True)
    for begin in range(0, len(sentences), PASS):
        part = sentences[begin : begin + PASS]
        inputs = tagger.prepare([list(sentence.words) for sentence in part], options)
        found += tagger.word_labels(inputs, model.forward_tokens(inputs.ids, inputs.type_ids))
        if progress:
            progress(len(part))
    return found
