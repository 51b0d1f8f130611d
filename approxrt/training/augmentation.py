"""More pairs to learn from, where a task has few: the teacher's answers to them take the place of labels.

A few thousand pairs are soon learnt by heart, by the teacher too, whose answers to them say less of what it does with
others. So a model is also asked about pairs whose texts are the task's own but that nobody has labelled: a pair with
its texts exchanged, and a text with one that is much like its partner's (distillation on augmented data: Jiao et al.
2020, arXiv 1909.10351, who change words; whole texts stay sentences). What is right the teacher says.
"""

from __future__ import annotations

import numpy as np

from approxrt.random import Stream, generator
from approxrt.tasks.readers import Dataset, Text

ENOUGH = 20_000  # examples that need no more beside them
NEAREST = 5  # texts that a partner is drawn from


def with_more_pairs(data: Dataset, seed: int) -> Dataset:
    """`data` and, behind it, as many new pairs, up to `ENOUGH` together; their labels say nothing.

    Single texts come back as they are.
    """
    if not data.is_pair or len(data) >= ENOUGH:
        return data
    new = more_pairs(data, min(len(data), ENOUGH - len(data)), seed)
    return Dataset([*data.texts, *new], np.append(data.labels, np.zeros(len(new), data.labels.dtype)), data.label_names)


def more_pairs(data: Dataset, count: int, seed: int) -> list[Text]:
    """`count` new pairs at most, none of them in `data`: half exchanged, half with another second text.

    That one is drawn from the `NEAREST` second texts to the first text by the cosine of tf-idf of three letters.
    """
    rng = generator(seed, Stream.AUGMENTATION)
    known = set(data.texts)
    pairs = [text for text in data.texts if isinstance(text, tuple)]
    order = rng.permutation(len(pairs))
    new: dict[Text, None] = {(pairs[i][1], pairs[i][0]): None for i in order[: count // 2]}
    near = _nearest([first for first, _ in pairs], [second for _, second in pairs])
    for i in order[count // 2 : count]:
        first = pairs[i][0]
        others = [pairs[j][1] for j in near[i] if pairs[j][1] != first and (first, pairs[j][1]) not in known]
        if others:
            new[first, others[int(rng.integers(len(others)))]] = None
    return [pair for pair in new if pair not in known]


def _nearest(firsts: list[str], seconds: list[str]) -> np.ndarray:
    """i64[n, k]: of each first text the second texts that share most with it."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    # Not words: some scripts have no spaces between them.
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), sublinear_tf=True, dtype=np.float32)
    letters.fit([*firsts, *seconds])
    # One more: a pair's own second text is often the nearest.
    search = NearestNeighbors(n_neighbors=min(NEAREST + 1, len(seconds)), metric="cosine", algorithm="brute")
    search.fit(letters.transform(seconds))
    found: np.ndarray = search.kneighbors(letters.transform(firsts), return_distance=False)
    return found
